"""One streaming question to an OpenAI-compatible API over HTTP, as an SDK would ask it. For the demo and for checks."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import trio

from ..errors import CocoonError, Unavailable
from ..types import Secret

TIMEOUT_S: Final = 120.0  # between two pieces of the answer
LINE_BYTES_MAX: Final = 1024 * 1024  # one event; the last one carries the receipt
BODY_BYTES_MAX: Final = 1024 * 1024  # of an error


class ApiRefused(CocoonError):
    """The API answered with an error object."""


@dataclass(slots=True, kw_only=True)
class Answered:
    """A whole answer, and what came with it."""

    text: str = field(default="", repr=False)
    model: str = ""
    first_token_ms: float = 0.0
    usage: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)  # `x_cocoon`


async def ask_gateway(
    base_url: str, key: Secret, *, model: str, question: str, on_text: Callable[[str], None]
) -> Answered:
    """Ask, and hand over text as it comes. Raises `ApiRefused` and `Unavailable`. Cancelled, it hangs up."""
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=TIMEOUT_S)
    try:
        # trio-typing, which libp2p brings along, shadows trio's own types with older ones.
        return await trio.to_thread.run_sync(  # type: ignore[call-arg]
            _ask, connection, base_url, key, model, question, on_text, abandon_on_cancel=True
        )
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"the gateway at {base_url} does not answer: {type(error).__name__}") from error
    finally:
        connection.close()


def _ask(
    connection: http.client.HTTPConnection,
    base_url: str,
    key: Secret,
    model: str,
    question: str,
    on_text: Callable[[str], None],
) -> Answered:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,  # a test model of two megabytes makes sense only when it says what it is surest of
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key.reveal().decode()}"}
    started_at = time.monotonic()
    connection.request("POST", f"{urlsplit(base_url).path}/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise _refusal(response.status, response.read(BODY_BYTES_MAX))
    answered = Answered()
    while line := response.readline(LINE_BYTES_MAX):
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[len(b"data: ") :])
        if "error" in event:
            raise _refusal(200, json.dumps(event).encode())
        answered.model = event.get("model") or answered.model
        answered.usage = _three(event["usage"]) if event.get("usage") else answered.usage
        answered.extra = event.get("x_cocoon") or answered.extra
        for choice in event.get("choices", ()):
            if text := choice.get("delta", {}).get("content"):
                if not answered.text:
                    answered.first_token_ms = (time.monotonic() - started_at) * 1000
                answered.text += text
                on_text(text)
    return answered


def _refusal(status: int, body: bytes) -> ApiRefused:
    try:
        error = json.loads(body)["error"]
        message, advice = str(error["message"]), str(error.get("advice") or "")
    except (ValueError, KeyError, TypeError):
        message, advice = f"the gateway answered with status {status}", ""
    return ApiRefused(message, advice=advice)


def _three(usage: dict[str, Any]) -> dict[str, int]:
    return {name: int(usage[name]) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
