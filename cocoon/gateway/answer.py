"""One answer, from a normalised request to the last byte: streaming or whole, with its money and its end.

Until the first delta has come nothing is sent, so that every failure before it is a proper HTTP error. A client
that leaves cancels at the provider at once. After the first byte of a stream a failure is an error event, and the
stream ends without `[DONE]`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
import trio

from ..client.interface import ClientRole
from ..errors import CocoonError, PriceTooHigh, StoreError, Unavailable
from ..ports import Clock
from ..serve.openai import CHAT, NormalisedRequest, prompt_tokens_upper_bound
from ..types import SECOND_NS, FinishReason, Nano, due_nano
from .asgi import Headers, Receive, Send, response_body, response_start
from .errors import HttpError, http_error
from .generation import Choice, Event, GatewayRecord, Trace, open_generations
from .objects import WholeChoice, chat_logprobs, usage_object, x_cocoon
from .responses import ResponsesRequest, finished, new_id, response_object, whole_output
from .responses_sse import ResponsesEncoder
from .settings import GatewaySettings
from .spend import Reservation, SpendLedger
from .sse import ChunkEncoder, error_event

log = logging.getLogger("cocoon.gateway")

OFFERS_WAIT_S: Final = 2.0  # for the first offers of a model to be found; generating would wait for them as well

_SSE_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx in front must not hold tokens back
]


class Encoder(Protocol):
    """Makes the bytes of a streamed answer."""

    @property
    def is_finished(self) -> bool:
        """Whether the last event was encoded."""
        ...

    def encode(self, batch: Sequence[Event]) -> bytes:
        """All that a batch makes. May be empty."""
        ...

    def failed(self, error: dict[str, Any]) -> bytes:
        """The last event of a stream that broke."""
        ...


class AnswerForm(Protocol):
    """What one of OpenAI's APIs makes of an answer."""

    @property
    def response_id(self) -> str:
        """The id of this answer."""
        ...

    def encoder(self, choices: Sequence[Choice], *, model: str, created: int) -> Encoder:
        """For a stream."""
        ...

    def whole(self, choices: Sequence[Choice], whole: Sequence[WholeChoice], *, model: str, created: int) -> Any:
        """The object of an answer that is not streamed."""
        ...


class CompletionForm:
    """Chat completions and plain completions."""

    def __init__(self, request: NormalisedRequest) -> None:
        self._is_chat = request.endpoint == CHAT
        self._include_usage = request.include_usage
        self._wants_logprobs = bool(request.body.get("logprobs"))
        self.response_id = ("chatcmpl-" if self._is_chat else "cmpl-") + secrets.token_hex(12)

    def encoder(self, choices: Sequence[Choice], *, model: str, created: int) -> Encoder:
        return ChunkEncoder(
            is_chat=self._is_chat,
            response_id=self.response_id,
            created=created,
            model=model,
            choices=choices,
            include_usage=self._include_usage,
            wants_logprobs=self._wants_logprobs,
        )

    def whole(self, choices: Sequence[Choice], whole: Sequence[WholeChoice], *, model: str, created: int) -> Any:
        shown: list[dict[str, Any]] = []
        usages = []
        for choice, parts in zip(choices, whole, strict=True):
            assert choice.summary is not None
            reason = choice.summary.finish_reason.value
            form = parts.chat if self._is_chat else parts.completion
            shown.append(form(reason, wants_logprobs=self._wants_logprobs))
            usages.append(choice.summary.usage)
        return {
            "id": self.response_id,
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": created,
            "model": model,
            "choices": shown,
            "usage": usage_object(usages),
            "x_cocoon": x_cocoon(choices),
        }


