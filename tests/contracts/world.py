"""A ledger on the real TVM with one spending account or one stake in it, and everybody who may send to it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from pytoniq_core import Cell, HashMap, begin_cell

from cocoon.adapters.devnet.ledger import Applied, Ledger
from cocoon.adapters.devnet.nodejs import NodeJs
from cocoon.adapters.devnet.tvm import PRICES, MessageRefused, Tvm, configuration, prepare
from cocoon.adapters.ton import contracts
from cocoon.adapters.ton.cells import account_of, address, internal_message, state_init
from cocoon.adapters.ton.contracts import Code
from cocoon.errors import ConfigError, Unavailable
from cocoon.ports.chain import Entry, SpendingAccount, StakeState
from cocoon.types import Network
from cocoon.wire.signing import stake_statement

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "build" / "npm"
NETWORK = Network.DEVNET
TON = 10**9
MILLI = 10**6
NOW_S = 1_790_000_000
RENT = contracts.RENT_NANO
NOTICE_S = contracts.NOTICE_S
EVERYTHING = 2**64 - 1

OWNER = b"\x11" * 32
STRANGER = b"\x44" * 32
NOWHERE = bytes(32)
V = SigningKey(b"\x07" * 32)
V_KEY = bytes(V.verify_key)
O = SigningKey(b"\x09" * 32)  # noqa: E741 the operator key's name in the design
O_KEY = bytes(O.verify_key)


@cache
def provider(index: int) -> bytes:
    """A provider's payout account."""
    return hashlib.sha256(b"provider %d" % index).digest()


@cache
def packages() -> tuple[NodeJs, Path]:
    """Node and the TVM's packages; skips with the reason when they cannot be had."""
    try:
        return prepare(PACKAGES)
    except (ConfigError, Unavailable) as error:
        pytest.skip(f"needs Node.js and the TVM's npm packages: {error}")


@cache
def config(prices: str = PRICES[0], network: Network = NETWORK) -> Cell:
    """A configuration, built once."""
    return configuration(network=network, prices=prices)


def open_tvm(prices: str = PRICES[0]) -> Tvm:
    """A TVM process; close it."""
    node, modules = packages()
    return Tvm(node, modules, config=config(prices))


def voucher(
    account: bytes,
    epoch: int,
    payee: bytes,
    cumulative: int,
    ceiling: int = 0,
    *,
    network: Network = NETWORK,
    tag: bytes = b"CSV1",
) -> bytes:
    """The 92 bytes, put together here once more on purpose: a second opinion on the format."""
    return tag + struct.pack(">i32sI32sQQ", int(network), account, epoch, payee, cumulative, ceiling)


class World:
    """A ledger with one contract."""

    def __init__(self, tvm: Tvm, contract: bytes) -> None:
        self.ledger = Ledger(tvm, now_s=NOW_S)
        self.contract = contract
        self.trace: list[Applied] = []

    def send(
        self, source: bytes, body: Cell | None, value: int = TON // 20, *, init: object = None, bounce: bool = True
    ) -> Applied:
        """One message to the contract; what it caused is in `trace`."""
        message = internal_message(address(source), address(self.contract), value, body, init=init, bounce=bounce)
        self.trace = self.ledger.run(message)
        return self.trace[0]

    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.ledger.now_s += seconds

    @property
    def balance(self) -> int:
        """What the contract holds."""
        return self.ledger.balance_nano(self.contract)

    def received(self, account: bytes) -> int:
        """What an account got in the last trace."""
        return sum(applied.parsed.in_msg.info.value.grams for applied in self.trace[1:] if applied.account == account)

    @property
    def is_bounced(self) -> bool:
        """The coins of the last message went back to its sender."""
        return any(getattr(applied.parsed.in_msg.info, "bounced", False) for applied in self.trace[1:])

    def put_data(self, data: Cell) -> None:
        """Replace the contract's data by hand: states that are costly to reach."""
        shard = self.ledger.accounts[self.contract]
        account = shard.refs[0]
        code = account.refs[0]
        changed = (
            begin_cell().store_bits(account.begin_parse().load_bits(len(account.bits))).store_ref(code).store_ref(data)
        ).end_cell()
        self.ledger.accounts[self.contract] = (
            begin_cell().store_bits(shard.begin_parse().load_bits(len(shard.bits))).store_ref(changed)
        ).end_cell()


