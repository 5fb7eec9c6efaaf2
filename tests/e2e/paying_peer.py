"""A provider, a client or a gateway in a process of its own that kills itself with -9 at a chosen step of its work.

    python -m tests.e2e.paying_peer provider|client|gateway FOLDER --chain FILE --bootstrap ADDRESS --point N …

A step is everything that another process or a disk could see: before and after each commit of payment records, and
before and after each frame of a session. Real roles, network, database, chain adapter and wallet; the engine is
scripted. What must hold after the death is written to `facts` in the folder, unbuffered, before it happens or as soon
as it is known: one JSON object a line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from nacl.signing import SigningKey

import cocoon.pump as pump
from cocoon.adapters.chain import open_chain
from cocoon.adapters.clock import SystemClock, entropy
from cocoon.adapters.network import open_network
from cocoon.adapters.signer import KeyFileSigner
from cocoon.adapters.store import SqliteStore
from cocoon.adapters.ton import contracts
from cocoon.adapters.ton.global_config import parse_global_config
from cocoon.adapters.ton.paying import payment_account, provider_payments
from cocoon.adapters.ton.reader import ChainReader
from cocoon.adapters.ton.sending import ChainWallet
from cocoon.adapters.ton.wallet import WalletKey
from cocoon.attest.policy import TrustPolicy
from cocoon.client import Client, ClientSettings, open_client
from cocoon.errors import CocoonError
from cocoon.gateway.server import open_gateway
from cocoon.gateway.settings import GatewaySettings
from cocoon.node import ProviderSettings, open_provider
from cocoon.pay.effects import Emit, Send, VoucherAccepted
from cocoon.types import NANO_PER_TON, Network, Prices, Secret, TrustLevel
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import CATALOGUE, MODEL, ask

TOKENS = 100
PRICE = 40 * NANO_PER_TON  # per million tokens: a hundred of them are worth several claims
API_KEY = b"a-key-of-the-kill-sweep"
V_SEED = Secret(hashlib.sha256(b"V of the kill sweep").digest())
VOUCHER_KEY = bytes(SigningKey(V_SEED.reveal()).verify_key)


def operator_wallet(point: int) -> WalletKey:
    """Gets the money and pays for the claims of one point of the sweep."""
    return WalletKey(Secret(hashlib.sha256(b"wallet %d" % point).digest()), Network.DEVNET)


def account_of_point(owner: bytes, point: int) -> bytes:
    """The spending account of one point of the sweep."""
    return contracts.account_address(owner, point)


class Facts:
    """The file of facts, and the steps."""

    def __init__(self, folder: Path, kill_at: int) -> None:
        self._file = os.open(folder / "facts", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._kill_at = kill_at
        self._steps = 0

    def tell(self, **fact: object) -> None:
        """In the kernel's hands when this returns: a kill of the process does not undo it."""
        os.write(self._file, json.dumps(fact).encode() + b"\n")

    def step(self, name: str) -> None:
        """One more; perhaps the last."""
        self._steps += 1
        if self._steps == self._kill_at:
            self.tell(killed=name, step=self._steps)
            os.kill(os.getpid(), signal.SIGKILL)

    def say(self, **answer: object) -> None:
        """To the test."""
        print(json.dumps({**answer, "steps": self._steps}), flush=True)


class SteppingStore:
    """The store, with a step before and after each commit of money."""

    def __init__(self, store: SqliteStore, facts: Facts) -> None:
        self._store = store
        self._facts = facts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def save_payments(self, records: Any) -> None:
        self._facts.step("before a commit")
        await self._store.save_payments(records)
        self._facts.step("after a commit")

    async def claim_slot(self, slot: bytes, digest: bytes) -> None:
        await self._store.claim_slot(slot, digest)
        self._facts.tell(slot=slot.hex(), digest=digest.hex())


class SteppingStream:
    """A session's stream, with a step before and after each frame."""

    def __init__(self, stream: Any, facts: Facts) -> None:
        self._stream = stream
        self._facts = facts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def send(self, frame: bytes) -> None:
        self._facts.step("before a frame")
        await self._stream.send(frame)
        self._facts.step("after a frame")


def step_streams(facts: Facts) -> None:
    """Every session of this process steps."""
    plain = pump.SessionPump.__init__

    def stepping(self: pump.SessionPump, stream: Any, *rest: Any) -> None:
        plain(self, SteppingStream(stream, facts), *rest)

    pump.SessionPump.__init__ = stepping  # type: ignore[method-assign]


@asynccontextmanager
async def world(args: argparse.Namespace, facts: Facts) -> AsyncIterator[tuple[ChainReader, Any, Any]]:
    """Chain, store and network of one process."""
    config = parse_global_config(args.chain.read_text())
    step_streams(facts)
    async with (
        open_chain(config, network=Network.DEVNET, trust_level=0, now=SystemClock().now) as chain,
        await SqliteStore.open(args.folder / "cocoon.sqlite", clock=SystemClock(), entropy=entropy) as store,
        open_network(
            seed=Secret(entropy(32)),
            listen=("/ip4/127.0.0.1/tcp/0",) if args.role == "provider" else (),
            bootstrap=(args.bootstrap,),
            serves_dht=args.role == "provider",
            allow_private_addresses=True,
        ) as network,
    ):
        await network.wait_connected(timeout_s=60)
        yield chain, SteppingStore(store, facts), network


