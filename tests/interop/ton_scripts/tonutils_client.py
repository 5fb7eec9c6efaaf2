"""tonutils, as it is published, against a devnet: `tonutils_client.py CONFIG WALLET_SEED ACCOUNT_CODE OUT`.

Deploys a spending account through a wallet V4R2, opens it, claims, and writes what it saw. Knows nothing of Cocoon.
"""

import asyncio
import base64
import json
import struct
import sys

from nacl.signing import SigningKey
from ton_core import Address, Cell, NetworkGlobalID, PrivateKey, StateInit, begin_cell
from tonutils.clients import LiteClient
from tonutils.contracts import WalletV4R2

TON = 10**9
V = SigningKey(b"\x07" * 32)
PAYEE = b"\x22" * 32


async def until(look, want, seconds=20):
    """Poll until it is so."""
    for _ in range(seconds * 5):
        value = await look()
        if want(value):
            return value
        await asyncio.sleep(0.2)
    raise SystemExit("it did not happen")


async def main() -> None:
    config_path, seed, code, out = sys.argv[1:]
    with open(config_path) as file:
        config = json.load(file)
    client = LiteClient.from_config(NetworkGlobalID.TESTNET, config=config, index=0)
    await client.connect()
    wallet = WalletV4R2.from_private_key(client, PrivateKey(bytes.fromhex(seed)))
    await wallet.refresh()
    seen = {"wallet": wallet.address.hash_part.hex(), "balance": wallet.balance}
    data = (
        begin_cell().store_address(wallet.address).store_uint(1, 64).store_uint(0, 320)
        .store_coins(0).store_coins(0).store_bit(0).end_cell()
    )  # fmt: skip
    init = StateInit(code=Cell.one_from_boc(base64.b64decode(code)), data=data)
    account = Address((0, init.serialize().hash))
    roll = begin_cell().store_uint(0xACC00004, 32).store_uint(0, 64).store_bytes(bytes(V.verify_key))
    roll = roll.store_coins(TON).store_coins(0).end_cell()
    await wallet.transfer(account, 3 * TON, body=roll, state_init=init, bounce=True)

    async def info():
        return await client.get_info(account)

    opened = await until(info, lambda found: found.balance > TON)
    state = Cell.one_from_boc(opened.data_raw).begin_parse()
    state.load_address()
    state.load_uint(64)
    assert bytes(state.load_bytes(32)) == bytes(V.verify_key)
    epoch = state.load_uint(32)
    signed = b"CSV1" + struct.pack(">i32sI32sQQ", -217, account.hash_part, epoch, PAYEE, TON, 0)
    claim = begin_cell().store_uint(0xACC00002, 32).store_uint(0, 64).store_bytes(signed[44:])
    claim = claim.store_bytes(V.sign(signed).signature).end_cell()
    await until(wallet_ready(wallet), lambda ready: ready)
    await wallet.transfer(account, TON // 50, body=claim)

    async def payee():
        return (await client.get_info(Address((0, PAYEE)))).balance

    seen["paid"] = await until(payee, lambda balance: balance > 0)
    seen["history"] = len(await client.get_transactions(account, limit=10))
    seen["method"] = [int(item) for item in await client.run_get_method(account, "account_state", [])][:1]
    seen["epoch"] = epoch
    with open(out, "w") as file:
        json.dump(seen, file)
    await client.close()


def wallet_ready(wallet):
    async def ready():
        await wallet.refresh()
        return wallet.is_active and await wallet.seqno() >= 1

    return ready


asyncio.run(main())
