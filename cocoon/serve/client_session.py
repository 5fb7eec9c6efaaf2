"""The client's end of `/cocoon/session/1`: one stream to one provider, without I/O.

    effects = session.start(now=now)                     # Hello
    … EvidenceReceived: the driver verifies it, judges it by policy, and calls session.trust(…)
    id, effects = session.open(…, now=now)
    effects = session.receive_bytes(frame, now=now)      # never raises on what a peer sent
    effects = session.on_time(now=now)                   # when deadline() is not later than now

Nothing is sealed to a key that `trust` did not name, and nothing is believed that this end did not count: chunks in
order, tokens, chain, receipts. A provider that breaks the protocol is disconnected; the request that showed it
fails with what was wrong, the others with `StreamBroken`. A request is complete only when the sealed end *and* the
matching final receipt are here.

What it does not do: verify evidence, choose providers, retry, or pay.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import (
    CocoonError,
    DecodeError,
    LocalProtocolError,
    RemoteProtocolError,
    StreamBroken,
    Unavailable,
)
from ..errors import (
    Refused as RefusedError,
)
from ..types import Digest, Network, PeerId
from ..wire import limits
from ..wire.messages import (
    Accepted,
    Cancel,
    Credit,
    Evidence,
    Failed,
    Frame,
    Goodbye,
    Message,
    OpenHeader,
    Ping,
    Pong,
    Receipt,
    Refused,
    Reserve,
    SealedRequest,
    Voucher,
)
from . import bounds, sealing
from .asked import AskedRequest, seal_request
from .effects import Disconnect, Effect, Effects, Emit, Send, decode_session
from .events import (
    OfferFacts,
    RequestAccepted,
    RequestEnded,
    RequestFailed,
    RequestRefused,
    ReservationWanted,
    SessionDraining,
)
from .handshake import ClientHandshake
from .heartbeat import Heartbeat
from .reasons import Reason, failure_error, printable, refusal_error
from .receipts import DueRule, Sign, Verify

_Ending = RequestEnded | RequestRefused | RequestFailed
STREAM_BROKEN = "stream_broken"  # the reason of `RequestFailed` when the stream itself is over


class ClientSession:
    """See the file's head. `client` is our own peer id, `peer` is P, the provider's key as its offer names it."""

    def __init__(
        self,
        *,
        network: Network,
        client: PeerId,
        peer: bytes,
        crypto: sealing.Crypto,
        entropy: Callable[[int], bytes],
        verify: Verify,
        due: DueRule,
        now: int,
    ) -> None:
        self._network = network
        self._peer = peer
        self._crypto = crypto
        self._entropy = entropy
        self._verify = verify
        self._due = due
        self._handshake = ClientHandshake(network=network, client=client, peer=peer, crypto=crypto, entropy=entropy)
        self._heartbeat = Heartbeat(now=now)
        self._requests: dict[int, AskedRequest] = {}
        self._waiting: set[int] = set()  # ids without an answer to Open
        self._cancelled: set[int] = set()  # ids that the provider must close soon
        self._next_id = 0
        self._speaking_of: int | None = None  # the request that the message in hand is about
        self._is_draining = False
        self._is_closed = False

    # --- what the driver asks ----------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether `Disconnect` was given; every later call does nothing."""
        return self._is_closed

    @property
    def is_draining(self) -> bool:
        """Whether either end said goodbye: no new requests."""
        return self._is_draining

    @property
    def is_ready(self) -> bool:
        """Whether `open` may be called."""
        return (
            self._handshake.context is not None
            and not self._is_draining
            and not self._is_closed
            and len(self._requests) < limits.REQUESTS_IN_FLIGHT_MAX
        )

    @property
    def session(self) -> Digest | None:
        """The current session id, once a statement is trusted."""
        return None if self._handshake.context is None else self._handshake.context.session

    @property
    def requests_open(self) -> int:
        """Requests that the provider has not closed, cancelled ones included."""
        return len(self._requests)

    def deadline(self) -> int | None:
        """When `on_time` has work, in ns; None when finished."""
        if self._is_closed:
            return None
        when = self._heartbeat.deadline()
        hello_ns = self._handshake.deadline()
        if hello_ns is not None and hello_ns < when:
            when = hello_ns
        for request_id in self._waiting:
            when = min(when, self._requests[request_id].answer_by_ns)
        for request_id in self._cancelled:
            when = min(when, (self._requests[request_id].cancelled_ns or 0) + bounds.CANCEL_TIMEOUT_NS)
        return when

    # --- from the role -----------------------------------------------------------------------------------

    def start(self, *, now: int) -> Effects:
        """Say Hello. Once; later Hellos follow by themselves every ten minutes (K5)."""
        if self._handshake.has_started:
            raise LocalProtocolError("this session has started")
        return tuple(self._say_hello(now))

    def trust(self, *, sealing_suite: int, sealing_key: bytes, now: int) -> Effects:
        """The evidence of the last `EvidenceReceived` was verified and passed the policy; E and its suite are S's own.

        Raises `BindingMismatch` when the suite is not one we can seal to.
        """
        if self._is_closed:
            return ()
        self._handshake.trust(sealing_suite=sealing_suite, sealing_key=sealing_key, now=now)
        return ()

    def distrust(self, error: CocoonError, *, now: int) -> Effects:
        """The evidence failed or the policy refuses it: everything open fails with `error`, and we hang up."""
        return () if self._is_closed else tuple(self._close(error, everywhere=error))

    def authenticate(self, *, account: bytes, payout: bytes, voucher_key: bytes, sign: Sign, now: int) -> Effects:
        """Prove that we hold V, sealed to E (S2). Needed once per session id before a paid `open`."""
        if self._is_closed:
            return ()
        message = self._handshake.authenticate(account=account, payout=payout, voucher_key=voucher_key, sign=sign)
        return (Send(message=message),)

    def open(
        self,
        *,
        offer: OfferFacts,
        endpoint: str,
        body: bytes,
        cache_tag: bytes,
        input_tokens_max: int,
        output_tokens_max: int,
        cost_max_nano: int,
        wait_ms_max: int,
        account: bytes = b"",
        voucher: bytes = b"",
        credit_bytes: int = bounds.CREDIT_BYTES,
        now: int,
    ) -> tuple[int, Effects]:
        """Seal and send one request under a fresh response key; its id.

        Raises `cocoon.errors.Refused` while draining or with too many in flight, `InvalidRequest` when the body is
        too large, `LocalProtocolError` before `trust`. Then nothing has changed.
        """
        if self._is_draining or self._is_closed:
            raise RefusedError(Reason.DRAINING.value)
        if len(self._requests) >= limits.REQUESTS_IN_FLIGHT_MAX:
            raise RefusedError(Reason.BUSY.value, retry_after_ms=1_000)
        if not bounds.CREDIT_BYTES_MIN <= credit_bytes <= bounds.CREDIT_BYTES_MAX:
            raise LocalProtocolError("a credit window out of bounds")
        context = self._handshake.need()
        request_id = self._next_id
        header = OpenHeader(
            offer=offer.digest,
            account=account,
            input_tokens_max=input_tokens_max,
            output_tokens_max=output_tokens_max,
            cost_max_nano=cost_max_nano,
        )
        request = SealedRequest(
            response_key=self._entropy(sealing.KEY_BYTES), cache_tag=cache_tag, endpoint=endpoint, body=body
        )
        message, asked = seal_request(
            request_id=request_id,
            context=context,
            offer=offer,
            header=header,
            request=request,
            wait_ms_max=wait_ms_max,
            credit_bytes=credit_bytes,
            voucher=voucher,
            crypto=self._crypto,
            now=now,
        )
        self._next_id = request_id + 1
        self._requests[request_id] = asked
        self._waiting.add(request_id)
        return request_id, (Send(message=message),)

    def consumed(self, request_id: int, sealed_bytes: int, *, now: int) -> Effects:
        """The reader took output of this size (`OutputReceived.sealed_bytes`); grants credit when it is worth it."""
        request = self._find(request_id)
        if request is None or request.cancelled_ns is not None:
            return ()
        total = request.consume(sealed_bytes)
        return () if total is None else (Send(message=Credit(id=request_id, total_bytes=total)),)

    def cancel(self, request_id: int, *, now: int) -> Effects:
        """Stop it. No more output is emitted; its one ending follows when the provider has closed it."""
        request = self._find(request_id)
        if request is None or request.cancelled_ns is not None:
            return ()
        return tuple(self._cancel(request, now))

    def pay(self, voucher: bytes, signature: bytes) -> Effects:
        """Send a voucher."""
        return () if self._is_closed else (Send(message=Voucher(voucher=voucher, signature=signature)),)

    def leave(self, *, now: int) -> Effects:
        """No new requests; hang up when the last is done."""
        if self._is_closed or self._is_draining:
            return ()
        self._is_draining = True
        out: list[Effect] = [Send(message=Goodbye(reason=Reason.DRAINING.value))]
        self._part_when_done(out)
        return tuple(out)

    def disconnected(self, *, now: int) -> Effects:
        """The stream has ended or broken: without `End` every open request fails."""
        return () if self._is_closed else tuple(self._close(None)[:-1])

    # --- from the peer -----------------------------------------------------------------------------------

    def receive_bytes(self, data: bytes, *, now: int) -> Effects:
        """One frame's bytes. What is no message of this protocol disconnects."""
        if self._is_closed:
            return ()
        try:
            message = decode_session(data)
        except RemoteProtocolError as error:
            return tuple(self._close(error))
        return self.receive(message, now=now)

    def receive(self, message: Message, *, now: int) -> Effects:
        """One decoded message. Never raises on a peer's account: a breach gives `Disconnect`."""
        if self._is_closed:
            return ()
        self._heartbeat.heard(now)
        self._speaking_of = None
        out: list[Effect] = []
        try:
            self._handle(message, out, now)
        except RemoteProtocolError as error:
            return (*out, *self._close(error))
        self._part_when_done(out)
        return tuple(out)

    def _handle(self, message: Message, out: list[Effect], now: int) -> None:
        match message:
            case Frame():
                self._frame(message, out)
            case Receipt():
                self._receipt(message, out)
            case Accepted():
                request = self._need(message.id)
                request.accepted(message, self._crypto)
                self._waiting.discard(message.id)
                if request.cancelled_ns is None:
                    out.append(Emit(event=RequestAccepted(id=message.id, queue_position=message.queue_position)))
            case Refused():
                self._refused(message, out, now)
            case Failed():
                request = self._need(message.id)
                if request.seal is None or request.end is not None:
                    raise StreamBroken("failed before it began, or after its end")
                error = failure_error(message.reason, message.detail)
                self._finish(request, RequestFailed(id=message.id, reason=message.reason, error=error), out)
            case Evidence():
                out.append(Emit(event=self._handshake.evidence(message)))
            case Ping():
                out.append(Send(message=self._heartbeat.answer(message, now)))
            case Pong():
                pass
            case Reserve():
                out.append(Emit(event=ReservationWanted(ceiling_nano=message.ceiling_nano)))
            case Goodbye():
                self._is_draining = True
                out.append(Emit(event=SessionDraining(reason=message.reason)))
            case _:
                raise DecodeError(f"a provider does not send {type(message).__name__}")

    def _frame(self, frame: Frame, out: list[Effect]) -> None:
        for chunk in frame.chunks:
            request = self._need(chunk.id)
            output = request.chunk(chunk)
            if output is not None and request.cancelled_ns is None:
                out.append(Emit(event=output))

    def _receipt(self, message: Receipt, out: list[Effect]) -> None:
        request = self._need(message.id)
        receipt = request.receipt(message, network=self._network, peer=self._peer, verify=self._verify, due=self._due)
        out.append(Emit(event=receipt))
        if request.end is not None:
            self._finish(request, request.ended(receipt), out)

    def _refused(self, message: Refused, out: list[Effect], now: int) -> None:
        request = self._need(message.id)
        if request.seal is not None:
            raise StreamBroken("refused after it was accepted")
        error = refusal_error(message.reason, message.detail, message.retry_after_ms)
        event = RequestRefused(
            id=message.id,
            reason=message.reason,
            detail=printable(message.detail),
            retry_after_ms=message.retry_after_ms,
            error=error,
        )
        self._finish(request, event, out)
        context = self._handshake.context
        if message.reason == Reason.STALE_KEY.value and context is not None and context.session == request.session:
            self._handshake.context = None  # nothing more is sealed to it
            if not self._handshake.is_pending:
                out.extend(self._say_hello(now))

    # --- time --------------------------------------------------------------------------------------------

    def on_time(self, *, now: int) -> Effects:
        """Do what is due: a ping, another Hello, giving up."""
        if self._is_closed:
            return ()
        if self._heartbeat.is_dead(now):
            return tuple(self._close(Unavailable("the provider has gone silent")))
        if self._handshake.is_late(now):
            return tuple(self._close(Unavailable("the provider did not send its evidence in time")))
        for request_id in sorted(self._cancelled):
            if now - (self._requests[request_id].cancelled_ns or 0) >= bounds.CANCEL_TIMEOUT_NS:
                return tuple(self._close(Unavailable("the provider did not close a cancelled request")))
        out: list[Effect] = []
        for request_id in sorted(self._waiting):
            request = self._requests[request_id]
            if now >= request.answer_by_ns and not request.is_reported:
                error = Unavailable("the provider did not answer the request in time")
                request.is_reported = True
                out.append(Emit(event=RequestFailed(id=request_id, reason=Reason.TIMEOUT.value, error=error)))
                out.extend(self._cancel(request, now))
        if self._handshake.is_due(now):
            out.extend(self._say_hello(now))
        ping = self._heartbeat.ping_due(now)
        if ping is not None:
            out.append(Send(message=ping))
        return tuple(out)

    @property
    def heard_ns(self) -> int:
        """When anything last came from the provider."""
        return self._heartbeat.heard_ns

    def probe(self, *, now: int) -> Effects:
        """Ask whether the provider lives. At most once a second: it takes more for a flood."""
        return () if self._is_closed else (Send(message=self._heartbeat.probe(now)),)

    # --- helpers -----------------------------------------------------------------------------------------

    def _say_hello(self, now: int) -> list[Effect]:
        try:
            return [Send(message=self._handshake.hello(now))]
        except StreamBroken as error:
            return self._close(error)

    def _find(self, request_id: int) -> AskedRequest | None:
        if request_id >= self._next_id:
            raise LocalProtocolError(f"request {request_id} was never opened")
        return None if self._is_closed else self._requests.get(request_id)

    def _need(self, request_id: int) -> AskedRequest:
        """The open request that the provider speaks of; it never speaks of one after it closed it."""
        self._speaking_of = request_id
        request = self._requests.get(request_id)
        if request is None:
            raise StreamBroken("a message for a request that is not open")
        return request

    def _cancel(self, request: AskedRequest, now: int) -> list[Effect]:
        request.cancelled_ns = now
        self._waiting.discard(request.id)
        self._cancelled.add(request.id)
        return [Send(message=Cancel(id=request.id))]

    def _finish(self, request: AskedRequest, event: _Ending, out: list[Effect]) -> None:
        del self._requests[request.id]
        self._waiting.discard(request.id)
        self._cancelled.discard(request.id)
        if not request.is_reported:
            out.append(Emit(event=event))

    def _part_when_done(self, out: list[Effect]) -> None:
        if self._is_draining and not self._requests and not self._is_closed:
            self._is_closed = True
            out.append(Disconnect(why=None))

    def _close(self, why: CocoonError | None, *, everywhere: CocoonError | None = None) -> list[Effect]:
        """Fail every open request, the one that the peer just spoke of with what was wrong, and hang up."""
        self._is_closed = True
        out: list[Effect] = []
        for request in self._requests.values():
            if request.is_reported:
                continue
            if everywhere is not None:
                error = everywhere
            elif why is not None and request.id == self._speaking_of:
                error = StreamBroken(f"the provider broke the protocol: {why}")
            else:
                error = StreamBroken(str(why) if isinstance(why, Unavailable) else "the stream ended without an end")
            out.append(Emit(event=RequestFailed(id=request.id, reason=STREAM_BROKEN, error=error)))
        self._requests.clear()
        self._waiting.clear()
        self._cancelled.clear()
        self._handshake.context = None
        out.append(Disconnect(why=why))
        return out
