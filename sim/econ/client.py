"""A client of the simulated market: offer book, history, purse and sessions are the real machines.

    client = ClientPeer(env, number, chain, setup, market=…)
    client.start(); client.buy(order)

A `Link` is one session with one provider, opened when it is first wanted and left when idle. What a purchase does with
links is in `purchase`; how a provider is chosen, in `rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from cocoon.client.spending import OF_THE_REQUEST, refusal_of
from cocoon.market.addresses import peer_id_of_key
from cocoon.market.book import ListedOffer, OfferBook
from cocoon.market.history import History
from cocoon.pay.payer import PayerTerms
from cocoon.pay.voucher import SignedVoucher, parse_open_voucher
from cocoon.serve.client_session import ClientSession
from cocoon.serve.effects import Disconnect, Effects, Emit, Send
from cocoon.serve.events import EvidenceReceived, OutputReceived, RequestRefused, ReservationWanted
from cocoon.serve.reasons import Reason
from cocoon.serve.sealing import SUITE_X25519
from cocoon.types import MILLISECOND_NS, NANO_PER_TON, SECOND_NS, PeerId
from sim.econ.crypto import Key
from sim.econ.env import Conn, Env, Syn, Wake
from sim.econ.money import Counting, Purse
from sim.econ.provider import ProviderPeer

if TYPE_CHECKING:
    from sim.chain import SimChain
    from sim.econ.orders import Order
    from sim.econ.purchase import Purchase
    from sim.econ.rules import Rule

DIAL_ROUND_TRIPS: Final = 3  # TCP, Noise, and the stream: the muxer opens with the handshake
DIAL_TIMEOUT_NS: Final = 5 * SECOND_NS
IDLE_NS: Final = 45 * SECOND_NS  # a session without a request is left after so long
MARK_NS: Final = 3_600 * SECOND_NS  # a provider caught in a lie is left for an hour
LINKS_WAITING_MAX: Final = 256  # requests that wait for one session to open


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSetup:
    """What one client is, and how patient."""

    name: str
    group: str = ""
    deposit_nano: int = 10 * NANO_PER_TON
    bond_nano: int = NANO_PER_TON
    attempts_max: int = 4
    sheds_max: int = 4  # refusals before it is content to queue
    shed_wait_ms: int = 1_000  # how long a wait it takes before that
    queue_wait_ms: int = 30_000
    first_token_ms: int = 15_000  # after it was accepted
    stall_ms: int = 8_000
    hedge_ms: int = 1_500  # without a first token by then, another provider is asked as well; 0: never
    hedge_share: float = 0.03  # of spending, at most
    notices: float = 0.25  # the chance to see that an answer is another model's
    is_honest: bool = True


class Events(Protocol):
    """Who hears of one request on a link: a `Try`."""

    def heard(self, event: Any) -> None:
        """An event of the client's machine about this request."""
        ...


