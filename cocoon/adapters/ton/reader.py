"""The `Chain` port over several liteservers, none of which is believed.

At trust level 0 every block is proven from a key block by validators' signatures. At level 1 a block counts when at
least two servers name the same one; a contradiction stops everything. Either way the block must be recent and never
older than one seen before, and states, absence and history are proven from it. Which server answers does not matter,
so a server that fails or lies is passed over for a while.

Not here: connections (`cocoon.adapters.chain`), proofs (`proofs`), our contracts (`contracts`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import trio

from ...errors import ChainDisagrees, CocoonError, ConfigError, ProofInvalid, Unavailable
from ...ports.chain import ChainTransaction, Head, SpendingAccount, StakeState, WalletState
from ...types import SECOND_NS, Network
from . import contracts
from .proofs import (
    MASTERCHAIN,
    WHOLE_SHARD,
    BlockRef,
    ProvenAccount,
    check_account,
    check_header,
    check_history,
    check_links,
    part_of,
)
from .wallet import read_wallet

T = TypeVar("T")

AGREEING_MIN: Final = 2  # servers, at trust level 1
BLOCK_AGE_MAX_S: Final = 60
CLOCK_AHEAD_MAX_S: Final = 60  # of ours by the chain's; a devnet's clock may be moved
HEAD_CACHE_NS: Final = SECOND_NS // 2
PROOF_ROUNDS_MAX: Final = 4_096  # partial proofs of 16 links from the init block: years of key blocks
SPURN_NS: Final = 60 * SECOND_NS  # how long a server that failed or lied is asked last
TRANSACTIONS_PER_QUERY: Final = 16
HISTORY_MAX: Final = 4_096
QUORUM_WAIT_S: Final = 2.0  # for slower servers once enough have answered


class Link(Protocol):
    """One liteserver. `request` raises `Unavailable` or `ServerRefused`."""

    @property
    def name(self) -> str: ...

    async def request(self, query: str, values: Mapping[str, Any]) -> dict[str, Any]: ...


class ServerRefused(Unavailable):
    """A liteserver answered with an error of its own."""

    def __init__(self, name: str, code: int, text: str) -> None:
        super().__init__(f"liteserver {name} answered error {code}: {text[:160]}")
        self.server_code = code


@dataclass(slots=True)
class _Server:
    link: Link
    spurned_until_ns: int = 0
    last_error: str = ""


@dataclass(slots=True)
class _Trusted:
    block: BlockRef
    head: Head
    at_ns: int


@dataclass(slots=True, kw_only=True)
class ChainReader:
    """Implements `cocoon.ports.chain.Chain`. `now` is wall time in ns and never runs backwards."""

    network: Network
    links: tuple[Link, ...]
    init_block: BlockRef
    trust_level: int
    now: Callable[[], int]
    key_block_found: Callable[[BlockRef], None] = lambda _: None
    _servers: list[_Server] = field(init=False)
    _trusted: _Trusted | None = field(init=False, default=None)
    _lock: trio.Lock = field(init=False, default_factory=trio.Lock)

    def __post_init__(self) -> None:
        if self.trust_level not in (0, 1):
            raise ConfigError("the trust level is 0 or 1")
        if self.trust_level == 1 and len(self.links) < AGREEING_MIN:
            raise ConfigError(
                "at trust level 1 two liteservers must agree, and only one is configured",
                advice="Name another liteserver, or use trust level 0.",
            )
        self._servers = [_Server(link) for link in self.links]

    # --- the port ------------------------------------------------------------------------------------------

    async def head(self) -> Head:
        """As the port says."""
        return (await self._head()).head

    async def spending_account(self, account: bytes) -> SpendingAccount | None:
        """As the port says."""
        found, head = await self._account(account)
        if found is None or found.code is None or found.data is None:
            return None
        return contracts.read_account(
            account,
            code_hash=bytes(found.code.hash),
            data=found.data,
            balance_nano=found.balance_nano,
            at_s=head.time_s,
        )

    async def stake(self, stake: bytes) -> StakeState | None:
        """As the port says."""
        found, head = await self._account(stake)
        if found is None or found.code is None or found.data is None:
            return None
        return contracts.read_stake(
            stake,
            code_hash=bytes(found.code.hash),
            data=found.data,
            balance_nano=found.balance_nano,
            at_s=head.time_s,
        )

    async def wallet(self, account: bytes) -> WalletState:
        """As the port says."""
        found, head = await self._account(account)
        seqno, is_deployed = 0, False
        if found is not None and found.code is not None and found.data is not None:
            seqno, is_deployed = read_wallet(code_hash=bytes(found.code.hash), data=found.data), True
        return WalletState(
            account=account,
            balance_nano=0 if found is None else found.balance_nano,
            seqno=seqno,
            is_deployed=is_deployed,
            at_s=head.time_s,
        )

    async def transactions(self, account: bytes, *, after_lt: int, count_max: int) -> tuple[ChainTransaction, ...]:
        """As the port says."""
        found, _ = await self._account(account)
        if found is None:
            return ()
        lt, last_hash = found.last_lt, found.last_hash
        result: list[ChainTransaction] = []
        while lt > after_lt and len(result) < min(count_max, HISTORY_MAX):

            async def page(link: Link, lt: int = lt, last_hash: bytes = last_hash) -> list[Any]:
                answer = await link.request(
                    "getTransactions",
                    {
                        "count": TRANSACTIONS_PER_QUERY,
                        "account": {"workchain": 0, "id": account.hex()},
                        "lt": lt,
                        "hash": last_hash.hex(),
                    },
                )
                rows = check_history(part_of(answer, "transactions"), last_hash)
                if not rows:
                    raise ProofInvalid("an empty history where the state names a transaction")
                return rows

            rows = await self._ask(page)
            result += [_transaction(account, row) for row in rows if row.lt > after_lt]
            lt, last_hash = int(rows[-1].prev_trans_lt), bytes(rows[-1].prev_trans_hash)
        return tuple(result[:count_max])

    async def submit(self, message: bytes) -> None:
        """As the port says. Raises `Unavailable` when no server takes it."""
        errors: list[CocoonError] = []

        async def offer(server: _Server) -> None:
            try:
                await server.link.request("sendMessage", {"body": message})
            except CocoonError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for server in self._servers:
                nursery.start_soon(offer, server)
        if len(errors) == len(self._servers):
            raise errors[0]

    # --- blocks --------------------------------------------------------------------------------------------

    async def _head(self) -> _Trusted:
        async with self._lock:
            known = self._trusted
            if known is not None and self.now() - known.at_ns < HEAD_CACHE_NS:
                return known
            block = await (self._proven_head() if self.trust_level == 0 else self._agreed_head())
            if known is not None and block.seqno < known.block.seqno:
                raise Unavailable(f"the chain's servers fell back from block {known.block.seqno} to {block.seqno}")
            header = await self._ask(lambda link: _header(link, block))
            self._check_age(header.time_s)
            head = Head(seqno=block.seqno, root_hash=block.root_hash, time_s=header.time_s)
            self._trusted = _Trusted(block=block, head=head, at_ns=self.now())
            return self._trusted

    def _check_age(self, time_s: int) -> None:
        now_s = self.now() // SECOND_NS
        if now_s - time_s > BLOCK_AGE_MAX_S:
            raise Unavailable(
                f"the newest block that the chain's servers show is {now_s - time_s} s old",
                advice="Try again, or name other liteservers; check this machine's clock.",
            )
        if time_s - now_s > CLOCK_AHEAD_MAX_S and self.network is not Network.DEVNET:
            raise Unavailable("the chain's clock is far ahead of this machine's", advice="Check this machine's clock.")

    async def _agreed_head(self) -> BlockRef:
        """The newest block that at least two servers name; none may name another with its number."""
        newest = await self._newest_of_all()
        if len(newest) < AGREEING_MIN:
            raise Unavailable(
                f"{len(newest)} of {len(self._servers)} liteservers answered, and two must agree"
                + "".join(f"; {server.link.name}: {server.last_error}" for server in self._servers if server.last_error)
            )
        numbers = sorted((block.seqno for _, block in newest), reverse=True)[AGREEING_MIN - 1 :]
        for number in dict.fromkeys(numbers):
            named = await self._named(newest, number)
            if len(set(named.values())) > 1:
                who = ", ".join(f"{name} names {block.root_hash.hex()[:8]}…" for name, block in sorted(named.items()))
                raise ChainDisagrees(f"liteservers contradict one another about block {number}: {who}")
            if len(named) >= AGREEING_MIN:
                return next(iter(named.values()))
        raise Unavailable(f"fewer than two liteservers confirm block {numbers[-1]}")

    async def _named(self, newest: list[tuple[_Server, BlockRef]], number: int) -> dict[str, BlockRef]:
        """Which block each server calls by this number, of those that should have it."""
        named: dict[str, BlockRef] = {}

        async def look_up(server: _Server, block: BlockRef) -> None:
            try:
                named[server.link.name] = block if block.seqno == number else await _lookup(server.link, number)
            except CocoonError as error:
                self._spurn(server, error)

        async with trio.open_nursery() as nursery:
            for server, block in newest:
                if block.seqno >= number:
                    nursery.start_soon(look_up, server, block)
        return named

    async def _proven_head(self) -> BlockRef:
        """The newest block that any server can prove."""
        newest = await self._newest_of_all()
        failures: list[CocoonError] = []
        for server, block in sorted(newest, key=lambda pair: -pair[1].seqno):
            try:
                await self._prove(server.link, block)
            except CocoonError as error:
                self._spurn(server, error)
                failures.append(_with_name(server, error))
            else:
                return block
        if failures:
            raise failures[0]
        raise Unavailable(
            "no liteserver answers" + "".join(f"; {server.link.name}: {server.last_error}" for server in self._servers)
        )

    async def _prove(self, link: Link, target: BlockRef) -> None:
        known = self.init_block
        if self._trusted is not None and target == self._trusted.block:
            return
        for _ in range(PROOF_ROUNDS_MAX):
            if known == target:
                return
            answer = await link.request(
                "getBlockProof", {"known_block": known.to_tl(), "mode": 1, "target_block": target.to_tl()}
            )
            at, newest_key = check_links(answer, known, target)
            if newest_key != self.init_block:
                self.init_block = newest_key
                self.key_block_found(newest_key)
            if at == target:
                return
            if newest_key == known:
                raise ProofInvalid("a block proof that leads nowhere")
            known = newest_key
        raise ProofInvalid("a block proof without an end")

    async def _newest_of_all(self) -> list[tuple[_Server, BlockRef]]:
        """What each server that answers calls the newest block."""
        found: list[tuple[_Server, BlockRef]] = []
        needed = 1 if self.trust_level == 0 else AGREEING_MIN

        async def ask(server: _Server, scope: trio.CancelScope) -> None:
            try:
                answer = await server.link.request("getMasterchainInfo", {})
                block = BlockRef.from_tl(part_of(answer, "last"))
                if block.workchain != MASTERCHAIN or block.shard != WHOLE_SHARD:
                    raise ProofInvalid("a newest block that is not of the masterchain")
            except CocoonError as error:
                self._spurn(server, error)
                return
            found.append((server, block))
            if len(found) >= needed:
                scope.deadline = min(scope.deadline, trio.current_time() + QUORUM_WAIT_S)

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for server in self._servers:
                    nursery.start_soon(ask, server, scope)
        return found

    # --- asking one after the other ------------------------------------------------------------------------

    async def _account(self, account: bytes) -> tuple[ProvenAccount | None, Head]:
        trusted = await self._head()

        async def ask(link: Link) -> ProvenAccount | None:
            answer = await link.request(
                "getAccountState",
                {"id": trusted.block.to_tl(), "account": {"workchain": 0, "id": account.hex()}},
            )
            return check_account(answer, trusted.block, account)

        return await self._ask(ask), trusted.head

    async def _ask(self, question: Callable[[Link], Awaitable[T]]) -> T:
        """The first answer that proves itself. Raises what the last server failed with; a lie before anything else."""
        failures: list[CocoonError] = []
        for server in sorted(self._servers, key=lambda server: server.spurned_until_ns > self.now()):
            try:
                return await question(server.link)
            except (Unavailable, ProofInvalid) as error:
                self._spurn(server, error)
                failures.append(_with_name(server, error))
        raise next((error for error in failures if isinstance(error, ProofInvalid)), failures[-1])

    def _spurn(self, server: _Server, error: CocoonError) -> None:
        server.spurned_until_ns = self.now() + SPURN_NS
        server.last_error = str(error)


def _with_name(server: _Server, error: CocoonError) -> CocoonError:
    """Who it was that sent what proves nothing."""
    if not isinstance(error, ProofInvalid):
        return error
    named = ProofInvalid(
        f"liteserver {server.link.name} sent what does not prove itself: {error}",
        advice="Nothing of it was believed. Remove that server from the chain's configuration.",
    )
    named.__cause__ = error
    return named


async def _header(link: Link, block: BlockRef) -> Any:
    answer = await link.request("getBlockHeader", {"id": block.to_tl(), "mode": 0})
    return check_header(part_of(answer, "header_proof"), block)


async def _lookup(link: Link, seqno: int) -> BlockRef:
    answer = await link.request(
        "lookupBlock",
        {"mode": 1, "id": {"workchain": MASTERCHAIN, "shard": WHOLE_SHARD, "seqno": seqno}, "lt": None, "utime": None},
    )
    block = BlockRef.from_tl(part_of(answer, "id"))
    if block.seqno != seqno:
        raise ProofInvalid("a block that was not asked for")
    check_header(part_of(answer, "header_proof"), block)
    return block


def _transaction(account: bytes, row: Any) -> ChainTransaction:
    """From pytoniq-core's. Its hash is checked, so its shape is the chain's."""
    message = row.in_msg
    info = None if message is None else message.info
    is_internal = message is not None and bool(message.is_internal)
    compute = getattr(row.description, "compute_ph", None)
    action = getattr(row.description, "action", None)
    exit_code = getattr(compute, "exit_code", None)
    skipped = 0 if action is None else int(action.skipped_actions)
    return ChainTransaction(
        account=account,
        lt=int(row.lt),
        hash=bytes(row.cell.hash),
        time_s=int(row.now),
        source=bytes(info.src.hash_part) if is_internal and info is not None and info.src is not None else None,
        value_nano=int(info.value.grams) if is_internal and info is not None else 0,
        body_hash=bytes(32) if message is None else bytes(message.body.hash),
        body=b"" if message is None else message.body.to_boc(),
        exit_code=exit_code,
        is_done=exit_code in (0, 1) and (action is None or int(action.result_code) == 0),
        is_bounced=bool(is_internal and info is not None and info.bounced),
        skipped_transfers=skipped,
        fees_nano=int(row.total_fees.grams),
    )
