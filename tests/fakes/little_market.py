"""A whole market in one process: real roles and machines over the memory network; only engines are scripted.

With `payout=` a provider is paid, with `account=` a client pays: over one `LedgerChain`, the chain port's fake.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from cocoon.adapters.network import PeerNetwork
from cocoon.adapters.signer import KeyFileSigner
from cocoon.adapters.store_memory import MemoryStore
from cocoon.attest.enclave import Enclave
from cocoon.attest.policy import TrustPolicy
from cocoon.client import Client, ClientSettings, PaymentAccount, open_client
from cocoon.market.catalogue import Catalogue, ModelRef
from cocoon.node import (
    PlainNode,
    ProviderPayments,
    ProviderRole,
    ProviderSettings,
    open_plain_node,
    open_provider,
)
from cocoon.ports import Clock, Store
from cocoon.types import Network, Prices, Secret, TrustLevel
from p2p import NodeSettings
from p2p.interface import DhtMode
from p2p.testing import MemoryNetwork
from tests.fakes.engine import ScriptedEngine
from tests.fakes.ledger_chain import LedgerChain, LedgerWallet, claim_transfers
from tests.fakes.market import Key
from tests.fakes.pay import RULES, TON, FakeAccount, V

MODEL = ModelRef(name="test-model", digest=hashlib.sha256(b"test-model").digest())
CATALOGUE = Catalogue([MODEL])
START_NS = 1_800_000_000 * 10**9


class VirtualClock:
    """Trio's own clock as wall time, so that a mock clock moves everything."""

    def now(self) -> int:
        return START_NS + int(trio.current_time() * 1e9)


class SeededEntropy:
    """Repeatable, different at every call."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._count = 0

    def __call__(self, count: int, /) -> bytes:
        self._count += 1
        return hashlib.shake_256(self._seed + self._count.to_bytes(8, "big")).digest(count)


@dataclass
class Provider:
    role: ProviderRole
    engine: ScriptedEngine
    network: PeerNetwork
    store: MemoryStore
    wallet: LedgerWallet


class LittleMarket:
    """Made by `open_market`."""

    def __init__(self, nursery: trio.Nursery, wires: MemoryNetwork, clock: Clock) -> None:
        self._nursery = nursery
        self.wires = wires
        self.clock = clock
        self.chain = LedgerChain(self.clock)
        self._scopes: dict[int, trio.CancelScope] = {}
        self.plain: PlainNode | None = None
        self.bootstrap: tuple[str, ...] = ()

    async def _hold(self, manager: AbstractAsyncContextManager[Any]) -> Any:
        """Enter it in a task of its own, so that any task of a scenario may add to the market."""

        async def hold(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            with trio.CancelScope() as scope:
                async with manager as value:
                    self._scopes[id(value)] = scope
                    task_status.started(value)
                    await trio.sleep_forever()

        return await self._nursery.start(hold)

    def kill(self, held: Any) -> None:
        """End a role or a network that is held, without a word to anybody."""
        self._scopes[id(held)].cancel()

    def open_account(self, salt: int = 1, **state: Any) -> FakeAccount:
        """An account of 5 TON, 1 of them bond, unless told otherwise."""
        account = FakeAccount(salt=salt, epoch=START_NS // 10**9 - 1_000, **state)
        self.chain.accounts[account.account] = account
        return account

    def payment(self, account: FakeAccount, *, key: Key = V, **settings: Any) -> PaymentAccount:
        """What a client needs to pay from it."""
        return PaymentAccount(
            **{
                "account": account.account,
                "voucher_key": key.public,
                "sign": key.sign,
                "chain": self.chain,
                "rules": RULES,
                "spend_max_nano": 4 * TON,
                **settings,
            }
        )

    async def network(self, name: str, *, listens: bool = True) -> PeerNetwork:
        seed = hashlib.sha256(name.encode()).digest()
        settings = NodeSettings(
            listen=("/ip4/10.0.0.1/tcp/0",) if listens else (),
            bootstrap=self.bootstrap,
            dht_mode=DhtMode.SERVER if listens else DhtMode.CLIENT,
            allow_private_addresses=True,
        )
        node = await self._hold(self.wires.open_node(settings, key=seed))
        return PeerNetwork(node, seed=Secret(seed))

    async def add_plain(self) -> PlainNode:
        network = await self.network("plain")
        self.plain = await self._hold(open_plain_node(network, network_id=Network.DEVNET, clock=self.clock))
        self.bootstrap = network.addresses()
        return self.plain

    async def add_provider(
        self,
        name: str,
        engine: ScriptedEngine | None = None,
        *,
        output_nano: int = 0,
        enclave: Enclave | None = None,
        payout: bytes | None = None,
        claim_cost_nano: int = 1_000_000,
        payments: ProviderPayments | None = None,
        store: MemoryStore | None = None,
        **settings: Any,
    ) -> Provider:
        engine = engine or ScriptedEngine()
        network = await self.network(name)
        entropy = SeededEntropy(name)
        store = store or MemoryStore(clock=self.clock, entropy=entropy)
        wallet = LedgerWallet(self.chain)
        if payout is not None:
            payments = ProviderPayments(
                payout=payout,
                chain=self.chain,
                wallet=wallet,
                claim_transfers=claim_transfers,
                rules=RULES,
                claim_cost_nano=claim_cost_nano,
            )
        signer = KeyFileSigner(
            Secret(hashlib.sha256(b"O" + name.encode()).digest()), network=Network.DEVNET, store=store
        )
        role = await self._hold(
            open_provider(
                network,
                engine,
                MODEL,
                signer,
                store,
                ProviderSettings(
                    network_id=Network.DEVNET,
                    prices=Prices(input_nano=output_nano // 4, cached_input_nano=0, output_nano=output_nano),
                    **settings,
                ),
                clock=self.clock,
                entropy=entropy,
                enclave=enclave,
                payments=payments,
            )
        )
        await role.wait_offered()
        return Provider(role=role, engine=engine, network=network, store=store, wallet=wallet)

    async def add_client(
        self,
        name: str = "client",
        *,
        trust_minimum: TrustLevel = TrustLevel.OPEN,
        policy: TrustPolicy | None = None,
        store: Store | None = None,
        account: FakeAccount | None = None,
        **settings: Any,
    ) -> Client:
        if account is not None:
            settings["payment"] = self.payment(account)
        network = await self.network(name, listens=False)
        entropy = SeededEntropy(name)
        return await self._hold(
            open_client(
                network,
                ClientSettings(
                    policy=policy or TrustPolicy(level=trust_minimum, network=Network.DEVNET),
                    verifies_in_threads=False,
                    **settings,
                ),
                catalogue=CATALOGUE,
                clock=self.clock,
                entropy=entropy,
                store=store or MemoryStore(clock=self.clock, entropy=entropy),
            )
        )


@asynccontextmanager
async def open_market(*, delay_s: float = 0.005, clock: Clock | None = None) -> AsyncIterator[LittleMarket]:
    """A plain node to meet at; add providers and clients. With a real `clock` it is for a real chain."""
    async with trio.open_nursery() as nursery:
        market = LittleMarket(nursery, MemoryNetwork(delay_s=delay_s), clock or VirtualClock())
        await market.add_plain()
        yield market
        nursery.cancel_scope.cancel()


def ask(words: str = "say something", **fields: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": MODEL.name, "messages": [{"role": "user", "content": words}], **fields}