async def provide(args: argparse.Namespace, facts: Facts) -> None:
    """Serve until killed. `claim` on standard input claims everything."""
    async with world(args, facts) as (chain, store, network):
        wallet = operator_wallet(args.point)
        signer = KeyFileSigner(Secret(hashlib.sha256(b"operator").digest()), network=Network.DEVNET, store=store)
        async with open_provider(
            network,
            ScriptedEngine(" ".join(f"w{n}" for n in range(TOKENS)), token_s=0.005),
            MODEL,
            signer,
            store,
            ProviderSettings(
                network_id=Network.DEVNET,
                prices=Prices(input_nano=PRICE // 4, cached_input_nano=PRICE // 4, output_nano=PRICE),
            ),
            clock=SystemClock(),
            entropy=entropy,
            payments=provider_payments(
                chain, payout=wallet.account, wallet=ChainWallet(wallet, chain), claim_cost_nano=20_000
            ),
        ) as role:
            earnings = role._earnings
            assert earnings is not None
            told, released, ended = earnings._told, earnings.released, earnings.ended

            def tell(effect: Send | Emit) -> None:
                if isinstance(effect, Emit) and isinstance(effect.event, VoucherAccepted):
                    facts.tell(acknowledged=effect.event.paid_nano)
                told(effect)

            def due() -> None:
                ledger = earnings.payee.ledger(args.account)
                if ledger is not None:
                    facts.tell(due=ledger.due_nano, unpaid=ledger.unpaid.count, window=ledger.window_tokens)

            def release(*positional: Any, **named: Any) -> None:
                released(*positional, **named)
                due()

            def end(*positional: Any, **named: Any) -> None:
                ended(*positional, **named)
                due()

            earnings._drive._told = tell
            earnings.released = release  # type: ignore[method-assign]
            earnings.ended = end  # type: ignore[method-assign]
            await role.wait_offered()
            facts.say(event="ready")
            async for command in lines():
                if command == "claim":
                    role.claim_all()
                    facts.say(event="claiming")


@asynccontextmanager
async def client_role(args: argparse.Namespace, facts: Facts) -> AsyncIterator[Client]:
    """A client that pays, and tells every voucher before it goes."""
    async with world(args, facts) as (chain, store, network):
        settings = ClientSettings(
            policy=TrustPolicy(level=TrustLevel.OPEN, network=Network.DEVNET),
            payment=payment_account(chain, account=args.account, voucher_seed=V_SEED, spend_max_nano=NANO_PER_TON),
        )
        async with open_client(
            network, settings, catalogue=CATALOGUE, clock=SystemClock(), entropy=entropy, store=store
        ) as client:
            spending = client.spending
            assert spending is not None
            told = spending._told

            def tell(effect: Send | Emit) -> None:
                if isinstance(effect, Send):
                    facts.tell(sent=effect.voucher.voucher.cumulative_nano)
                told(effect)

            spending._drive._told = tell
            yield client


async def consume(args: argparse.Namespace, facts: Facts) -> None:
    """`ask` on standard input asks; the answer is told."""
    async with client_role(args, facts) as client:
        facts.say(event="ready")
        async for _ in lines():
            came, cost = 0, 0
            try:
                async with client.generate(
                    "chat.completions", ask(max_tokens=TOKENS), spend_max_nano=NANO_PER_TON // 10
                ) as reply:
                    async for delta in reply:
                        came += len(delta.token_ids)
                        cost = reply.cost_nano
                        facts.tell(tokens=came, cost=cost)
                    cost = reply.summary.cost_nano
                facts.say(event="done", tokens=came, cost=cost)
            except CocoonError as error:
                facts.say(event="failed", tokens=came, cost=cost, error=error.code, text=str(error)[:200])


async def gateway(args: argparse.Namespace, facts: Facts) -> None:
    """The same behind HTTP."""
    async with client_role(args, facts) as client:
        settings = GatewaySettings(
            api_keys=(Secret(API_KEY),),
            spend_max_request_nano=NANO_PER_TON // 10,
            spend_max_day_nano=NANO_PER_TON,
            port=0,
            spend_file=args.folder / "spent.json",
        )
        async with open_gateway(client, settings, SystemClock()) as handle:
            facts.say(event="ready", base_url=handle.base_url)
            async for _ in lines():
                pass


async def lines() -> AsyncIterator[str]:
    """Commands, until the test closes standard input."""
    reader = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    rest = b""
    async for data in reader:
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line.decode()


ROLES = {"provider": provide, "client": consume, "gateway": gateway}


def main() -> None:
    """See the file's head."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chain", type=Path, required=True)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--point", type=int, required=True)
    parser.add_argument("--owner", type=bytes.fromhex, required=True)
    parser.add_argument("--kill", type=int, default=0)
    args = parser.parse_args()
    args.account = account_of_point(args.owner, args.point)
    trio.run(ROLES[args.role], args, Facts(args.folder, args.kill))


if __name__ == "__main__":
    main()
