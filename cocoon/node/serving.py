"""One client's session at a provider: the machine, its stream, and an engine run per request.

Admission works on what the client declared, then on what the engine counts; whatever is refused is unbilled and
costs the engine nothing. Output that the client does not take yet pauses the reading of that request's engine
events, so memory stays bounded by its declared output; a request that is cancelled frees its slot at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from ..errors import CocoonError, InvalidRequest, LimitExceeded, Unavailable
from ..pay.metering import vested_due_nano
from ..pay.refusals import PaymentRefused
from ..ports import Clock, Delta, Engine, Entropy, Finished, GenerationRequest, Stream
from ..pump import SessionPump
from ..serve.events import (
    AuthenticationReceived,
    HelloReceived,
    OfferFacts,
    OutputDrained,
    RequestCancelled,
    RequestClosed,
    RequestOpened,
    VoucherReceived,
)
from ..serve.openai import generation_request
from ..serve.provider_session import ProviderSession
from ..serve.reasons import Reason
from ..serve.receipts import Verify
from ..serve.sealing import Crypto, SealingKeys
from ..types import MILLISECOND_NS, SECOND_NS, Digest, Network, PeerId
from .earning import Earnings
from .evidence import EvidenceMaker, HelloLimiter
from .paying_client import PayingClient, words_of

log = logging.getLogger("cocoon.node")

BUSY_RETRY_MS: Final = 1_000
ADMITTING_MAX: Final = 128
"""Requests of all sessions whose tokens are being counted: each holds its prompt, of up to 1 MiB."""


@dataclass(slots=True, kw_only=True)
class ServingRecord:
    """What this provider has done since it started. Counts only, never content."""

    sessions: int = 0
    requests: int = 0
    admitting: int = 0  # opened, and their tokens are being counted
    running: int = 0  # accepted and not over: decoding, or waiting for a slot
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_ms: list[float] = field(default_factory=list)  # the newest SAMPLES_MAX
    tokens_per_s: list[float] = field(default_factory=list)
    service_ms: list[float] = field(default_factory=list)  # from accepted to over


SAMPLES_MAX: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What all sessions of a provider share."""

    network_id: Network
    peer_key: bytes
    sign: Callable[[bytes], bytes]
    verify: Verify
    crypto: Crypto
    keys: SealingKeys
    engine: Engine
    offers: Callable[[Digest], OfferFacts | None]
    evidence: EvidenceMaker
    hellos: HelloLimiter
    clock: Clock
    entropy: Entropy
    queue_max: int
    record: ServingRecord
    load_changed: Callable[[], None]
    earnings: Earnings | None  # None: no payment is asked for