class AccountWorld(World):
    """One spending account, opened unless told otherwise."""

    def __init__(
        self,
        tvm: Tvm,
        *,
        deposit: int = 5 * TON,
        bond: int = TON,
        salt: int = 1,
        code: Code | None = None,
        is_open: bool = True,
    ) -> None:
        self.code = code if code is not None else contracts.contract_code("account")
        self.init = contracts.account_init(address(OWNER), salt, code=self.code.cell)
        super().__init__(tvm, account_of(self.init))
        if is_open:
            self.send(OWNER, contracts.roll_body(key=V_KEY, bond_nano=bond), deposit, init=self.init)

    @property
    def state(self) -> SpendingAccount:
        """As a peer would decode it."""
        data = self.ledger.data(self.contract)
        assert data is not None
        return contracts.read_account(
            self.contract,
            code_hash=self.code.hash,
            data=data,
            balance_nano=self.balance,
            at_s=self.ledger.now_s,
            code=self.code,
        )

    @property
    def free(self) -> int:
        """Neither rent, nor bond, nor reserved."""
        state = self.state
        return max(0, self.balance - RENT - state.bond_nano - state.reserved_nano)

    def entry(self, payee: bytes) -> Entry:
        """A provider's line; zeros when there is none."""
        return self.state.entries.get(payee, Entry(claimed_nano=0, ceiling_nano=0))

    def signed_claim(
        self,
        payee: bytes,
        cumulative: int,
        ceiling: int = 0,
        *,
        key: SigningKey = V,
        epoch: int | None = None,
        account: bytes | None = None,
        network: Network = NETWORK,
        tag: bytes = b"CSV1",
        sent_as: tuple[bytes, int, int] | None = None,
    ) -> Cell:
        """A Claim body whose signature is over exactly what is said here."""
        chosen = epoch if epoch is not None else self.state.epoch
        signed = voucher(
            account if account is not None else self.contract,
            chosen,
            payee,
            cumulative,
            ceiling,
            network=network,
            tag=tag,
        )
        sent = signed
        if sent_as is not None:
            sent = voucher(self.contract, chosen, *sent_as)
        return contracts.claim_body(sent, key.sign(signed).signature)

    def claim(
        self, payee: bytes, cumulative: int, ceiling: int = 0, *, value: int = TON // 20, source: bytes | None = None
    ) -> Applied:
        """A claim as its payee would send it."""
        body = self.signed_claim(payee, cumulative, ceiling)
        return self.send(source if source is not None else payee, body, value)

    @property
    def burnt(self) -> int:
        """What the last message burnt."""
        return self.received(NOWHERE)

    def fill(self, count: int, *, each: Entry | None = None) -> None:
        """As if `count` providers had been paid already."""
        line = each if each is not None else Entry(claimed_nano=TON // 10, ceiling_nano=TON // 10)
        self.put_data(account_data(self.state, {provider(index): line for index in range(count)}))


def account_data(state: SpendingAccount, lines: Mapping[bytes, Entry]) -> Cell:
    """A spending account's data cell with these lines."""
    dictionary = HashMap(
        256,
        value_serializer=lambda line, builder: builder.store_uint(line.claimed_nano, 64).store_uint(
            line.ceiling_nano, 64
        ),
    )
    for payee, line in lines.items():
        dictionary.set_int_key(int.from_bytes(payee, "big"), line)
    return (
        begin_cell()
        .store_address(address(state.owner))
        .store_uint(state.salt, 64)
        .store_bytes(state.voucher_key)
        .store_uint(state.epoch, 32)
        .store_uint(state.unlock_at_s, 32)
        .store_coins(state.bond_nano)
        .store_coins(sum(line.ceiling_nano - line.claimed_nano for line in lines.values()))
        .store_dict(dictionary.serialize() if lines else None)
        .end_cell()
    )


class StakeWorld(World):
    """One stake; with its first key and a deposit unless told otherwise."""

    DELAY_S = 7 * 86_400

    def __init__(
        self,
        tvm: Tvm,
        *,
        deposit: int = 10 * TON,
        code: Code | None = None,
        is_open: bool = True,
        delay_s: int = DELAY_S,
    ) -> None:
        self.code = code if code is not None else contracts.contract_code("stake")
        self.init = contracts.stake_init(address(OWNER), delay_s, code=self.code.cell)
        super().__init__(tvm, account_of(self.init))
        if is_open:
            self.set_key(O, init=self.init)
            self.send(OWNER, contracts.deposit_body(), deposit)

    @property
    def state(self) -> StakeState:
        """As a peer would decode it."""
        data = self.ledger.data(self.contract)
        assert data is not None
        return contracts.read_stake(
            self.contract,
            code_hash=self.code.hash,
            data=data,
            balance_nano=self.balance,
            at_s=self.ledger.now_s,
            code=self.code,
        )

    def set_key(
        self,
        key: SigningKey,
        *,
        source: bytes = OWNER,
        signed_by: SigningKey | None = None,
        network: Network = NETWORK,
        stake: bytes | None = None,
        init: object = None,
        value: int = TON // 10,
    ) -> Applied:
        """Register an operator key."""
        public = bytes(key.verify_key)
        proof = (signed_by or key).sign(
            contracts.possession_bytes(network.wire, stake if stake is not None else self.contract, public)
        )
        return self.send(source, contracts.set_key_body(key=public, proof=proof.signature), value, init=init)

    @property
    def stake_on_paper(self) -> int:
        """What the contract believes, whatever it really holds."""
        data = self.ledger.data(self.contract)
        assert data is not None
        return contracts.read_stake(
            self.contract, code_hash=self.code.hash, data=data, balance_nano=2**60, at_s=0, code=self.code
        ).staked_nano

    def signed(
        self,
        digest: bytes,
        *,
        key: SigningKey = O,
        slot: bytes = b"\x05" * 32,
        epoch: int | None = None,
        network: Network = NETWORK,
        stake: bytes | None = None,
    ) -> tuple[bytes, bytes]:
        """A digest and the operator's signature over the statement: the bytes that peers check."""
        statement = stake_statement(
            network,
            stake if stake is not None else self.contract,
            epoch if epoch is not None else self.state.epoch,
            slot,
            digest,
        )
        return digest, key.sign(statement).signature

    def slash(
        self,
        first: tuple[bytes, bytes],
        second: tuple[bytes, bytes],
        *,
        epoch: int | None = None,
        slot: bytes = b"\x05" * 32,
        source: bytes = STRANGER,
        value: int = TON // 10,
    ) -> Applied:
        """Show two statements."""
        chosen = epoch if epoch is not None else self.state.epoch
        return self.send(source, contracts.slash_body(epoch=chosen, slot=slot, first=first, second=second), value)


def invented_account(tvm: Tvm, data: Cell) -> World:
    """The right code with a state that no message led to."""
    init = state_init(contracts.contract_code("account").cell, data)
    world = World(tvm, account_of(init))
    world.send(OWNER, None, TON, init=init, bounce=False)
    return world


__all__ = [name for name in dir() if not name.startswith("_")] + ["MessageRefused"]
