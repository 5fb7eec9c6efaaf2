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
from dataclasses import dataclass

from ..errors import (
    CocoonError,
    DecodeError,
    LimitExceeded,
    LocalProtocolError,
    RemoteProtocolError,
    SealError,
    Unavailable,
)
from ..ports.engine import Delta
from ..types import Digest, FinishReason, Network, PeerId, Secret, Usage
from ..wire import limits
from ..wire.codec import decode, decode_as
from ..wire.messages import (
    VERSION,
    Accepted,
    Authenticate,
    Cancel,
    Chunk,
    Credit,
    Evidence,
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
    SealedRequest,
    SessionAuthentication,
    SessionMessage,
    Voucher,
)
from ..wire.signing import domain_hash
from . import bounds, sealing
from .admission import declared_refusal
from .chunks import ChunkSeal, chain_start, encode_frame
from .effects import Disconnect, Effect, Effects, Emit, Send
from .events import (
    AuthenticationReceived,
    HelloReceived,
    OfferFacts,
    OutputDrained,
    RequestCancelled,
    RequestClosed,
    RequestOpened,
    SessionDraining,
    VoucherReceived,
)
from .heartbeat import Heartbeat
from .outbox import ServedRequest
from .reasons import Reason
from .receipts import Sign, Verify, receipt_body, sign_receipt


@dataclass(slots=True, kw_only=True)
class _Context:
    """What one Hello established."""

    session: Digest
    sealing_key: bytes  # public half
    ends_ns: int | None  # set when a newer one replaced it
    account: bytes | None = None  # proven by S2 and confirmed by the role
    claimed_account: bytes | None = None


