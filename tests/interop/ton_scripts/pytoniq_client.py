"""pytoniq, as it is published, against a devnet: `pytoniq_client.py CONFIG SEED ACCOUNT_CODE TRUST_LEVEL OUT`.

Deploys a spending account through a wallet W5R1, opens it, claims, reads history and proofs. Knows nothing of Cocoon.
"""

import asyncio
import base64
import json
import struct
import sys

from nacl.signing import SigningKey
from pytoniq import LiteClient, WalletV5R1
from pytoniq_core import Address, Cell, StateInit, begin_cell

TON = 10**9
V = SigningKey(b"\x07" * 32)
PAYEE = b"\x23" * 32


async def until(look, want, seconds=20):
    """Poll until it is so."""
    for _ in range(seconds * 5):
        value = await look()
        if want(value):
            return value
        await asyncio.sleep(0.2)
    raise SystemExit("it did not happen")


async def main() -> None:
    config_path, seed, code, level, out = sys.argv[1:]
    with open(config_path) as file:
        config = json.load(file)
    async with LiteClient.from_config(config, 0, trust_level=int(level), timeout=10) as client:
        key = bytes(SigningKey(bytes.fromhex(seed))) + bytes(SigningKey(bytes.fromhex(seed)).verify_key)
        wallet = await WalletV5R1.from_private_key(client, key, network_global_id=-217)
        seen = {"balance": (await client.get_account_state(wallet.address)).balance}
        await wallet.deploy_via_external()

        async def wallet_seqno():
            state = await client.get_account_state(wallet.address)
            return state.state.type_ == "active" and await wallet.get_seqno()

        await until(wallet_seqno, lambda seqno: bool(seqno))
        await wallet.update()
        data = (
            begin_cell().store_address(wallet.address).store_uint(1, 64).store_uint(0, 320)
            .store_coins(0).store_coins(0).store_bit(0).end_cell()
        )  # fmt: skip
        init = StateInit(code=Cell.one_from_boc(base64.b64decode(code)), data=data)
        account = Address((0, init.serialize().hash))
        roll = begin_cell().store_uint(0xACC00004, 32).store_uint(0, 64).store_bytes(bytes(V.verify_key))
        await wallet.transfer(account, 3 * TON, roll.store_coins(TON).store_coins(0).end_cell(), init)

        async def balance():
            return (await client.get_account_state(account)).balance

        await until(balance, lambda found: found > TON)
        state = (await client.get_account_state(account)).state.state_init.data.begin_parse()
        state.load_address()
        state.skip_bits(64 + 256)
        epoch = state.load_uint(32)
        signed = b"CSV1" + struct.pack(">i32sI32sQQ", -217, account.hash_part, epoch, PAYEE, TON, 0)
        claim = begin_cell().store_uint(0xACC00002, 32).store_uint(0, 64).store_bytes(signed[44:])
        await until(wallet_seqno, lambda seqno: seqno >= 2)
        await wallet.update()
        await wallet.transfer(account, TON // 50, claim.store_bytes(V.sign(signed).signature).end_cell())

        async def payee():
            return (await client.get_account_state(Address((0, PAYEE)))).balance

        seen["paid"] = await until(payee, lambda found: found > 0)
        history, blocks = await client.raw_get_transactions(account, 10)
        seen["history"] = len(history)
        seen["one"] = (await client.get_one_transaction(account, history[0].lt, blocks[0])).lt == history[0].lt
        seen["in_block"] = len(await client.raw_get_block_transactions(blocks[0]))
        seen["network"] = (await client.get_config_params([19]))[19].load_int(32)
        seen["method"] = (await client.run_get_method(account, "account_state", []))[0]
        seen["epoch"] = epoch
    with open(out, "w") as file:
        json.dump(seen, file)


asyncio.run(main())
