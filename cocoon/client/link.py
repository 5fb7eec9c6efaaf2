"""One session with one provider: the client machine, its stream, and the requests that run on it.

A link judges the provider's evidence before anything secret is sealed, routes the machine's events to the
requests that wait for them, and grants credit as their readers take output. When the stream ends, every request
on it has a last event and the link is of no further use; the pool opens another.

Not here: which provider, which price, whether to try again (`role`, `reply`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from ..attest.facts import Facts
from ..errors import AttestationError, CocoonError, LocalProtocolError, StaleEvidence, StreamBroken, Unavailable
from ..pay.budget import Attempt
from ..ports import Clock, Entropy, Stream
from ..pump import SessionPump
from ..serve.client_session import ClientSession
from ..serve.events import (
    EvidenceReceived,
    OfferFacts,
    OutputReceived,
    ReceiptReceived,
    RequestAccepted,
    RequestEnded,
    RequestFailed,
    RequestRefused,
    ReservationWanted,
    SessionDraining,
)
from ..serve.reasons import Reason
from ..types import SECOND_NS, Digest, PeerId
from .spending import OF_THE_REQUEST, Spending, refusal_of

PROBE_GAP_NS: Final = SECOND_NS  # all requests of a session ask together
HANDSHAKE_TIMEOUT_S: Final = 35.0
"""The machine gives hardware evidence 30 s; this only bounds what the machine cannot see."""

RequestEvent = RequestAccepted | OutputReceived | RequestEnded


Judge = Callable[[EvidenceReceived], Awaitable[Facts]]
"""Verify a session's evidence. Raises `AttestationError`, `BadSignature` or `DecodeError`."""


class RunningRequest:
    """One request on a link. Its events come in order; `next_event` raises what ended it early."""

    def __init__(self, link: ProviderLink, request_id: int) -> None:
        self._link = link
        self.id = request_id
        self._events: deque[RequestEvent | CocoonError] = deque()
        self._arrived = trio.Event()
        self._is_over = False
        self._unconsumed_bytes = 0

    @property
    def is_over(self) -> bool:
        """The last event has been put in."""
        return self._is_over

    async def next_event(self) -> RequestEvent:
        """The next event. Taking one grants the provider credit for the one before. Raises what broke it."""
        self._consume()
        while (event := self.event_nowait()) is None:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return event

    def _consume(self) -> None:
        """Grant the provider credit for the last event."""
        if self._unconsumed_bytes:
            self._link.consumed(self.id, self._unconsumed_bytes)
            self._unconsumed_bytes = 0

    def event_nowait(self) -> RequestEvent | None:
        """`next_event`, if there is one already."""
        if not self._events:
            return None
        self._consume()
        event = self._events.popleft()
        if isinstance(event, CocoonError):
            raise event
        if isinstance(event, OutputReceived):
            self._unconsumed_bytes = event.sealed_bytes
        return event

    def probe(self) -> int:
        """Ask the provider whether it lives; when it was asked, in ns."""
        return self._link.probe()

    @property
    def heard_ns(self) -> int:
        """When anything last came from the provider."""
        return self._link.heard_ns

    def cancel(self) -> None:
        """Tell the provider to stop; nothing more comes. Harmless when it is over."""
        if not self._is_over:
            self._link.cancel(self.id)

    def put(self, event: RequestEvent | CocoonError) -> None:
        """For the link: one more event."""
        self._is_over = isinstance(event, (CocoonError, RequestEnded))
        self._events.append(event)
        self._arrived.set()


