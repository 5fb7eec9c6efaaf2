"""A local TON chain: the real TVM, true blocks, liteservers on loopback, a faucet. For development and tests.

Blocks come every second, or at once with every message and on demand. Time is ours: it runs with the wall clock and
can be moved forward. One lock orders everything that changes the chain; the TVM runs in worker threads.

Not here: the parts (`ledger`, `blocks`, `queries`, `liteserver`), anything that a real network would need.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from nacl.signing import SigningKey
from pytoniq_core import Cell

from ...errors import Unavailable
from ...types import NANO_PER_TON, Network
from ..ton.mnemonic import new_words, seed_of
from ..ton.wallet import WalletKey
from .blocks import BlockPair, Blocks, config_in_block_proof, validator_parameters
from .cells import merkle_proof, with_refs
from .faults import Faults
from .ledger import Applied, Ledger
from .liteserver import LiteServer
from .nodejs import NodeJs, Progress
from .queries import Queries
from .state import StateFile
from .tvm import PRICES, Tvm, configuration, prepare

T = TypeVar("T")

FAUCET_NANO: Final = 1_000_000 * NANO_PER_TON
LOOPBACK: Final = 0x7F000001
SERVERS_MAX: Final = 8
IDLE_BLOCK_TIME_S: Final = 20.0  # on demand too: a chain without new blocks looks dead to its clients
SKIPPED_MAX: Final = 10_000_000  # seqnos after a long pause


@dataclass(frozen=True, slots=True, kw_only=True)
class DevnetSettings:
    """How a devnet runs."""

    block_time_s: float | None = 1.0  # None: a block with every message, on demand, and when nothing happens for long
    prices: str = PRICES[0]
    network: Network = Network.DEVNET
    port: int = 0  # of the first server; 0: any
    servers: int = 1
    state_path: Path | None = None  # None: nothing is kept
    faucet_words: tuple[str, ...] | None = field(default=None, repr=False)  # None: new ones
    entropy: Callable[[int], bytes] = field(default=os.urandom, repr=False)


@asynccontextmanager
async def open_devnet(
    settings: DevnetSettings, *, cache: Path, progress: Progress = lambda _: None, tvm: Tvm | None = None
) -> AsyncIterator[Devnet]:
    """A running devnet. `cache` keeps the npm packages between runs; a `tvm` that is given is used by this devnet
    alone as long as it runs, and not closed.

    Raises `ConfigError` or `Unavailable` when Node or the packages cannot be had, `OSError` when the port is taken.
    """
    if tvm is None:
        # trio-typing, which libp2p brings along, shadows trio's own types with older ones
        node, modules = await trio.to_thread.run_sync(  # type: ignore[call-arg]
            partial(prepare, cache, progress=progress), abandon_on_cancel=True
        )
        make_tvm: Callable[[Cell], Tvm] = partial(_new_tvm, node, modules)
    else:
        make_tvm = partial(_same_tvm, tvm)
    file = StateFile(settings.state_path) if settings.state_path is not None else None
    try:
        devnet = await trio.to_thread.run_sync(partial(_begin, settings, file, make_tvm))
        try:
            async with trio.open_nursery() as nursery:
                devnet.nursery = nursery
                for index in range(settings.servers):
                    await devnet.add_server(port=settings.port if index == 0 else 0)
                nursery.start_soon(devnet.keep_time, settings.block_time_s or IDLE_BLOCK_TIME_S)
                yield devnet
                nursery.cancel_scope.cancel()
        finally:
            if tvm is None:
                devnet.tvm.close()
    finally:
        if file is not None:
            file.close()


class Devnet:
    """The chain, its clock and its servers. Made by `open_devnet`."""

    def __init__(self, *, blocks: Blocks, tvm: Tvm, words: tuple[str, ...], settings: DevnetSettings) -> None:
        self.blocks = blocks
        self.tvm = tvm
        self.words = words  # of the faucet
        self.faucet = WalletKey(seed_of(words), settings.network)
        self.settings = settings
        self.servers: list[LiteServer] = []
        self.nursery: trio.Nursery | None = None
        self.ahead_s = 0  # of the wall clock
        self.file: StateFile | None = None
        self.server_keys: list[SigningKey] = []
        self._lock = trio.Lock()
        self._pending: list[Applied] = []
        self._block_closed = trio.Event()

    # --- what tests and the CLI do ------------------------------------------------------------------------

    @property
    def is_on_demand(self) -> bool:
        """Blocks come with messages only."""
        return self.settings.block_time_s is None

    def global_config(self) -> dict[str, Any]:
        """The standard configuration file, for any TON client."""
        init = self.blocks.init
        assert init is not None
        block = {
            "workchain": -1,
            "shard": -(1 << 63),
            "seqno": init.master.seqno,
            "root_hash": _base64(init.master.root_hash),
            "file_hash": _base64(init.master.file_hash),
        }
        return {
            "@type": "config.global",
            "liteservers": [
                {
                    "ip": LOOPBACK,
                    "port": server.port,
                    "id": {"@type": "pub.ed25519", "key": _base64(bytes(server.key.verify_key))},
                }
                for server in self.servers
            ],
            "validator": {
                "@type": "validator.config.global",
                "zero_state": {
                    **block,
                    "seqno": 0,
                    "root_hash": _base64(bytes(32)),
                    "file_hash": _base64(bytes(32)),
                },
                "init_block": block,
            },
        }

    async def mint(self, account: bytes, amount_nano: int) -> None:
        """Coins from nowhere; in a block when this returns."""
        await self._change(lambda: self.blocks.ledger.mint(account, amount_nano))
        await self.close_block()

    async def submit(self, message: Cell) -> list[Applied]:
        """Deliver an external message. Raises `MessageRefused`."""
        done = await self._change(lambda: self.blocks.ledger.run(message))
        if self.is_on_demand:
            await self.close_block()
        return done

    async def advance(self, seconds: int) -> None:
        """Move the clock forward and close a block at the new time."""
        assert seconds >= 0
        self.ahead_s += seconds
        await self.close_block()

    async def close_block(self) -> BlockPair:
        """Close a block now."""
        async with self._lock:
            return await self._close_block()

    async def wait_block(self, seqno: int) -> None:
        """Returns when this block is there."""
        while self.blocks.seqno < seqno:
            await self._block_closed.wait()

    async def add_server(self, *, port: int = 0, faults: Faults | None = None) -> LiteServer:
        """One more liteserver that shows this chain, with a key and faults of its own."""
        return await self._serve(self.blocks, self.submit, port=port, faults=faults)

    async def fork(self) -> tuple[Blocks, LiteServer]:
        """A liteserver that shows a chain of its own from here on, signed by a validator of its own.

        It goes as far as a liar can: the true init block, and a key block "proof" with its own validator in it. What
        happens on the fork is up to the caller: `blocks.ledger` and `blocks.commit()`.
        """
        async with self._lock:
            true = self.blocks
            assert true.init is not None
            validator = SigningKey(self.settings.entropy(32))
            ledger = Ledger(self.tvm, now_s=true.ledger.now_s)
            ledger.lt, ledger.accounts = true.ledger.lt, dict(true.ledger.accounts)
            forged = configuration(
                network=self.settings.network,
                prices=self.settings.prices,
                extra=validator_parameters(bytes(validator.verify_key)),
            )
            blocks = Blocks(ledger, config=forged, validator=validator, network=true.network)
            blocks.seqno, blocks.init = true.seqno, true.init
            blocks.previous, blocks.states = dict(true.previous), dict(true.states)
            blocks.by_account = {account: list(rows) for account, rows in true.by_account.items()}
            blocks.commit()

        async def submit(message: Cell) -> list[Applied]:
            done = await trio.to_thread.run_sync(ledger.run, message)
            blocks.commit(done)
            return done

        server = await self._serve(blocks, submit, port=0, faults=None)
        server.queries.forged_config = _with_config(true.init.master_block, forged)
        return blocks, server

    async def keep_time(self, block_time_s: float) -> None:
        """Close blocks at this pace until cancelled."""
        while True:
            await trio.sleep(block_time_s)
            await self.close_block()

    # --- inside --------------------------------------------------------------------------------------------

    async def _change(self, change: Callable[[], list[Applied]]) -> list[Applied]:
        async with self._lock:
            self._set_clock()
            done = await trio.to_thread.run_sync(change)
            self._pending += done
        return done

    async def _close_block(self) -> BlockPair:
        self._set_clock()
        applied, self._pending = self._pending, []
        pair = self.blocks.commit(applied)
        if self.file is not None and (applied or pair is self.blocks.init):
            await trio.to_thread.run_sync(self._save, pair, applied)
        self._block_closed.set()
        self._block_closed = trio.Event()
        return pair

    def _set_clock(self) -> None:
        self.blocks.ledger.now_s = max(self.blocks.ledger.now_s, int(time.time()) + self.ahead_s)

    def _save(self, pair: BlockPair, applied: list[Applied]) -> None:
        assert self.file is not None
        changed: dict[bytes, list[tuple[int, Cell]]] = {}
        for done in applied:
            changed.setdefault(done.account, []).append((done.lt, done.cell))
        self.file.save(_facts(self, pair), pair, changed)

    async def _serve(
        self, blocks: Blocks, submit: Callable[[Cell], Any], *, port: int, faults: Faults | None
    ) -> LiteServer:
        if self.nursery is None or len(self.servers) >= SERVERS_MAX:
            raise Unavailable("no more liteservers can be opened on this devnet")
        token = trio.lowlevel.current_trio_token()
        queries = Queries(
            blocks, faults or Faults(), lambda message: trio.from_thread.run(submit, message, trio_token=token)
        )

        async def answer(query: bytes) -> bytes:
            return await trio.to_thread.run_sync(queries.answer, query)

        async def wait_block(seqno: int) -> None:
            if blocks is self.blocks:
                await self.wait_block(seqno)
            else:
                await trio.sleep(0.05)  # a fork grows when its maker says so

        while len(self.server_keys) <= len(self.servers):
            self.server_keys.append(SigningKey(self.settings.entropy(32)))
        key = self.server_keys[len(self.servers)]
        server = LiteServer(queries, key, entropy=self.settings.entropy, wait_block=wait_block, answer=answer)
        await self.nursery.start(server.serve, port)
        self.servers.append(server)
        return server


def _new_tvm(node: NodeJs, modules: Path, config: Cell) -> Tvm:
    return Tvm(node, modules, config=config)


def _same_tvm(tvm: Tvm, config: Cell) -> Tvm:
    tvm.set_config(config)
    return tvm


def _begin(settings: DevnetSettings, file: StateFile | None, make_tvm: Callable[[Cell], Tvm]) -> Devnet:
    """The chain as it was left, or a new one with its key block and faucet. Blocking."""
    saved = file.load() if file is not None else None
    if saved is not None:
        validator = SigningKey(bytes.fromhex(saved.facts["validator"]))
        words = tuple(saved.facts["faucet"])
    else:
        validator = SigningKey(settings.entropy(32))
        words = settings.faucet_words or new_words(settings.entropy)
    prices = saved.facts["prices"] if saved is not None else settings.prices
    config = configuration(
        network=settings.network, prices=prices, extra=validator_parameters(bytes(validator.verify_key))
    )
    tvm = make_tvm(config)
    start_s = saved.facts["genesis_s"] if saved is not None else int(time.time())
    ledger = Ledger(tvm, now_s=start_s)
    blocks = Blocks(ledger, config=config, validator=validator, network=settings.network)
    devnet = Devnet(blocks=blocks, tvm=tvm, words=words, settings=settings)
    applied = ledger.mint(devnet.faucet.account, FAUCET_NANO, init=devnet.faucet.init)
    pair = blocks.commit(applied)  # the key block, the same at every start of one state file
    devnet.file = file
    if saved is None:
        if file is not None:
            devnet._save(pair, applied)
        return devnet
    facts = saved.facts
    assert pair.master.root_hash.hex() == facts["init_root_hash"]
    devnet.server_keys = [SigningKey(bytes.fromhex(key)) for key in facts["servers"]]
    devnet.ahead_s = facts["ahead_s"]
    ledger.lt, ledger.now_s = facts["lt"], facts["now_s"]
    ledger.accounts, blocks.by_account = saved.accounts, saved.by_account
    blocks._accounts = None
    devnet._set_clock()
    pace = settings.block_time_s or 1.0
    lost = int((ledger.now_s - facts["now_s"]) / pace) + 2
    blocks.seqno = facts["seqno"] + min(lost, SKIPPED_MAX)
    blocks.commit()
    return devnet


def _facts(devnet: Devnet, pair: BlockPair) -> dict[str, Any]:
    blocks = devnet.blocks
    assert blocks.init is not None
    return {
        "validator": bytes(blocks.validator).hex(),
        "faucet": list(devnet.words),
        "prices": devnet.settings.prices,
        "genesis_s": blocks.init.now_s,
        "init_root_hash": blocks.init.master.root_hash.hex(),
        "servers": [bytes(key).hex() for key in devnet.server_keys],
        "ahead_s": devnet.ahead_s,
        "lt": blocks.ledger.lt,
        "now_s": pair.now_s,
        "seqno": pair.master.seqno,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _with_config(key_block: Cell, config: Cell) -> Cell:
    """A key block's "proof" with another configuration in it: right in form, wrong in its hash."""
    true = config_in_block_proof(key_block).refs[0]
    custom = true.refs[3].refs[-1]
    last = len(custom.refs) - 1
    forged_custom = with_refs(custom, lambda index, ref: config if index == last else ref)
    place = len(true.refs[3].refs) - 1
    extra = with_refs(true.refs[3], lambda index, ref: forged_custom if index == place else ref)
    return merkle_proof(with_refs(true, lambda index, ref: extra if index == 3 else ref))
