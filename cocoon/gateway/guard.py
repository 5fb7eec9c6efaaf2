"""Rule H1: who may talk to the gateway at all. Nothing is parsed, and no provider is asked, before all of it passed.

Order: kind of request, Host, Origin, bearer key; then, for a body, its type, its size, its nesting, its JSON.
No CORS headers are ever sent, so a web page can neither send a JSON request (the preflight fails) nor read one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import trio

from ..types import Secret
from .asgi import AsgiApp, Receive, Scope, Send, response_body, response_start
from .errors import HttpRefusal, http_error

# Strings are skipped whole, so that brackets inside them do not count. One that never ends reaches to the end of
# the input, and the quantifiers are possessive: each byte is looked at once.
_STRING_OR_BRACKET: Final = re.compile(rb'"(?:[^"\\]++|\\(?:.|\Z))*+(?:"|\Z)|[\[{\]}]', re.DOTALL)


class Guard:
    """ASGI middleware: lets through HTTP requests from programs that know the key, and lifespan events."""

    def __init__(self, app: AsgiApp, *, hosts: frozenset[bytes], api_keys: Iterable[Secret]) -> None:
        """`hosts`: exact Host values, lower case, with port."""
        self._app = app
        self._hosts = hosts
        self._origins = frozenset(b"http://" + host for host in hosts) | frozenset(b"https://" + host for host in hosts)
        # Digests have one length, so that comparing them tells nothing of a key's length either.
        self._key_digests = tuple(hashlib.sha256(key.reveal()).digest() for key in api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 401 or 403."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self.check(scope["headers"])
        except HttpRefusal as refusal:
            error = http_error(refusal)
            await send(response_start(error.status, error.headers))
            await send(response_body(error.body, more=False))
            return
        await self._app(scope, receive, send)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises `HttpRefusal` unless Host, Origin and key are right."""
        hosts, origins, credentials = [], [], []
        for name, value in headers:
            match name.lower():
                case b"host":
                    hosts.append(value.lower())
                case b"origin":
                    origins.append(value.lower())
                case b"authorization":
                    credentials.append(value)
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            raise HttpRefusal(403, "host_not_allowed", "this gateway does not answer to that Host")
        if origins and (len(origins) != 1 or origins[0] not in self._origins):
            raise HttpRefusal(403, "origin_not_allowed", "web pages may not use this gateway")
        if len(credentials) != 1 or not self._is_key(credentials[0]):
            raise HttpRefusal(
                401,
                "invalid_api_key",
                "the API key is missing or wrong; send the gateway's own as: Authorization: Bearer KEY",
            )

    def _is_key(self, credential: bytes) -> bool:
        scheme, _, key = credential.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        known = False
        for expected in self._key_digests:  # all of them, always: no early exit to time
            known |= hmac.compare_digest(digest, expected)
        return known and scheme.lower() == b"bearer"


async def read_json(
    scope: Scope, receive: Receive, *, bytes_max: int, depth_max: int, timeout_s: float
) -> dict[str, Any]:
    """The request's JSON object. Raises `HttpRefusal`: 415, 413, 408 or 400.

    A client that goes away while sending raises `ClientGone`.
    """
    _check_content_headers(scope["headers"], bytes_max)
    parts: list[bytes] = []
    size = 0
    with trio.move_on_after(timeout_s) as deadline:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > bytes_max:
                raise _too_large(bytes_max)
            parts.append(part)
            if not message.get("more_body", False):
                break
    if deadline.cancelled_caught:
        raise HttpRefusal(408, "request_timeout", f"the body did not arrive within {timeout_s:g} s", retry_after_s=1)
    return parse_json_object(b"".join(parts), depth_max)


class ClientGone(Exception):
    """The client closed the connection before its request was complete. Nobody is left to be told."""


def parse_json_object(body: bytes, depth_max: int) -> dict[str, Any]:
    """Parse after the nesting was bounded. Raises `HttpRefusal` 400."""
    check_json_depth(body, depth_max)
    try:
        value = msgspec.json.decode(body)
    except ValueError as error:  # DecodeError and UnicodeDecodeError; msgspec's texts name offsets, not content
        detail = str(error) if isinstance(error, msgspec.DecodeError) else "it is not UTF-8"
        raise HttpRefusal(400, "invalid_json", f"the body is not valid JSON: {detail}") from error
    if not isinstance(value, dict):
        raise HttpRefusal(400, "invalid_json", "the body must be a JSON object")
    return value


def check_json_depth(body: bytes, depth_max: int) -> None:
    """Raises `HttpRefusal` 400 when arrays and objects nest deeper. Looks at bytes only; linear time."""
    if body.count(b"[") + body.count(b"{") <= depth_max:
        return  # the ordinary request
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(body):
        match found.group()[:1]:
            case b"[" | b"{":
                depth += 1
                if depth > depth_max:
                    raise HttpRefusal(400, "invalid_json", f"the JSON nests deeper than {depth_max}")
            case b"]" | b"}":
                depth -= 1


def _check_content_headers(headers: Iterable[tuple[bytes, bytes]], bytes_max: int) -> None:
    content_type = b""
    for raw_name, value in headers:
        name = raw_name.lower()
        if name == b"content-type":
            content_type = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise HttpRefusal(415, "unsupported_encoding", "compressed bodies are not accepted")
        elif name == b"content-length" and (not value.isdigit() or len(value) > 15 or int(value) > bytes_max):
            raise _too_large(bytes_max)
    if content_type != b"application/json":
        raise HttpRefusal(415, "unsupported_media_type", "send Content-Type: application/json")


def _too_large(bytes_max: int) -> HttpRefusal:
    return HttpRefusal(413, "request_too_large", f"the body is larger than {bytes_max} bytes")