class ProviderLink:
    """A session that is being opened, trusted, used, or over."""

    def __init__(
        self,
        stream: Stream,
        machine: ClientSession,
        *,
        clock: Clock,
        entropy: Entropy,
        judge: Judge,
        on_receipt: Callable[[PeerId, ReceiptReceived], None],
        spending: Spending | None = None,
    ) -> None:
        self.peer = stream.peer
        self._machine = machine
        self._clock = clock
        self._entropy = entropy
        self._judge = judge
        self._on_receipt = on_receipt
        self._spending = spending
        self._attempts: dict[int, Attempt] = {}  # of paid requests, until their last event: also when cancelled
        self._payouts: set[bytes] = set()  # whose vouchers go here; in truth one
        self._authenticated: Digest | None = None  # the session id that V was shown on
        self._pump = SessionPump(stream, machine, clock, self._on_event)
        self._requests: dict[int, RunningRequest] = {}
        self._trusted = trio.Event()
        self._judged_again = trio.Event()
        self._evidence: trio.MemorySendChannel[EvidenceReceived]
        self._evidence_in: trio.MemoryReceiveChannel[EvidenceReceived]
        # One at a time: the machine asks anew only after the answer to the last question.
        self._evidence, self._evidence_in = trio.open_memory_channel(2)
        self._probed_ns = 0
        self.facts: Facts | None = None
        self.is_draining = False
        self.used_ns = clock.now()

    @property
    def is_usable(self) -> bool:
        """New requests may be opened on it (once it is trusted)."""
        return not (self._pump.is_ended or self.is_draining)

    @property
    def requests_running(self) -> int:
        """How many requests are on it."""
        return len(self._requests)

    async def run(self) -> None:
        """Drive the session until it ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._judge_evidence)
                self._pump.perform(self._machine.start(now=self._clock.now()))
                await self._pump.run()
                nursery.cancel_scope.cancel()
        finally:
            if self._spending is not None:
                for payout in self._payouts:
                    self._spending.left(payout, self)
            self._judged_again.set()
            self._trusted.set()  # wake whoever waits for trust that will not come

    async def wait_trusted(self) -> Facts:
        """What was proven, once it is, and while it holds. Raises what the evidence lacks, or `Unavailable`.

        Around the tenth minute facts may run out a moment before the machine's next Hello has been answered.
        """
        with trio.move_on_after(HANDSHAKE_TIMEOUT_S):
            await self._trusted.wait()
            while self.facts is not None and self.facts.expires_ns <= self._clock.now() and not self._pump.is_ended:
                await self._judged_again.wait()
        if self.facts is not None and self.facts.expires_ns <= self._clock.now():
            self.is_draining = True  # its collateral ended before the next Hello: a new session brings newer
            raise StaleEvidence(
                f"the evidence of {self.peer} has run out, and it has not renewed it", reason="facts.expired"
            )
        if self.facts is None:
            reason = self._pump.reason
            if isinstance(reason, AttestationError):
                raise reason
            raise Unavailable(f"{self.peer} did not complete the handshake: {reason or 'it hung up'}") from reason
        return self.facts

    def open(
        self, *, endpoint: str, body: bytes, cache_tag: bytes, offer: OfferFacts, input_tokens_max: int,
        output_tokens_max: int, cost_max_nano: int, wait_ms_max: int, attempt: Attempt | None = None,
    ) -> RunningRequest:  # fmt: skip
        """Seal and send a request, which `attempt` pays for. Its first event is `RequestAccepted`, unless it raises."""
        if self._pump.is_ended:
            raise StreamBroken("the session ended before the request was sent")
        account = voucher = b""
        if attempt is not None:
            assert self._spending is not None
            self._show_account(self._spending, offer.payout)
            account, voucher = self._spending.account.account, self._spending.open_voucher(offer.payout)
        request_id, effects = self._machine.open(
            endpoint=endpoint,
            body=body,
            cache_tag=cache_tag,
            offer=offer,
            input_tokens_max=input_tokens_max,
            output_tokens_max=output_tokens_max,
            cost_max_nano=cost_max_nano,
            wait_ms_max=wait_ms_max,
            account=account,
            voucher=voucher,
            now=self._clock.now(),
        )
        if attempt is not None:
            self._attempts[request_id] = attempt
        request = self._requests[request_id] = RunningRequest(self, request_id)
        self.used_ns = self._clock.now()
        self._pump.perform(effects)
        return request

    def _show_account(self, spending: Spending, payout: bytes) -> None:
        """Prove that we hold V, once per session id, after its evidence has passed (rules S2, H2)."""
        if self._machine.session == self._authenticated:
            return
        account = spending.account
        effects = self._machine.authenticate(
            account=account.account,
            payout=payout,
            voucher_key=account.voucher_key,
            sign=account.sign,
            now=self._clock.now(),
        )
        self._authenticated = self._machine.session
        self._payouts.add(payout)
        spending.joined(payout, self)
        self._pump.perform(effects)

    def pay(self, voucher: bytes, signature: bytes) -> bool:
        """Send a voucher; False when this link is over."""
        if self._pump.is_ended or self._machine.is_closed:
            return False
        self._pump.perform(self._machine.pay(voucher, signature))
        return True

    @property
    def heard_ns(self) -> int:
        """When anything last came."""
        return self._machine.heard_ns

    def probe(self) -> int:
        """Send a ping now, but no flood of them; when the last one was sent."""
        now = self._clock.now()
        if not self._pump.is_ended and now - self._probed_ns >= PROBE_GAP_NS:
            self._probed_ns = now
            self._pump.perform(self._machine.probe(now=now))
        return self._probed_ns

    def consumed(self, request_id: int, sealed_bytes: int) -> None:
        """The reader has taken that much: let the provider send more."""
        if not self._pump.is_ended and request_id in self._requests:
            self._pump.perform(self._machine.consumed(request_id, sealed_bytes, now=self._clock.now()))

    def cancel(self, request_id: int) -> None:
        """Stop a request at the provider."""
        self._requests.pop(request_id, None)
        if not self._pump.is_ended:
            self._pump.perform(self._machine.cancel(request_id, now=self._clock.now()))

    def end(self, reason: CocoonError | None = None) -> None:
        """Close the session; its requests fail with `StreamBroken`."""
        self._pump.end(reason)

    async def wait_sent(self) -> None:
        """Return once what was said is written."""
        await self._pump.wait_sent()

    async def _judge_evidence(self) -> None:
        async for evidence in self._evidence_in:
            try:
                facts = await self._judge_in_time(evidence)
                effects = self._machine.trust(
                    sealing_suite=facts.statement.sealing_suite,
                    sealing_key=facts.statement.sealing_key,
                    now=self._clock.now(),
                )
            except CocoonError as refusal:
                self.facts = None
                self._pump.perform(self._machine.distrust(refusal, now=self._clock.now()))
                return
            self.facts = facts
            self._pump.perform(effects)
            self._trusted.set()
            again, self._judged_again = self._judged_again, trio.Event()
            again.set()

    async def _judge_in_time(self, evidence: EvidenceReceived) -> Facts:
        """Parts of the evidence come from the provider as well, so its slowness must not hold a session open."""
        with trio.move_on_after(HANDSHAKE_TIMEOUT_S):
            return await self._judge(evidence)
        raise Unavailable(f"{self.peer} did not send all parts of its evidence within {HANDSHAKE_TIMEOUT_S:.0f} s")

    def _on_event(self, event: object) -> None:
        if self._spending is not None and self._attempts:
            self._count(self._spending, event)
        match event:
            case OutputReceived() | RequestAccepted():
                request = self._requests.get(event.id)
                if request is not None:
                    request.put(event)
            case RequestEnded():
                request = self._requests.pop(event.id, None)
                self.used_ns = self._clock.now()
                if request is not None:
                    request.put(event)
            case RequestRefused() | RequestFailed():
                # Without a session the machine has asked for new evidence; a refusal of an older one means nothing.
                if event.reason == Reason.STALE_KEY.value and self._machine.session is None and self._trusted.is_set():
                    self.facts, self._trusted = None, trio.Event()
                request = self._requests.pop(event.id, None)
                if request is not None:
                    request.put(self._error_of(event))
            case ReceiptReceived():
                self._on_receipt(self.peer, event)
            case ReservationWanted():
                if self._spending is not None:
                    for payout in self._payouts:
                        self._spending.ceiling_wanted(payout, event.ceiling_nano)
            case EvidenceReceived():
                try:
                    self._evidence.send_nowait(event)
                except trio.WouldBlock:
                    raise LocalProtocolError("evidence came faster than the machine may ask for it") from None
            case SessionDraining():
                self.is_draining = True
            case _:
                raise LocalProtocolError(f"an event that a client does not know: {type(event).__name__}")

    # --- money -------------------------------------------------------------------------------------------

    def _count(self, spending: Spending, event: object) -> None:
        """Tell our own books what came, at once: payment does not wait for the reader."""
        match event:
            case OutputReceived():
                attempt = self._attempts.get(event.id)
                if attempt is not None:
                    spending.received(
                        attempt, prompt_tokens=event.prompt_tokens, completion_tokens=event.completion_tokens
                    )
            case ReceiptReceived():
                attempt = self._attempts.get(event.id)
                if attempt is not None:  # its counts are our own, and after a cancel the only ones that we are told
                    body = event.body
                    spending.received(
                        attempt, prompt_tokens=body.prompt_tokens, completion_tokens=body.completion_tokens
                    )
                    if not body.final:
                        spending.receipt(attempt)
            case RequestEnded():
                attempt = self._attempts.pop(event.id, None)
                if attempt is not None:
                    spending.ended(attempt, payable_nano=event.receipt.payable_nano)
            case RequestRefused() | RequestFailed():
                attempt = self._attempts.pop(event.id, None)
                if attempt is not None:
                    spending.close(attempt)

    def _error_of(self, event: RequestRefused | RequestFailed) -> CocoonError:
        """What to raise. A refusal for our money names the reason, and may be an account that this session lost."""
        if isinstance(event, RequestFailed) or event.reason != Reason.PAYMENT_REQUIRED.value:
            return event.error
        refusal = refusal_of(event.detail)
        if refusal is None or refusal.fault not in OF_THE_REQUEST:
            self.is_draining = True  # V is shown once per session: another session may be believed
        return refusal or event.error