class ServedSession:
    """Runs one session until the client leaves."""

    def __init__(self, stream: Stream, shared: Serving) -> None:
        self._shared = shared
        self._peer: PeerId = stream.peer
        self._machine = ProviderSession(
            network=shared.network_id,
            peer=shared.peer_key,
            client=stream.peer,
            keys=shared.keys,
            crypto=shared.crypto,
            entropy=shared.entropy,
            sign=shared.sign,
            verify=shared.verify,
            offers=shared.offers,
            due=vested_due_nano,
            gate=shared.earnings,
            now=shared.clock.now(),
        )
        self._pump = SessionPump(stream, self._machine, shared.clock, self._on_event)
        self._scopes: dict[int, trio.CancelScope] = {}
        self._drained: dict[int, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._payer: PayingClient | None = None
        if shared.earnings is not None:
            self._payer = PayingClient(self._machine, self._pump, shared.earnings, shared.clock, stop=self._stop)
        self.used_ns = shared.clock.now()  # when a request came or went
        self.is_ending = False

    @property
    def requests_open(self) -> int:
        """Requests being served."""
        return self._machine.requests_open

    async def run(self) -> None:
        """Serve until the stream ends; its engine runs end with it."""
        self._shared.record.sessions += 1
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._pump.run()
                nursery.cancel_scope.cancel()
        finally:
            if self._payer is not None:
                self._payer.left()
        if self._pump.reason is not None:
            log.info("session.ended", extra={"peer": self._peer, "error": self._pump.reason.code})

    def drain(self) -> None:
        """Take no new requests; the stream ends with the last one."""
        self._pump.perform(self._machine.drain(now=self._now()))

    def end(self) -> None:
        """Hang up now, to make room for another client."""
        self.is_ending = True
        self._pump.end(LimitExceeded("the place of an idle session was needed"))

    def _now(self) -> int:
        return self._shared.clock.now()

    def _stop(self, request_id: int) -> None:
        if request_id in self._scopes:
            self._scopes[request_id].cancel()

    def _on_event(self, event: object) -> None:
        assert self._nursery is not None
        match event:
            case HelloReceived():
                self._nursery.start_soon(self._answer_hello, event)
            case RequestOpened():
                self.used_ns = self._now()
                scope = self._scopes[event.id] = trio.CancelScope()  # here: a Cancel may come before the task runs
                self._nursery.start_soon(self._serve, event, scope)
            case RequestCancelled():
                self._shared.record.cancelled += 1
                self._stop(event.id)
                if self._payer is not None:
                    self._payer.cancelled(event.id)
            case OutputDrained():
                if event.id in self._drained:
                    self._drained[event.id].set()
            case RequestClosed(receipt=receipt):
                self.used_ns = self._now()
                if self._payer is not None:
                    self._payer.closed(event)
                if receipt is not None:
                    self._shared.record.prompt_tokens += receipt.prompt_tokens
                    self._shared.record.completion_tokens += receipt.completion_tokens
            case AuthenticationReceived():
                if self._payer is not None:
                    self._nursery.start_soon(self._payer.authenticate, event)
            case VoucherReceived():
                if self._payer is not None:
                    self._payer.voucher(event)
            case _:
                pass

    async def _answer_hello(self, event: HelloReceived) -> None:
        shared = self._shared
        try:
            shared.hellos.take(self._peer, now=self._now())
            sealing_key = shared.keys.current(self._now()).public
            signed = await shared.evidence.evidence(nonce=event.hello.nonce, sealing_key=sealing_key)
        except LimitExceeded as error:
            self._pump.end(error)
            return
        except CocoonError as error:
            log.error("evidence.failed", extra={"error": error.code})
            self._pump.end(Unavailable("evidence could not be made"))
            return
        self._pump.perform(
            self._machine.evidence(
                statement=signed.statement,
                operator_signature=signed.operator_signature,
                peer_signature=signed.peer_signature,
                sealing_key=sealing_key,
                hardware=signed.hardware,
                now=self._now(),
            )
        )

    async def _serve(self, event: RequestOpened, scope: trio.CancelScope) -> None:
        with scope:
            try:
                request = await self._admit(event)
                if request is not None:
                    try:
                        await self._generate(event, request)
                    finally:
                        self._shared.record.running -= 1
            finally:
                self._scopes.pop(event.id, None)
                self._drained.pop(event.id, None)
                self._shared.load_changed()

    async def _admit(self, event: RequestOpened) -> GenerationRequest | None:
        """The request to run, accepted; or None, refused."""
        shared = self._shared
        offer = event.offer
        if shared.record.admitting >= ADMITTING_MAX or self._place_in_queue() > shared.queue_max:
            self._refuse(event.id, Reason.BUSY, retry_after_ms=max(BUSY_RETRY_MS, self._wait_ms(1)))
            return None
        shared.record.admitting += 1
        try:
            request = generation_request(event.endpoint, event.body, cache_scope=event.cache_scope)
            prompt_tokens = await shared.engine.count_prompt_tokens(request)
        except InvalidRequest as error:
            if error.kind == "context_length_exceeded":
                self._refuse(event.id, Reason.CONTEXT_OVERFLOW, detail=str(error))
                return None
            self._refuse(event.id, Reason.INVALID_REQUEST, detail=str(error))
            return None
        except CocoonError as error:
            log.error("engine.failed", extra={"error": error.code})
            self._refuse(event.id, Reason.ENGINE_FAILED)
            return None
        finally:
            shared.record.admitting -= 1
        room = min(offer.context_tokens_max, shared.engine.info.context_tokens_max) - prompt_tokens
        if room < 1:
            detail = (
                f"this model's maximum context length is {offer.context_tokens_max} tokens; "
                f"the prompt has {prompt_tokens}"
            )
            self._refuse(event.id, Reason.CONTEXT_OVERFLOW, detail=detail)
            return None
        output_tokens_max = int(request.body["max_tokens"])
        declared = event.header.input_tokens_max + event.header.output_tokens_max
        if prompt_tokens > event.header.input_tokens_max and declared >= offer.context_tokens_max:
            # The client left the prompt all the room there is: with the answer it wants, it does not fit.
            detail = (
                f"this model's maximum context length is {offer.context_tokens_max} tokens; the request has "
                f"{prompt_tokens + output_tokens_max} ({prompt_tokens} in the prompt, {output_tokens_max} wanted)"
            )
            self._refuse(event.id, Reason.CONTEXT_OVERFLOW, detail=detail)
            return None
        if prompt_tokens > event.header.input_tokens_max or output_tokens_max > event.header.output_tokens_max:
            self._refuse(event.id, Reason.TOO_LARGE, detail="larger than its header declares")
            return None
        if self._payer is not None and offer.is_paid:
            try:
                await self._payer.admit(event, prompt_tokens=prompt_tokens)
            except PaymentRefused as refusal:
                self._refuse(event.id, Reason.PAYMENT_REQUIRED, detail=words_of(refusal))
                return None
        queue_position = self._place_in_queue()
        if queue_position > 0 and (
            queue_position > shared.queue_max or self._wait_ms(queue_position) > event.wait_ms_max
        ):
            self._refuse(event.id, Reason.BUSY, retry_after_ms=max(BUSY_RETRY_MS, self._wait_ms(1)))
            return None
        shared.record.requests += 1
        shared.record.running += 1  # before anything can wait, so that requests of one moment see one another
        self._pump.perform(
            self._machine.accept(event.id, prompt_tokens=prompt_tokens, queue_position=queue_position, now=self._now())
        )
        if output_tokens_max > room:
            return GenerationRequest(
                endpoint=request.endpoint,
                body={**request.body, "max_tokens": room},
                cache_tag=request.cache_tag,
            )
        return request

    def _place_in_queue(self) -> int:
        """Of one more request: 0 when there is a slot for it."""
        return max(0, self._shared.record.running + 1 - self._shared.engine.info.slots)

    def _wait_ms(self, queue_position: int) -> int:
        """What a place in the queue costs, from what requests took lately."""
        served = self._shared.record.service_ms[-16:]
        typical_ms = sorted(served)[len(served) // 2] if served else 0.0
        return int(typical_ms * queue_position / max(1, self._shared.engine.info.slots))

    def _refuse(self, request_id: int, reason: Reason, *, retry_after_ms: int = 0, detail: str = "") -> None:
        self._shared.record.refused += 1
        if self._payer is not None:
            self._payer.failed(request_id)
            self._payer.cancelled(request_id)
        self._pump.perform(
            self._machine.refuse(request_id, reason, retry_after_ms=retry_after_ms, detail=detail, now=self._now())
        )

    async def _generate(self, event: RequestOpened, request: GenerationRequest) -> None:
        shared = self._shared
        shared.load_changed()
        started_ns = self._now()
        first_ns = 0
        tokens = 0
        try:
            async with shared.engine.generate(request) as events:
                async for piece in events:
                    if isinstance(piece, Finished):
                        self._pump.perform(
                            self._machine.finish(event.id, piece.finish_reason, piece.usage, now=self._now())
                        )
                        break
                    first_ns = first_ns or self._now()
                    tokens += len(piece.token_ids)
                    await self._put(event.id, piece)
        except CocoonError as error:
            shared.record.failed += 1
            log.error("engine.failed", extra={"error": error.code})
            reason = Reason.INVALID_REQUEST if isinstance(error, InvalidRequest) else Reason.ENGINE_FAILED
            detail = str(error) if isinstance(error, InvalidRequest) else ""
            if self._payer is not None:
                self._payer.failed(event.id)
            self._pump.perform(self._machine.fail(event.id, reason, detail=detail, now=self._now()))
            return
        _keep(shared.record.service_ms, (self._now() - started_ns) / MILLISECOND_NS)
        if first_ns:
            _keep(shared.record.first_token_ms, (first_ns - started_ns) / MILLISECOND_NS)
            if tokens > 1 and self._now() > first_ns:
                _keep(shared.record.tokens_per_s, (tokens - 1) * SECOND_NS / (self._now() - first_ns))

    async def _put(self, request_id: int, delta: Delta) -> None:
        self._pump.perform(self._machine.output(request_id, delta, now=self._now()))
        if self._machine.is_full(request_id):
            drained = self._drained[request_id] = trio.Event()
            await drained.wait()


def _keep(samples: list[float], value: float) -> None:
    samples.append(value)
    if len(samples) > SAMPLES_MAX:
        del samples[0]
