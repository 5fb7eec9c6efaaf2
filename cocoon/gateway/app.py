"""The gateway's ASGI app: routes, and one boundary for errors. It knows no server; `server` runs it.

Every request passes `guard` first. Generations are in `answer`, their objects in `objects` and `sse`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..client.interface import ClientRole
from ..errors import CocoonError, ModelNotFound
from ..ports import Clock
from ..serve.openai import CHAT, COMPLETIONS, NormalisedRequest, normalise
from ..status import Status
from ..status.metrics import CONTENT_TYPE, exposition
from ..types import SECOND_NS
from .answer import Answer, AnswerForm, CompletionForm, ResponsesForm
from .asgi import AsgiApp, Receive, Scope, Send, response_body, response_start
from .errors import HttpRefusal, http_error
from .generation import GatewayRecord
from .guard import ClientGone, Guard, read_json
from .objects import model_objects
from .responses import read_responses
from .settings import GatewaySettings
from .spend import SpendLedger

log = logging.getLogger("cocoon.gateway")

MODELS_WAIT_S: Final = 2.0  # a gateway that just started has heard of nobody yet
NEAR_MATCHES_MAX: Final = 3

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
StatusSource = Callable[[], Awaitable[Status]]


def build_app(
    role: ClientRole,
    settings: GatewaySettings,
    clock: Clock,
    ledger: SpendLedger,
    *,
    hosts: frozenset[bytes],
    record: GatewayRecord | None = None,
    status: StatusSource | None = None,
) -> AsgiApp:
    """The whole gateway as one ASGI app, guarded. `hosts` are the exact Host values that mean us.

    `record` is filled as requests come; without `status` there is no `/metrics`.
    """
    gateway = _Gateway(role, settings, clock, ledger, record or GatewayRecord(), status)
    routes = [
        Route("/v1/models", Endpoint(gateway.list_models), methods=["GET"]),
        Route("/v1/models/{model:path}", Endpoint(gateway.show_model), methods=["GET"]),
        Route("/v1/chat/completions", Endpoint(gateway.chat), methods=["POST"]),
        Route("/v1/completions", Endpoint(gateway.complete), methods=["POST"]),
        Route("/v1/responses", Endpoint(gateway.respond), methods=["POST"]),
        Route("/healthz", Endpoint(gateway.health), methods=["GET"]),
    ]
    if status is not None:
        routes.append(Route("/metrics", Endpoint(gateway.metrics), methods=["GET"]))
    app = Starlette(routes=routes, exception_handlers={HTTPException: on_http_exception})
    app.router.redirect_slashes = False  # a redirect would be built from the Host header
    return Guard(app, hosts=hosts, api_keys=settings.api_keys)


class Endpoint:
    """A raw ASGI endpoint with the error boundary; Starlette's own per-request objects cost more than they give."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Supervision boundary: a failing request is answered, and harms no other."""
        try:
            await self._handler(scope, receive, send)
            return
        except ClientGone:
            return
        except CocoonError as caught:
            error = http_error(caught)
        except Exception as caught:  # the boundary named above
            log.exception("request.crashed")
            error = http_error(caught)
        await send(response_start(error.status, error.headers))
        await send(response_body(error.body, more=False))


class _Gateway:
    def __init__(
        self,
        role: ClientRole,
        settings: GatewaySettings,
        clock: Clock,
        ledger: SpendLedger,
        record: GatewayRecord,
        status: StatusSource | None,
    ) -> None:
        self._role = role
        self._settings = settings
        self._clock = clock
        self._ledger = ledger
        self._started_s = clock.now() // SECOND_NS
        self._record = record
        self._status = status

    async def chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/chat/completions"""
        await self._generate(CHAT, scope, receive, send)

    async def complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/completions"""
        await self._generate(COMPLETIONS, scope, receive, send)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/responses"""
        request = read_responses(await self._read(scope, receive))
        await self._run(request.chat, ResponsesForm(request), receive, send)

    async def list_models(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /v1/models"""
        models = await self._models()
        await send_json(send, {"object": "list", "data": list(models.values())})

    async def show_model(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /v1/models/{id}; the id may be a name or name@digest."""
        wanted: str = scope["path_params"]["model"]
        models = await self._models()
        name, _, digest = wanted.partition("@")
        found = models.get(wanted)
        if found is None and digest:
            same_name = (one for key, one in models.items() if key.partition("@")[0] == name)
            found = next((one for one in same_name if one["x_cocoon"]["digest"] == digest.lower()), None)
        if found is None:
            near = difflib.get_close_matches(wanted, models, n=NEAR_MATCHES_MAX) or sorted(
                key for key in models if key.partition("@")[0] == name
            )
            hint = f"; near matches: {', '.join(near)}" if near else ""
            raise ModelNotFound(f"nobody offers the model {wanted[:64]!r}{hint}", param="model")
        await send_json(send, found)

    async def health(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /healthz"""
        await send_json(
            send,
            {
                "status": "ok",
                "peer": self._role.peer,
                "connections": len(self._role.connections()),
                "requests_running": self._record.running,
                "spent_today_nano": self._ledger.spent_nano,
                "reserved_nano": self._ledger.reserved_nano,
            },
        )

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /metrics"""
        assert self._status is not None
        await send_metrics(send, await self._status())

    async def _generate(self, endpoint: str, scope: Scope, receive: Receive, send: Send) -> None:
        request = normalise(endpoint, await self._read(scope, receive))
        await self._run(request, CompletionForm(request), receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        settings = self._settings
        return await read_json(
            scope,
            receive,
            bytes_max=settings.body_bytes_max,
            depth_max=settings.json_depth_max,
            timeout_s=settings.body_timeout_s,
        )

    async def _run(self, request: NormalisedRequest, form: AnswerForm, receive: Receive, send: Send) -> None:
        settings = self._settings
        if self._record.running + request.n > settings.requests_max:
            raise HttpRefusal(429, "too_many_requests", "the gateway runs as many requests as it may", retry_after_s=1)
        self._record.running += request.n
        self._record.requests += 1
        try:
            await Answer(self._role, settings, self._ledger, self._clock, request, form, self._record).serve(
                receive, send
            )
        finally:
            self._record.running -= request.n

    async def _models(self) -> dict[str, dict[str, Any]]:
        return model_objects(await self._role.offers(wait_s=MODELS_WAIT_S), created=self._started_s)


async def send_metrics(send: Send, status: Status) -> None:
    """What `/metrics` answers."""
    await _send_whole(send, exposition(status).encode(), CONTENT_TYPE.encode())


async def send_json(send: Send, value: Any) -> None:
    """A whole answer."""
    await _send_whole(send, msgspec.json.encode(value), b"application/json")


async def _send_whole(send: Send, body: bytes, content_type: bytes) -> None:
    await send(response_start(200, [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]))
    await send(response_body(body, more=False))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = HttpRefusal(405, "method_not_allowed", f"{request.method[:16]} is not possible on this path")
    else:
        refusal = HttpRefusal(error.status_code, "unknown_url", "no such path; OpenAI's API begins at /v1")
    answer = http_error(refusal)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, status_code=answer.status, headers=headers | dict(error.headers or {}))