class ProviderSession:
    """See the file's head. `offers` finds an offer of ours by digest; `sign` is P's signature; `keys` holds E."""

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
        now: int,
    ) -> None:
        self._network = network
        self._peer = peer
        self._client = client
        self._keys = keys
        self._crypto = crypto
        self._entropy = entropy
        self._sign = sign
        self._verify = verify
        self._offers = offers
        self._heartbeat = Heartbeat(now=now)
        self._hello: Hello | None = None  # unanswered
        self._hello_times: list[int] = []
        self._contexts: dict[bytes, _Context] = {}  # by session prefix, oldest first
        self._requests: dict[int, ServedRequest] = {}
        self._last_id = -1
        self._ready: dict[int, None] = {}  # ids with output that credit allows, oldest first
        self._blocked: dict[int, int] = {}  # ids with output that waits for credit, and since when
        self._full: set[int] = set()
        self._buffered_bytes = 0
        self._flush_at_ns: int | None = None
        self._flushed_ns = now - bounds.FRAME_INTERVAL_NS
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
        return request_id in self._full

    def deadline(self) -> int | None:
        """When `on_time` has work, in ns; None when finished."""
        if self._is_closed:
            return None
        when = self._heartbeat.deadline()
        if self._flush_at_ns is not None and self._flush_at_ns < when:
            when = self._flush_at_ns
        if self._blocked:
            when = min(when, min(self._blocked.values()) + bounds.STALL_NS)
        if self._draining_since_ns is not None and not self._requests:
            when = min(when, self._draining_since_ns + bounds.DRAIN_GRACE_NS)
        return when

    # --- from the peer -----------------------------------------------------------------------------------

    def receive_bytes(self, data: bytes, *, now: int) -> Effects:
        """One frame's bytes. What is no message of this protocol disconnects."""
        if self._is_closed:
            return ()
        try:
            message: Message = decode(data, SessionMessage, bytes_max=limits.SESSION_FRAME_BYTES_MAX)
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
                self._cancel(message, out)
            case Ping():
                out.append(Send(message=self._heartbeat.answer(message, now)))
            case Pong():
                pass
            case Hello():
                self._say_hello(message, out, now)
            case Authenticate():
                self._authenticate(message, out, now)
            case Voucher():
                out.append(Emit(event=VoucherReceived(voucher=message.voucher, signature=message.signature)))
            case Goodbye():
                self._client_left = True
                out.append(Emit(event=SessionDraining(reason=message.reason)))
            case _:
                raise DecodeError(f"a client does not send {type(message).__name__}")

    def _say_hello(self, hello: Hello, out: list[Effect], now: int) -> None:
        if hello.version != VERSION or hello.network != int(self._network):
            raise DecodeError("a hello for another version or network")
        self._hello_times = [at for at in self._hello_times if now - at < bounds.HELLO_AGAIN_NS]
        if self._hello is not None or len(self._hello_times) >= bounds.HELLOS_PER_PERIOD_MAX:
            raise LimitExceeded("too many hellos")
        self._hello_times.append(now)
        self._hello = hello
        out.append(Emit(event=HelloReceived(hello=hello)))

    def _context(self, prefix: bytes, now: int) -> tuple[_Context, sealing.SealingKey] | None:
        """The live context with that prefix and its key."""
        context = self._contexts.get(prefix)
        if context is None or (context.ends_ns is not None and now >= context.ends_ns):
            return None
        key = self._keys.find(context.sealing_key, now)
        return None if key is None else (context, key)

    def _authenticate(self, message: Authenticate, out: list[Effect], now: int) -> None:
        found = self._context(message.session_prefix, now)
        if found is None:
            return  # a paid Open will be refused as stale
        context, key = found
        if context.claimed_account is not None:
            raise LimitExceeded("authenticated twice")
        plaintext = self._crypto.open(key.private, message.sealed, sealing.authentication_info(context.session))
        claim = decode_as(plaintext, SessionAuthentication, bytes_max=512)
        signed = sealing.authentication_bytes(self._network, context.session, claim.account, claim.payout)
        self._verify(claim.voucher_key, claim.signature, signed)
        context.claimed_account = claim.account
        out.append(
            Emit(
                event=AuthenticationReceived(
                    session=context.session,
                    account=claim.account,
                    voucher_key=claim.voucher_key,
                    payout=claim.payout,
                )
            )
        )

    def _open(self, message: Open, out: list[Effect], now: int) -> None:
        if message.id <= self._last_id:
            raise RemoteProtocolError("a request id that does not rise")
        header = decode_as(message.header, OpenHeader, bytes_max=256)
        if not bounds.CREDIT_BYTES_MIN <= message.credit_bytes <= bounds.CREDIT_BYTES_MAX:
            raise LimitExceeded("a credit window out of bounds")
        self._last_id = message.id
        opened = self._admit(message, header, now)
        if isinstance(opened, Reason):
            out.append(_refused(message.id, opened))
        else:
            out.append(Emit(event=opened))

    def _admit(self, message: Open, header: OpenHeader, now: int) -> RequestOpened | Reason:
        """Checks on declared sizes, then the seal; registers the request only when all passed."""
        if self._draining_since_ns is not None or self._client_left:
            return Reason.DRAINING
        if len(self._requests) >= limits.REQUESTS_IN_FLIGHT_MAX:
            return Reason.BUSY
        found = self._context(message.session_prefix, now)
        if found is None:
            return Reason.STALE_KEY if self._contexts else Reason.UNKNOWN_SESSION
        context, key = found
        offer = self._offers(header.offer)
        reason = declared_refusal(header, offer, account=context.account, now=now)
        if reason is not None or offer is None:
            return reason or Reason.UNKNOWN_OFFER
        info = sealing.request_info(context.session, message.id, message.header)
        try:
            plaintext = sealing.unpad_request(self._crypto.open(key.private, message.sealed, info))
            request = decode_as(plaintext, SealedRequest, bytes_max=sealing.PLAINTEXT_BYTES_MAX)
        except (SealError, DecodeError, LimitExceeded):
            return Reason.SEAL  # one answer for all (S6)
        self._requests[message.id] = ServedRequest(
            request_id=message.id,
            session=context.session,
            header=header,
            offer=offer,
            chain=chain_start(context.session, message.id, message.sealed),
            response_key=Secret(request.response_key),
            credit_bytes=message.credit_bytes,
        )
        return RequestOpened(
            id=message.id,
            header=header,
            offer=offer,
            wait_ms_max=message.wait_ms_max,
            endpoint=request.endpoint,
            body=request.body,
            cache_scope=domain_hash("cache-scope", bytes((len(header.account),)), header.account, request.cache_tag),
            voucher=message.voucher,
        )

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
        if self._blocked.pop(message.id, None) is not None:
            self._ready[message.id] = None
            self._flush_soon(now)

    def _cancel(self, message: Cancel, out: list[Effect]) -> None:
        request = self._requests.get(message.id)
        if request is None:
            self._must_be_past(message.id)
            return
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
        hello = self._hello
        if self._is_closed:
            return ()
        if hello is None:
            raise LocalProtocolError("evidence without a hello")
        provider_nonce = self._entropy(32)
        session = sealing.session_id(
            statement=statement,
            client=self._client,
            peer=self._peer,
            client_nonce=hello.client_nonce,
            provider_nonce=provider_nonce,
        )
        self._hello = None
        live = {
            prefix: context
            for prefix, context in self._contexts.items()
            if context.ends_ns is None or now < context.ends_ns
        }
        for context in live.values():
            if context.ends_ns is None:
                context.ends_ns = now + bounds.KEY_GRACE_NS
        prefix = session[: sealing.SESSION_PREFIX_BYTES]
        self._contexts = {**live, prefix: _Context(session=session, sealing_key=sealing_key, ends_ns=None)}
        message = Evidence(
            statement=statement,
            operator_signature=operator_signature,
            peer_signature=peer_signature,
            provider_nonce=provider_nonce,
            hardware=hardware,
        )
        return (Send(message=message),)

    def authenticated(self, *, session: Digest, account: bytes) -> None:
        """V of the last `AuthenticationReceived` is proven to be the account's: paid requests may come."""
        context = self._contexts.get(session[: sealing.SESSION_PREFIX_BYTES])
        if context is None or context.session != session:
            return  # replaced meanwhile
        if context.claimed_account != account:
            raise LocalProtocolError("this session did not claim that account")
        context.account = account

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
        self._buffered_bytes += request.buffered_bytes - before
        if request.buffered_bytes > bounds.BUFFER_BYTES_MAX:
            return self._give_up(request, Reason.STALLED)
        if request.buffered_bytes >= bounds.BUFFER_BYTES_HIGH or (
            before > 0 and self._buffered_bytes >= bounds.SESSION_BUFFER_BYTES_HIGH
        ):
            self._full.add(request_id)
        if request_id not in self._blocked:
            self._ready[request_id] = None
            self._flush_soon(now, urgent=request.seal.number == 0)
        return ()

    def finish(self, request_id: int, finish_reason: FinishReason, usage: Usage, *, now: int) -> Effects:
        """End it. Of `usage` only `cached_tokens` counts: the rest is what was accepted and delivered."""
        request = self._find(request_id)
        if request is None:
            return ()
        if request.seal is None or request.finish_reason is not None:
            raise LocalProtocolError(f"request {request_id} cannot end now")
        request.finish_reason = finish_reason
        request.cached_tokens = min(usage.cached_tokens, request.seal.prompt_tokens or 0)
        if request_id not in self._blocked:
            self._ready[request_id] = None
            self._flush_soon(now, urgent=not self._is_another_running(request_id))
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
        if self._flush_at_ns is not None and now >= self._flush_at_ns:
            self._flush(out, now)
        ping = self._heartbeat.ping_due(now)
        if ping is not None:
            out.append(Send(message=ping))
        for request_id, since in list(self._blocked.items()):
            if now - since >= bounds.STALL_NS:
                out.extend(self._give_up(self._requests[request_id], Reason.STALLED))
        self._part_when_done(out, now)
        return tuple(out)

    # --- frames ------------------------------------------------------------------------------------------

    def _flush_soon(self, now: int, *, urgent: bool = False) -> None:
        when = now if urgent else max(now, self._flushed_ns + bounds.FRAME_INTERVAL_NS)
        if self._flush_at_ns is None or when < self._flush_at_ns:
            self._flush_at_ns = when

    def _flush(self, out: list[Effect], now: int) -> None:
        """One frame with what credit allows of all requests, then the receipts and closings that follow from it."""
        chunks: list[Chunk] = []
        touched: list[ServedRequest] = []
        size = 0
        for request_id in list(self._ready):
            request = self._requests[request_id]
            before = request.buffered_bytes
            while len(chunks) < limits.FRAME_CHUNKS_MAX and size < bounds.FLUSH_BYTES_MAX:
                chunk = request.next_chunk()
                if chunk is None:
                    del self._ready[request_id]
                    if request.has_output:
                        self._blocked[request_id] = now
                    break
                chunks.append(chunk)
                size += len(chunk.sealed)
                if chunk.final or not request.has_output:
                    del self._ready[request_id]
                    break
            self._buffered_bytes += request.buffered_bytes - before
            touched.append(request)
        self._flush_at_ns = None
        if chunks:
            frame, data = encode_frame(chunks)
            out.append(Send(message=frame, encoded=data))
            self._flushed_ns = now
        for request in touched:
            self._after_flush(request, out)
        if self._ready:
            self._flush_soon(now)
        if self._full:
            self._tell_drained(out)

    def _after_flush(self, request: ServedRequest, out: list[Effect]) -> None:
        seal = request.seal
        assert seal is not None
        if seal.is_ended:
            body = self._send_receipt(request, out, final=True)
            self._forget(request)
            out.append(Emit(event=RequestClosed(id=request.id, receipt=body)))
        elif seal.completion_tokens - request.receipt_tokens >= bounds.RECEIPT_TOKENS:
            self._send_receipt(request, out, final=False)

    def _tell_drained(self, out: list[Effect]) -> None:
        for request_id in sorted(self._full):
            own = self._requests[request_id].buffered_bytes
            if own == 0 or (own <= bounds.BUFFER_BYTES_LOW and self._buffered_bytes <= bounds.SESSION_BUFFER_BYTES_LOW):
                self._full.discard(request_id)
                out.append(Emit(event=OutputDrained(id=request_id)))

    def _send_receipt(self, request: ServedRequest, out: list[Effect], *, final: bool) -> ReceiptBody:
        assert request.seal is not None
        body = receipt_body(
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
            other.seal is not None and other.id != request_id and other.id not in self._blocked
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
        self._requests.pop(request.id, None)
        self._ready.pop(request.id, None)
        self._blocked.pop(request.id, None)
        self._full.discard(request.id)
        self._buffered_bytes -= request.buffered_bytes

    def _part_when_done(self, out: list[Effect], now: int) -> None:
        if self._requests or self._is_closed:
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
        for table in (self._requests, self._ready, self._blocked, self._contexts):
            table.clear()
        self._full.clear()
        self._buffered_bytes = 0
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