class Link:
    """One session with one provider."""

    def __init__(self, client: ClientPeer, provider: ProviderPeer) -> None:
        self.client = client
        self.provider = provider
        self.payout = provider.payout
        self.is_dead = False
        self.is_ready = False
        self.is_spoilt = False
        self.opened_ns = client.env.now
        self._waiting: list[Callable[[Link | None], None]] = []
        self._requests: dict[int, Events] = {}
        self._syns = 0
        self._idle_since_ns = client.env.now
        env = client.env
        self.conn = Conn(env, client.number, provider.number, patience_ns=20 * SECOND_NS)
        self.conn.listen(client.number, self._received, self.broken)
        self.machine = ClientSession(
            network=env.network,
            client=client.peer,
            peer=provider.key.public,
            crypto=env.crypto,
            entropy=client._entropy,
            verify=env.memo.verify,
            due=client.due,
            now=client.now,
        )
        self.wake = Wake(env.kernel, self.machine.deadline, self._on_time)
        self.wake.offset_ns = client.clock_ahead_ns
        provider.accept(self.conn, client.peer)
        self.conn.send(client.number, Syn(0), 40)
        env.kernel.after(DIAL_TIMEOUT_NS, self._dial_timeout)

    @property
    def requests_open(self) -> int:
        """Requests that somebody here waits for."""
        return len(self._requests)

    def when_ready(self, then: Callable[[Link | None], None]) -> None:
        """`then(link)` once requests may be opened; `then(None)` when that fails."""
        if self.is_dead or len(self._waiting) >= LINKS_WAITING_MAX:
            then(None)
        elif self.is_ready:
            then(self)
        else:
            self._waiting.append(then)

    def open(self, listener: Events, **asked: Any) -> int:
        """One request; its id. Raises what `ClientSession.open` raises."""
        voucher = parse_open_voucher(asked["voucher"])
        if voucher is not None:
            self.client.on_left(self.payout, voucher)
        request_id, effects = self.machine.open(now=self.client.now, **asked)
        self._requests[request_id] = listener
        self.did(effects)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Stop it; its ending still comes."""
        if not self.is_dead:
            self.did(self.machine.cancel(request_id, now=self.client.now))

    def pay(self, voucher: SignedVoucher) -> None:
        """It rides along."""
        if self.is_ready and not self.is_dead:
            self.client.on_left(self.payout, voucher)
            self.did(self.machine.pay(voucher.voucher.encode(), voucher.signature))

    # --- the stream --------------------------------------------------------------------------------------

    def _received(self, message: Any) -> None:
        if self.is_dead:
            return
        if message is None:
            self.broken()
        elif isinstance(message, Syn):
            self._syns += 1
            if self._syns < DIAL_ROUND_TRIPS:
                self.conn.send(self.client.number, Syn(self._syns), 40)
            else:
                self.did(self.machine.start(now=self.client.now))
        else:
            self.did(self.machine.receive(message, now=self.client.now))

    def _on_time(self) -> None:
        self.did(self.machine.on_time(now=self.client.now))

    def did(self, effects: Effects) -> None:
        """Perform what the machine asked for."""
        for effect in effects:
            match effect:
                case Send():
                    self.conn.send(self.client.number, effect.message, len(effect.data))
                case Emit(event=event):
                    self._on_event(event)
                case Disconnect():
                    self._hang_up()
        if not self.is_dead:
            self.wake.look()

    def _on_event(self, event: Any) -> None:
        if isinstance(event, EvidenceReceived):
            self._judge(event)
            return
        if isinstance(event, ReservationWanted):
            purse = self.client.purse
            purse.did(purse.payer.ceiling_wanted(self.payout, event.ceiling_nano, now=purse.now))
            return
        if isinstance(event, RequestRefused) and event.reason == Reason.PAYMENT_REQUIRED.value:
            refusal = refusal_of(event.detail)
            if refusal is None or refusal.fault not in OF_THE_REQUEST:
                self.is_spoilt = True  # V is shown once per session: another session may be believed
        request_id = getattr(event, "id", None)
        if request_id is None:
            return
        listener = self._requests.get(request_id)
        if isinstance(event, OutputReceived):
            self.did(self.machine.consumed(event.id, event.sealed_bytes, now=self.client.now))
        if listener is None:
            return
        if type(event).__name__ in ("RequestEnded", "RequestRefused", "RequestFailed"):
            del self._requests[request_id]
            if not self._requests:
                self._idle_since_ns = self.client.env.now
                self.client.env.kernel.after(IDLE_NS, self._idle)
        listener.heard(event)

    def _judge(self, event: EvidenceReceived) -> None:
        now = self.client.now
        key = event.statement[-32:]
        self.did(self.machine.trust(sealing_suite=SUITE_X25519, sealing_key=key, now=now))
        purse = self.client.purse
        self.did(
            self.machine.authenticate(
                account=purse.account, payout=self.payout, voucher_key=purse.key.public, sign=purse.key.sign, now=now
            )
        )
        self.is_ready = True
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(self)

    def _idle(self) -> None:
        is_idle = not self._requests and self.client.env.now - self._idle_since_ns >= IDLE_NS
        if is_idle and not self.is_dead and not self._waiting:
            self.client.links.pop(self.provider.number, None)
            self.did(self.machine.leave(now=self.client.now))

    def _dial_timeout(self) -> None:
        if self._syns < DIAL_ROUND_TRIPS and not self.is_dead:
            self.broken()

    def _hang_up(self) -> None:
        if not self.is_dead:
            self.conn.close(self.client.number)
            self._end()

    def broken(self) -> None:
        """The stream is gone: every request on it has a last event."""
        if self.is_dead:
            return
        for effect in self.machine.disconnected(now=self.client.now):
            if isinstance(effect, Emit):
                self._on_event(effect.event)
        self._end()

    def forget(self) -> None:
        """The process is gone: nobody is told."""
        self.is_dead = True
        self.wake.is_dead = True
        self.conn.drop(self.client.number)

    def _end(self) -> None:
        self.is_dead = True
        self.wake.is_dead = True
        if self.client.links.get(self.provider.number) is self:
            del self.client.links[self.provider.number]
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(None)


class ClientPeer:
    """See the file's head."""

    def __init__(
        self,
        env: Env,
        number: int,
        chain: SimChain,
        setup: ClientSetup,
        *,
        account: bytes,
        voucher_key: Key,
        directory: dict[PeerId, ProviderPeer],
        rule: Rule,
    ) -> None:
        from cocoon.pay.metering import vested_due_nano

        self.env = env
        self.number = number
        self.setup = setup
        self.rule = rule
        self.directory = directory
        self.due = vested_due_nano
        self.key = Key(f"{env.seed}/{setup.name}/client")
        self.peer: PeerId = peer_id_of_key(self.key.public)
        self.is_up = False
        self.starts = 0
        self.clock_ahead_ns = 0
        self.book = OfferBook(env.network)
        self.history = History()
        self.links: dict[int, Link] = {}
        self.inflight: dict[int, int] = {}
        self.purchases: list[Purchase] = []
        self.marked: dict[int, int] = {}  # providers caught in a lie, and until when they are left alone
        self.dice = env.rng("choice", number)
        self.chance = env.rng("client", number)
        self.spent_nano = self.hedged_nano = 0
        self.on_left: Callable[[bytes, SignedVoucher], None] = lambda _payout, _voucher: None  # for who watches
        self._entropy = Counting(env, "client entropy", number)
        self._last_now = 0
        self._book_wake: Wake | None = None
        self.purse = Purse(
            env,
            number,
            chain,
            account=account,
            key=voucher_key,
            terms=PayerTerms(spend_max_nano=setup.deposit_nano),
            send=self._send_voucher,
        )

    @property
    def now(self) -> int:
        """Its own clock, which never runs backwards."""
        self._last_now = max(self._last_now, self.env.now + self.clock_ahead_ns)
        return self._last_now

    # --- life --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Come up."""
        if self.is_up:
            return
        self.is_up = True
        self.starts += 1
        if self._book_wake is not None:
            self.book = OfferBook(self.env.network)
            self.purse.clock_ahead_ns = self.clock_ahead_ns
            self.purse.restart()
        else:
            self.purse.start()
        self._book_wake = Wake(self.env.kernel, self.book.deadline, self._book_on_time)
        self._book_wake.offset_ns = self.clock_ahead_ns

    def crash(self, *, keeps_unacknowledged: bool = False, loses_last: bool = False) -> None:
        """The process is gone, and its purchases with it."""
        if not self.is_up:
            return
        self.is_up = False
        if self._book_wake is not None:
            self._book_wake.is_dead = True
        self.purse.generation += 1
        if self.purse.wake is not None:
            self.purse.wake.is_dead = True
        self.purse.disk.crash(keeps_unacknowledged=keeps_unacknowledged, loses_last=loses_last)
        for purchase in list(self.purchases):
            purchase.abandon()
        for link in list(self.links.values()):
            link.forget()
        self.links.clear()
        self.inflight.clear()

    def shift_clock(self, by_ns: int) -> None:
        """Its wall clock jumps; see `ProviderPeer.shift_clock`."""
        self.now  # noqa: B018 - fixes what was seen last
        self.clock_ahead_ns += by_ns
        self.purse.clock_ahead_ns = self.clock_ahead_ns
        if self.is_up:
            for wake in (self._book_wake, self.purse.wake, *(link.wake for link in self.links.values())):
                if wake is not None:
                    wake.shift(self.clock_ahead_ns)

    # --- offers ------------------------------------------------------------------------------------------

    def heard_offer(self, forwarder: PeerId, data: bytes, *, shard: int | None = None) -> Any:
        """Gossip or a reply brought this; the book's judgement."""
        judgement = self.book.receive_offer(forwarder, data, now=self.now, shard=shard)
        if self._book_wake is not None:
            self._book_wake.look()
        return judgement

    def heard_beacon(self, forwarder: PeerId, data: bytes, *, shard: int | None = None) -> Any:
        """The same of a load beacon."""
        return self.book.receive_beacon(forwarder, data, now=self.now, shard=shard)

    def _book_on_time(self) -> None:
        self.book.on_time(now=self.now)

    def offers(self, model: bytes) -> tuple[ListedOffer, ...]:
        """In force, of providers that can be dialled."""
        return tuple(each for each in self.book.listed(model, now=self.now) if each.offer.provider in self.directory)

    # --- sessions and requests ---------------------------------------------------------------------------

    def link(self, provider: ProviderPeer) -> Link:
        """The session with it, opened now if there is none."""
        link = self.links.get(provider.number)
        if link is not None and link.is_spoilt and not link.is_dead:
            link.did(link.machine.leave(now=self.now))
        if link is None or link.is_dead or link.is_spoilt or link.machine.is_draining:
            link = self.links[provider.number] = Link(self, provider)
        return link

    def _send_voucher(self, payout: bytes, voucher: SignedVoucher) -> None:
        for link in self.links.values():
            if link.payout == payout and link.is_ready and not link.is_dead:
                link.pay(voucher)
                return

    def buy(self, order: Order, done: Callable[[Purchase], None]) -> None:
        """One request, to its end."""
        from sim.econ.purchase import Purchase

        purchase = Purchase(self, order, done)
        self.purchases.append(purchase)
        purchase.go()

    def mark(self, provider: int) -> None:
        """It billed what was not there, or answered from another model: that is no bad luck."""
        self.marked[provider] = self.now + MARK_NS

    def patience(self, **changes: Any) -> None:
        """Change the setup, for experiments."""
        self.setup = replace(self.setup, **changes)


__all__ = ["DIAL_TIMEOUT_NS", "IDLE_NS", "MILLISECOND_NS", "ClientPeer", "ClientSetup", "Link"]
