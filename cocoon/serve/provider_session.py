"""The provider's end of `/cocoon/session/1`: one stream of one client, without I/O.

    effects = session.receive_bytes(frame, now=now)      # never raises on what a peer sent
    effects = session.accept(id, prompt_tokens=…, now=now); session.output(…); session.finish(…)
    effects = session.on_time(now=now)                   # when deadline() is not later than now

After *every* call the driver performs the effects in order and looks at `deadline()` again: output that may leave
at once (a first token, an end) shows as a deadline that has passed, so that whatever else became ready in the same
moment shares its frame. A client that breaks the protocol is disconnected; its open requests are cancelled.

What it does not do: make evidence, run the model, judge vouchers, choose which requests deserve a slot.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import (
    CocoonError,
    DecodeError,
    LimitExceeded,
    LocalProtocolError,
    RemoteProtocolError,
    Unavailable,
)
from ..ports.engine import Delta
from ..types import Digest, FinishReason, Nano, Network, PeerId, Usage
from ..wire import limits
from ..wire.codec import decode_as
from ..wire.messages import (
    Accepted,
    Authenticate,
    Cancel,
    Credit,
    Failed,
    Goodbye,
    Hello,
    Message,
    Open,
    OpenHeader,
    Ping,
    Pong,
    ReceiptBody,
    Refused,
    Reserve,
    Voucher,
)
from . import bounds, sealing
from .admission import HeldOpens, UnservedRequests, admit
from .chunks import ChunkSeal, encode_frame
from .effects import Disconnect, Effect, Effects, Emit, Send, decode_session
from .events import (
    HelloReceived,
    OfferFacts,
    OutputDrained,
    RequestCancelled,
    RequestClosed,
    SessionDraining,
    VoucherReceived,
)
from .frames import FrameQueue
from .handshake import ProviderHandshake
from .heartbeat import Heartbeat
from .outbox import ServedRequest, TokenGate
from .reasons import Reason
from .receipts import DueRule, Sign, Verify, receipt_body, sign_receipt


class ProviderSession:
    """See the file's head. `offers` finds an offer of ours by digest; `sign` is P's signature; `keys` holds E.

    `gate` lets the output of paid requests leave; without one, paid offers are not served.
    """

    def __init__(
        self,
        *,
        network: Network,
        peer: bytes,
        client: PeerId,
        keys: sealing.SealingKeys,
        crypto: sealing.Crypto,
        entropy: Callable[[int], bytes],
        sign: Sign,
        verify: Verify,
        offers: Callable[[Digest], OfferFacts | None],
        due: DueRule,
        gate: TokenGate | None = None,
        now: int,
    ) -> None:
        self._network = network
        self._due = due
        self._gate = gate
        self._crypto = crypto
        self._entropy = entropy
        self._sign = sign
        self._offers = offers
        self._handshake = ProviderHandshake(
            network=network, peer=peer, client=client, keys=keys, crypto=crypto, entropy=entropy, verify=verify
        )
        self._heartbeat = Heartbeat(now=now)
        self._frames = FrameQueue(now=now)
        self._unserved = UnservedRequests(now=now)
        self._requests: dict[int, ServedRequest] = {}
        self._held = HeldOpens()
        self._last_id = -1
        self._draining_since_ns: int | None = None
        self._client_left = False
        self._is_closed = False

    # --- what the driver asks ----------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether `Disconnect` was given; every later call does nothing."""
        return self._is_closed

    @property
    def requests_open(self) -> int:
        """Requests between `RequestOpened` and their last message."""
        return len(self._requests)

    def buffered_bytes(self, request_id: int) -> int:
        """Output of this request that waits for credit or the next frame; 0 when it is closed."""
        request = self._requests.get(request_id)
        return 0 if request is None else request.buffered_bytes

    def is_full(self, request_id: int) -> bool:
        """Whether the engine should pause for this request until `OutputDrained` or `RequestCancelled`."""
        return self._frames.is_full(request_id)

    def deadline(self) -> int | None:
        """When `on_time` has work, in ns; None when finished."""
        if self._is_closed:
            return None
        when = self._heartbeat.deadline()
        frames_ns = self._frames.deadline()
        if frames_ns is not None and frames_ns < when:
            when = frames_ns
        if self._draining_since_ns is not None and not self._requests and not self._held:
            when = min(when, self._draining_since_ns + bounds.DRAIN_GRACE_NS)
        return when

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
        out: list[Effect] = []
        try:
            self._handle(message, out, now)
        except RemoteProtocolError as error:
            return (*out, *self._close(error))
        self._part_when_done(out, now)
        return tuple(out)

    def _handle(self, message: Message, out: list[Effect], now: int) -> None:
        match message:
            case Open():
                self._open(message, out, now)
            case Credit():
                self._credit(message, now)
            case Cancel():
                self._cancel(message, out, now)
            case Ping():
                out.append(Send(message=self._heartbeat.answer(message, now)))
            case Pong():
                pass
            case Hello():
                self._handshake.hello(message, now)
                out.append(Emit(event=HelloReceived(hello=message)))
            case Authenticate():
                claim = self._handshake.authenticate(message, now)
                if claim is not None:
                    out.append(Emit(event=claim))
            case Voucher():
                out.append(Emit(event=VoucherReceived(voucher=message.voucher, signature=message.signature)))
            case Goodbye():
                self._client_left = True
                out.append(Emit(event=SessionDraining(reason=message.reason)))
            case _:
                raise DecodeError(f"a client does not send {type(message).__name__}")

    def _open(self, message: Open, out: list[Effect], now: int) -> None:
        if message.id <= self._last_id:
            raise RemoteProtocolError("a request id that does not rise")
        header = decode_as(message.header, OpenHeader, bytes_max=256)
        if not bounds.CREDIT_BYTES_MIN <= message.credit_bytes <= bounds.CREDIT_BYTES_MAX:
            raise LimitExceeded("a credit window out of bounds")
        self._last_id = message.id
        if header.account and self._handshake.is_authenticating(message.session_prefix):
            self._hold(message, header, out, now)
        else:
            self._admit(message, header, out, now)

    def _hold(self, message: Open, header: OpenHeader, out: list[Effect], now: int) -> None:
        """Its account is being looked up: the client need not wait for that before it opens."""
        if not self._held.add(message, header):
            out.append(_refused(message.id, Reason.BUSY, 1_000))

    def _admit(self, message: Open, header: OpenHeader, out: list[Effect], now: int) -> None:
        reason: Reason | None = None
        detail = ""
        if self._draining_since_ns is not None or self._client_left:
            reason = Reason.DRAINING
        elif len(self._requests) >= limits.REQUESTS_IN_FLIGHT_MAX:
            reason = Reason.BUSY
        else:
            admitted = admit(
                message, header, handshake=self._handshake, offers=self._offers, crypto=self._crypto, now=now
            )
            if isinstance(admitted, Reason):
                reason = admitted
                if reason is Reason.PAYMENT_REQUIRED:
                    detail = self._handshake.refusal(message.session_prefix)
            elif admitted[0].offer.is_paid and self._gate is None:
                reason = Reason.PAYMENT_REQUIRED
            else:
                request, opened = admitted
                if request.offer.is_paid:
                    request.gate = self._gate
                self._requests[message.id] = request
                out.append(Emit(event=opened))
        if reason is not None:
            self._unserved.add(reason, now)
            out.append(_refused(message.id, reason, detail=detail))

    def _take_held(self, now: int) -> list[Effect]:
        """The answer to those Opens whose account is known by now."""
        out: list[Effect] = []
        for message, header in self._held.take_all():
            if self._is_closed:
                break
            try:
                if self._handshake.is_authenticating(message.session_prefix):
                    self._hold(message, header, out, now)
                else:
                    self._admit(message, header, out, now)
            except RemoteProtocolError as error:
                return [*out, *self._close(error)]
        return out

    def _credit(self, message: Credit, now: int) -> None:
        request = self._requests.get(message.id)
        if request is None:
            self._must_be_past(message.id)
            return
        if message.total_bytes < request.credit_bytes:
            raise RemoteProtocolError("credit that shrinks")
        if message.total_bytes - request.sent_bytes > bounds.CREDIT_BYTES_MAX:
            raise LimitExceeded("more credit than the bound")
        request.credit_bytes = message.total_bytes
        self._frames.unblock(request, now)

    def _cancel(self, message: Cancel, out: list[Effect], now: int) -> None:
        if self._held.remove(message.id):
            self._unserved.add(Reason.CANCELLED, now)
            out.append(_refused(message.id, Reason.CANCELLED))
            return
        request = self._requests.get(message.id)
        if request is None:
            self._must_be_past(message.id)
            return
        if request.seal is None or request.seal.number == 0:
            self._unserved.add(Reason.CANCELLED, now)
        out.append(Emit(event=RequestCancelled(id=message.id, reason=Reason.CANCELLED.value)))
        self._close_unfinished(request, Reason.CANCELLED, "", out)

    def _must_be_past(self, request_id: int) -> None:
        if request_id > self._last_id:
            raise RemoteProtocolError("a message for a request that was never opened")

    # --- from the role -----------------------------------------------------------------------------------

    def evidence(
        self,
        *,
        statement: bytes,
        operator_signature: bytes,
        peer_signature: bytes,
        sealing_key: bytes,
        hardware: bytes = b"",
        now: int,
    ) -> Effects:
        """Answer the Hello. `sealing_key` is E as the statement names it, from `SealingKeys.current`."""
        if self._is_closed:
            return ()
        message = self._handshake.evidence(
            statement=statement,
            operator_signature=operator_signature,
            peer_signature=peer_signature,
            sealing_key=sealing_key,
            hardware=hardware,
            now=now,
        )
        return (Send(message=message),)

    def authenticated(self, *, session: Digest, account: bytes, now: int) -> Effects:
        """V of the last `AuthenticationReceived` is proven to be the account's: paid requests may come."""
        if self._is_closed:
            return ()
        self._handshake.authenticated(session, account)
        return tuple(self._take_held(now))

    def unauthenticated(self, *, session: Digest, detail: str, now: int) -> Effects:
        """It is not, or not known to be: paid requests of this session are refused, and `detail` says why."""
        if self._is_closed:
            return ()
        self._handshake.unauthenticated(session, detail)
        return tuple(self._take_held(now))

    def reserve(self, ceiling_nano: Nano) -> Effects:
        """Ask the client to sign a reservation up to this amount."""
        return () if self._is_closed else (Send(message=Reserve(ceiling_nano=ceiling_nano)),)

    def paid(self, session: Digest, *, now: int) -> Effects:
        """The gate may let more of this session's requests out: try again those that it held back."""
        for request in self._requests.values():
            if request.is_unpaid and request.session == session:
                self._frames.unblock(request, now)
        return ()

    def accept(self, request_id: int, *, prompt_tokens: int, queue_position: int = 0, now: int) -> Effects:
        """Admit it. `prompt_tokens` is the engine's own count, which the bill is made from."""
        request = self._find(request_id)
        if request is None:
            return ()
        if request.seal is not None:
            raise LocalProtocolError(f"request {request_id} was accepted before")
        if prompt_tokens > request.header.input_tokens_max:
            raise LocalProtocolError(f"request {request_id} is larger than it declared: refuse it")
        salt = self._entropy(32)
        key = sealing.chunk_key(request.response_key.reveal(), salt, request.session, request_id)
        request.seal = ChunkSeal(self._crypto.cipher(key), request_id, request.chain, prompt_tokens=prompt_tokens)
        return (Send(message=Accepted(id=request_id, salt=salt, queue_position=min(queue_position, 0xFFFF))),)

    def refuse(
        self, request_id: int, reason: Reason, *, retry_after_ms: int = 0, detail: str = "", now: int
    ) -> Effects:
        """Decline it, unbilled. `detail` must hold nothing of the request's text."""
        request = self._find(request_id)
        if request is None:
            return ()
        if request.seal is not None:
            raise LocalProtocolError(f"request {request_id} was accepted before")
        self._forget(request)
        out: list[Effect] = [_refused(request_id, reason, retry_after_ms, detail)]
        self._part_when_done(out, now)
        return tuple(out)

    def output(self, request_id: int, delta: Delta, *, now: int) -> Effects:
        """Queue output for the next frame. Raises `LocalProtocolError` beyond what the request declared."""
        request = self._find(request_id)
        if request is None:
            return ()
        if request.seal is None or request.finish_reason is not None:
            raise LocalProtocolError(f"request {request_id} takes no output now")
        before = request.buffered_bytes
        request.push(delta)
        grown = request.buffered_bytes - before
        self._frames.grew(request, grown, now=now, urgent=request.seal.number == 0)
        return self._give_up(request, Reason.STALLED) if request.buffered_bytes > bounds.BUFFER_BYTES_MAX else ()

    def finish(self, request_id: int, finish_reason: FinishReason, usage: Usage, *, now: int) -> Effects:
        """End it. Of `usage` only `cached_tokens` counts: the rest is what was accepted and delivered."""
        request = self._find(request_id)
        if request is None:
            return ()
        if request.seal is None or request.finish_reason is not None:
            raise LocalProtocolError(f"request {request_id} cannot end now")
        request.finish_reason = finish_reason
        request.cached_tokens = min(usage.cached_tokens, request.seal.prompt_tokens or 0)
        self._frames.grew(request, 0, now=now, urgent=not self._is_another_running(request_id))
        return ()

    def fail(self, request_id: int, reason: Reason, *, detail: str = "", now: int) -> Effects:
        """Give up an accepted request. What was queued and may leave leaves first; chunks sent stand."""
        request = self._find(request_id)
        if request is None:
            return ()
        if request.seal is None:
            return self.refuse(request_id, reason, detail=detail, now=now)
        out: list[Effect] = []
        self._flush(out, now)
        if request_id in self._requests:
            self._close_unfinished(request, reason, detail, out)
        self._part_when_done(out, now)
        return tuple(out)

    def drain(self, reason: Reason = Reason.DRAINING, *, now: int) -> Effects:
        """Take no new requests; hang up when the last is done."""
        if self._is_closed or self._draining_since_ns is not None:
            return ()
        self._draining_since_ns = now
        return (Send(message=Goodbye(reason=reason.value)),)

    def disconnected(self, *, now: int) -> Effects:
        """The stream has ended or broken; open requests are cancelled."""
        return () if self._is_closed else tuple(self._close(None)[:-1])

    def on_time(self, *, now: int) -> Effects:
        """Do what is due: a frame, a ping, giving up."""
        if self._is_closed:
            return ()
        if self._heartbeat.is_dead(now):
            return tuple(self._close(Unavailable("the client has gone silent")))
        out: list[Effect] = []
        if self._frames.flush_at_ns is not None and now >= self._frames.flush_at_ns:
            self._flush(out, now)
        ping = self._heartbeat.ping_due(now)
        if ping is not None:
            out.append(Send(message=ping))
        for request_id in self._frames.stalled(now):
            out.extend(self._give_up(self._requests[request_id], Reason.STALLED))
        self._part_when_done(out, now)
        return tuple(out)

    # --- frames ------------------------------------------------------------------------------------------

    def _flush(self, out: list[Effect], now: int) -> None:
        """One frame with what credit allows of all requests, then the receipts and closings that follow from it."""
        chunks, touched = self._frames.take(now)
        if chunks:
            frame, data = encode_frame(chunks)
            out.append(Send(message=frame, encoded=data))
        for request in touched:
            self._after_flush(request, out)
        out.extend(Emit(event=OutputDrained(id=request_id)) for request_id in self._frames.take_drained())

    def _after_flush(self, request: ServedRequest, out: list[Effect]) -> None:
        seal = request.seal
        assert seal is not None
        if seal.is_ended:
            body = self._send_receipt(request, out, final=True)
            self._forget(request)
            out.append(Emit(event=RequestClosed(id=request.id, receipt=body, is_ended=True)))
        elif seal.completion_tokens - request.receipt_tokens >= bounds.RECEIPT_TOKENS:
            self._send_receipt(request, out, final=False)

    def _send_receipt(self, request: ServedRequest, out: list[Effect], *, final: bool) -> ReceiptBody:
        assert request.seal is not None
        body = receipt_body(
            due=self._due,
            network=self._network,
            session=request.session,
            request_id=request.id,
            number=request.receipt_number,
            header=request.header,
            offer=request.offer,
            chunks=request.seal,
            cached_tokens=request.cached_tokens,
            final=final,
        )
        out.append(Send(message=sign_receipt(body, self._network, self._sign)))
        request.receipt_number += 1
        request.receipt_tokens = body.completion_tokens
        return body

    # --- endings -----------------------------------------------------------------------------------------

    def _find(self, request_id: int) -> ServedRequest | None:
        """The request, or None when it has closed meanwhile; an id that never was is our bug."""
        if request_id > self._last_id:
            raise LocalProtocolError(f"request {request_id} was never opened")
        return None if self._is_closed else self._requests.get(request_id)

    def _is_another_running(self, request_id: int) -> bool:
        return any(
            other.seal is not None and other.id != request_id and not self._frames.is_blocked(other.id)
            for other in self._requests.values()
        )

    def _give_up(self, request: ServedRequest, reason: Reason) -> Effects:
        out: list[Effect] = [Emit(event=RequestCancelled(id=request.id, reason=reason.value))]
        self._close_unfinished(request, reason, "", out)
        return tuple(out)

    def _close_unfinished(self, request: ServedRequest, reason: Reason, detail: str, out: list[Effect]) -> None:
        """Refuse what was not accepted; else a receipt for what was delivered, and Failed."""
        body: ReceiptBody | None = None
        if request.seal is None:
            out.append(_refused(request.id, reason, 0, detail))
        else:
            if request.seal.number > 0:
                body = self._send_receipt(request, out, final=True)
            detail = detail[: limits.DETAIL_CHARS_MAX]
            out.append(Send(message=Failed(id=request.id, reason=reason.value, detail=detail)))
        self._forget(request)
        out.append(Emit(event=RequestClosed(id=request.id, receipt=body)))

    def _forget(self, request: ServedRequest) -> None:
        del self._requests[request.id]
        self._frames.remove(request)

    def _part_when_done(self, out: list[Effect], now: int) -> None:
        if self._requests or self._held or self._is_closed:
            return
        drained = self._draining_since_ns is not None and now - self._draining_since_ns >= bounds.DRAIN_GRACE_NS
        if drained or self._client_left:
            self._is_closed = True
            out.append(Disconnect(why=None))

    def _close(self, why: CocoonError | None) -> list[Effect]:
        self._is_closed = True
        out: list[Effect] = [
            Emit(event=RequestCancelled(id=request_id, reason="disconnected")) for request_id in self._requests
        ]
        self._requests.clear()
        self._held.take_all()
        self._frames.clear()
        self._handshake.clear()
        out.append(Disconnect(why=why))
        return out


def _refused(request_id: int, reason: Reason, retry_after_ms: int = 0, detail: str = "") -> Send:
    return Send(
        message=Refused(
            id=request_id,
            reason=reason.value,
            retry_after_ms=min(retry_after_ms, 0xFFFF_FFFF),
            detail=detail[: limits.DETAIL_CHARS_MAX],
        )
    )