class ResponsesForm:
    """The Responses API."""

    def __init__(self, request: ResponsesRequest) -> None:
        self._echo = request.echo
        self._wants_logprobs = request.wants_logprobs
        self.response_id = new_id("resp")

    def encoder(self, choices: Sequence[Choice], *, model: str, created: int) -> Encoder:
        response = response_object(response_id=self.response_id, created=created, model=model, echo=self._echo)
        return ResponsesEncoder(response=response, choice=choices[0], wants_logprobs=self._wants_logprobs)

    def whole(self, choices: Sequence[Choice], whole: Sequence[WholeChoice], *, model: str, created: int) -> Any:
        (choice,), (parts,) = choices, whole
        assert choice.summary is not None
        logprobs = chat_logprobs(parts.logprobs)["content"] if self._wants_logprobs else []
        output = whole_output(parts, logprobs, is_cut=choice.summary.finish_reason is FinishReason.LENGTH)
        response = response_object(response_id=self.response_id, created=created, model=model, echo=self._echo)
        return finished(response, output, choice)


class Answer:
    """One HTTP request for a generation. `serve` runs it once."""

    def __init__(
        self,
        role: ClientRole,
        settings: GatewaySettings,
        ledger: SpendLedger,
        clock: Clock,
        request: NormalisedRequest,
        form: AnswerForm,
        record: GatewayRecord,
    ) -> None:
        self._role = role
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._request = request
        self._form = form
        self._record = record
        self._created = clock.now() // SECOND_NS
        self._id = form.response_id
        self._choices = [Choice(index=index) for index in range(request.n)]
        self._encoder: Encoder | None = None
        self._stream_open = False
        self._status = "answered"

    async def serve(self, receive: Receive, send: Send) -> None:
        """Answer over HTTP. Raises `InvalidRequest` (no such model) and `StoreError` before anything has run.

        Returns quietly when the client has left; then the providers were told to stop.
        """
        most_nano = await self._most_nano()
        reservation = self._ledger.reserve(most_nano=most_nano, now=self._clock.now())
        last: bytes | None = None
        failure: HttpError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
                result = await self._run(send, reservation)
                last, failure = (None, result) if isinstance(result, HttpError) else (result, None)
                nursery.cancel_scope.cancel()
        finally:
            self._settle(reservation)
        # The end is sent outside the nursery: a server may report "disconnected" once the response is complete.
        if failure is not None and not self._stream_open:
            await self._send_head(send, failure.status, failure.headers)
            await send(response_body(failure.body, more=False))
        elif failure is not None:
            last = error_event(failure.error) if self._encoder is None else self._encoder.failed(failure.error)
            await send(response_body(last, more=False))
        elif last is not None:
            if not self._stream_open:
                length = (b"content-length", b"%d" % len(last))
                await self._send_head(send, 200, [(b"content-type", b"application/json"), length])
            await send(response_body(last, more=False))

    async def _most_nano(self) -> Nano:
        """The most that this request can sensibly cost: of the offers within its cap, the dearest, and one retry.

        Reserving the cap itself would let fifty requests for a thousandth of it exhaust a day's budget at once.
        """
        cap_nano = self._ledger.request_max_nano
        if cap_nano == 0:
            return 0
        request = self._request
        prompt_tokens = prompt_tokens_upper_bound(request.body)
        costs = (
            due_nano(
                offer.prices,
                input_tokens=min(prompt_tokens, offer.context_tokens_max),
                cached_tokens=0,
                output_tokens=min(request.body.get("max_tokens", offer.output_tokens_max), offer.output_tokens_max),
            )
            for offer in await self._role.offers(request.model, wait_s=OFFERS_WAIT_S)
        )
        within_cap = [cost for cost in costs if cost * request.n <= cap_nano]
        return min(cap_nano, 2 * request.n * max(within_cap)) if within_cap else cap_nano

    async def _run(self, send: Send, reservation: Reservation) -> bytes | HttpError:
        """The last bytes of the body, or why there are none.

        Supervision boundary: whatever goes wrong in one request, a bug of ours included, ends that request alone.
        """
        limit_s = self._settings.first_token_timeout_s
        try:
            with trio.move_on_after(limit_s) as deadline:
                last = await self._generate(send, reservation, deadline)
            if not deadline.cancelled_caught:
                return last
            if self._choices[0].reply is None:
                waited = f"no provider accepted and began to answer within {limit_s:g} s"
            else:
                waited = "the answer took longer than the gateway allows"
            raise Unavailable(waited, advice="Try again, or raise the gateway's time-outs.")
        except PriceTooHigh as error:
            return self._failed(self._ledger.cap_reached() if reservation.is_reduced else error)
        except CocoonError as error:
            return self._failed(error)
        except Exception as error:  # the boundary named above
            log.exception("request.crashed", extra={"request": self._id})
            return self._failed(error)

    async def _generate(self, send: Send, reservation: Reservation, deadline: trio.CancelScope) -> bytes:
        request = self._request
        started = trio.current_time()
        whole = [WholeChoice(index=choice.index) for choice in self._choices]
        last = b""
        async with open_generations(
            self._role,
            request.endpoint,
            _bodies(request),
            self._choices,
            each_nano=reservation.amount_nano // request.n,
        ) as generations:
            while batch := await generations.next_batch():
                if (encoder := self._encoder) is None:
                    deadline.deadline = started + self._settings.request_timeout_s
                    encoder = self._encoder = self._form.encoder(
                        self._choices, model=self._model_name(), created=self._created
                    )
                    if request.stream:
                        self._stream_open = True
                        await self._send_head(send, 200, _SSE_HEADERS)
                if not request.stream:
                    for choice, delta in batch:
                        if delta is not None:
                            whole[choice.index].add(delta)
                    continue
                piece = encoder.encode(batch)
                if encoder.is_finished:
                    last = piece
                elif piece:
                    await send(response_body(piece, more=True))
        log.debug("request.finished", extra={"request": self._id, "tokens": sum(c.tokens for c in self._choices)})
        return last if request.stream else self._whole_object(whole)

    def _whole_object(self, whole: Sequence[WholeChoice]) -> bytes:
        return msgspec.json.encode(
            self._form.whole(self._choices, whole, model=self._model_name(), created=self._created)
        )

    def _model_name(self) -> str:
        for choice in self._choices:
            if choice.reply is not None:
                return choice.reply.offer.model_name
        return self._request.model

    def _failed(self, error: BaseException) -> HttpError:
        self._record.failed += 1
        failure = http_error(error)
        self._status = f"failed: {failure.error['code']}"
        log.info(
            "request.failed",
            extra={"request": self._id, "status": failure.status, "code": failure.error["code"], "error": error},
        )
        return failure

    def _settle(self, reservation: Reservation) -> None:
        cost_nano = sum(choice.cost_nano() for choice in self._choices)
        record = self._record
        record.completion_tokens += sum(choice.tokens for choice in self._choices)
        replies = (choice.reply for choice in self._choices if choice.reply is not None)
        record.first_token_ms.extend(reply.first_token_ms for reply in replies if reply.first_token_ms is not None)
        record.traces.append(
            Trace(
                id=self._id,
                at_ns=self._clock.now(),
                model=self._model_name(),
                status=self._status,
                choices=tuple(choice.traced() for choice in self._choices),
            )
        )
        if cost_nano:
            record.spent.append((self._clock.now(), cost_nano))
        try:
            self._ledger.settle(reservation, cost_nano, now=self._clock.now())
        except StoreError as error:  # the reservation stays committed: the day has less, never more
            log.error("spend.not_saved", extra={"error": error})

    async def _send_head(self, send: Send, status: int, headers: Headers) -> None:
        await send(response_start(status, [*headers, (b"x-request-id", self._id.encode())]))


def _bodies(request: NormalisedRequest) -> list[Mapping[str, Any]]:
    """A body per choice. A seed moves on by one with each, or all choices would be the same."""
    body = {"model": request.model, **request.body}
    seed = body.get("seed")
    if request.n == 1 or not isinstance(seed, int):
        return [body] * request.n
    step = 1 if seed <= 0 else -1  # towards zero and past it: never out of the field's range
    return [{**body, "seed": seed + step * index} for index in range(request.n)]


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            scope.cancel()
            return
