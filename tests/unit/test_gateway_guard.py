"""Rule H1 over real HTTP: who may use the gateway, and what a body may be."""

from __future__ import annotations

import json
import time

import pytest
import trio
import trio.testing

from cocoon.errors import ConfigError
from cocoon.gateway.errors import HttpRefusal
from cocoon.gateway.guard import ClientGone, Guard, check_json_depth, parse_json_object, read_json
from cocoon.gateway.settings import host_values
from cocoon.types import Secret
from tests.fakes.client_role import FakeClientRole, Script, words
from tests.fakes.gateway import CHAT, KEY, exchange, gateway_settings, raw_request, running_gateway, status_of

SERVERS = ("h11", "hypercorn")

# What a web page, a rebound name, another local user or a scanner can send: everything but the key and our own name.
ATTACKS = {
    "a name rebound to loopback": (403, {"Host": "evil.example:{port}"}),
    "a rebound name without port": (403, {"Host": "evil.example"}),
    "our address with another port": (403, {"Host": "127.0.0.1:1"}),
    "our address without port": (403, {"Host": "127.0.0.1"}),
    "our address as a prefix": (403, {"Host": "127.0.0.1:{port}.evil.example"}),
    "a trailing dot": (403, {"Host": "localhost.:{port}"}),
    "an empty host": (403, {"Host": " "}),
    "a page of another site": (403, {"Origin": "https://evil.example"}),
    "a sandboxed page": (403, {"Origin": "null"}),
    "a page on another port of ours": (403, {"Origin": "http://127.0.0.1:1"}),
    "our name as a prefix of an origin": (403, {"Origin": "http://127.0.0.1:{port}.evil.example"}),
    "no key": (401, {"Authorization": ""}),
    "another key": (401, {"Authorization": "Bearer another-key-of-a-guesser"}),
    "a prefix of the key": (401, {"Authorization": f"Bearer {KEY[:-1]}"}),
    "the key and more": (401, {"Authorization": f"Bearer {KEY}x"}),
    "an empty key": (401, {"Authorization": "Bearer "}),
    "the key in another scheme": (401, {"Authorization": f"Basic {KEY}"}),
    "a form post": (415, {"Content-Type": "application/x-www-form-urlencoded"}),
    "a simple request": (415, {"Content-Type": "text/plain"}),
    "no content type": (415, {"Content-Type": ""}),
    "JSON that only looks so": (415, {"Content-Type": "text/plain; application/json"}),
    "a compressed body": (415, {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("server", SERVERS)
def test_gateway_rebinding_csrf_keyless_refused_unspent(server: str) -> None:
    async def main() -> None:
        role = FakeClientRole(Script(steps=words("hi")))
        async with running_gateway(
            role, server=server, spend_max_request_nano=1_000, spend_max_day_nano=1_000
        ) as running:
            port = running.handle.port
            body = json.dumps(CHAT).encode()
            for name, (status, headers) in ATTACKS.items():
                changed = {key: value.replace("{port}", str(port)) for key, value in headers.items()}
                request = raw_request(port, "POST", "/v1/chat/completions", headers=changed, body=body)
                answer = await exchange(port, request)
                assert status_of(answer) == status, (name, answer)
                assert b"access-control" not in answer.lower(), name
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"], name
            assert role.calls == []
            assert (running.handle.ledger.spent_nano, running.handle.ledger.reserved_nano) == (0, 0)
            for good in ({}, {"Host": f"localhost:{port}"}, {"Origin": f"http://127.0.0.1:{port}"}):
                request = raw_request(port, "POST", "/v1/chat/completions", headers=good, body=body)
                assert status_of(await exchange(port, request)) == 200
            assert len(role.calls) == 3

    trio.run(main)


@pytest.mark.parametrize("server", SERVERS)
def test_a_preflight_gets_no_permission(server: str) -> None:
    async def main() -> None:
        async with running_gateway(FakeClientRole(Script()), server=server) as running:
            port = running.handle.port
            asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST", "Authorization": ""}
            answer = await exchange(port, raw_request(port, "OPTIONS", "/v1/chat/completions", headers=asked))
            assert status_of(answer) == 403
            assert b"access-control" not in answer.lower()

    trio.run(main)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/x", "/healthz", "/metrics", "/", "/nothing"])
def test_every_path_needs_the_key(path: str) -> None:
    async def main() -> None:
        async with running_gateway(FakeClientRole(Script())) as running:
            port = running.handle.port
            answer = await exchange(port, raw_request(port, "GET", path, headers={"Authorization": ""}))
            assert status_of(answer) == 401
            assert b"www-authenticate: bearer" in answer.lower()

    trio.run(main)


def test_two_host_or_two_key_headers_are_refused() -> None:
    guard = Guard(_nothing, hosts=frozenset((b"127.0.0.1:1",)), api_keys=(Secret(b"one-key-1"), Secret(b"two-key-2")))
    host, key = (b"Host", b"127.0.0.1:1"), (b"Authorization", b"bearer two-key-2")
    guard.check([host, key])
    for headers in ([host, host, key], [host, key, key], [key], [host], [host, key, (b"origin", b"")]):
        with pytest.raises(HttpRefusal):
            guard.check(headers)


def test_a_websocket_is_closed_before_the_app_sees_it() -> None:
    async def main() -> list[dict[str, object]]:
        sent: list[dict[str, object]] = []

        async def send(message: object) -> None:
            sent.append(dict(message))  # type: ignore[call-overload]

        guard = Guard(_nothing, hosts=frozenset(), api_keys=(Secret(b"one-key-1"),))
        await guard({"type": "websocket", "headers": []}, _nothing, send)  # type: ignore[arg-type]
        return sent

    assert trio.run(main) == [{"type": "websocket.close", "code": 1008}]


def test_settings_and_guard_never_show_the_key() -> None:
    assert KEY not in repr(gateway_settings())


def test_hosts_of_an_ipv6_gateway_have_brackets() -> None:
    assert host_values("::1", 8642) == {b"[::1]:8642", b"localhost:8642"}
    assert b"127.0.0.1" in host_values("127.0.0.1", 80)
    assert b"proxy.example" in host_values("127.0.0.1", 8642, ("Proxy.Example",))


@pytest.mark.parametrize(
    "changes",
    [
        {"api_keys": ()},
        {"api_keys": (Secret(b"short"),)},
        {"api_keys": (Secret(b"with a space"),)},
        {"spend_max_request_nano": 2, "spend_max_day_nano": 1},
        {"spend_max_request_nano": -1},
        {"port": 70_000},
        {"server": "uvicorn"},
        {"requests_max": 0},
        {"request_timeout_s": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        gateway_settings(**changes)


# --- bodies ------------------------------------------------------------------------------------------------


async def _nothing(*args: object) -> None:
    raise AssertionError("the guard let it through")


async def _read(pieces: list[bytes], headers: list[tuple[bytes, bytes]], *, bytes_max: int = 100) -> object:
    queue = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    queue.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return queue.pop(0)

    headers = [(b"content-type", b"application/json; charset=utf-8"), *headers]
    return await read_json({"headers": headers}, receive, bytes_max=bytes_max, depth_max=4, timeout_s=1)


def test_a_body_is_refused_by_its_declared_or_real_size() -> None:
    for pieces, headers in (
        ([b"{}"], [(b"content-length", b"101")]),
        ([b"{}"], [(b"content-length", b"9" * 20)]),
        ([b"{}"], [(b"content-length", b"-1")]),
        ([b" " * 60, b" " * 60], []),
    ):
        with pytest.raises(HttpRefusal) as caught:
            trio.run(_read, pieces, headers)
        assert caught.value.status == 413
    assert trio.run(_read, [b'{"a":', b"1}"], []) == {"a": 1}


def test_a_body_that_never_comes_is_408() -> None:
    async def main() -> None:
        headers = [(b"content-type", b"application/json")]
        await read_json({"headers": headers}, trio.sleep_forever, bytes_max=9, depth_max=4, timeout_s=30)

    with pytest.raises(HttpRefusal) as caught:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert caught.value.status == 408


def test_a_client_that_leaves_while_sending_is_no_request() -> None:
    async def receive() -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    async def main() -> None:
        headers = [(b"content-type", b"application/json")]
        await read_json({"headers": headers}, receive, bytes_max=9, depth_max=4, timeout_s=30)

    with pytest.raises(ClientGone):
        trio.run(main)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"1", b"null", b'"x"', b"{", b'{"a":NaN}', b'{"a":1e999}', b'{"a":"\xff"}', b'{"a":"\\ud800"}',
     b"{}{}", b'{"a":' + b"9" * 5_000 + b"}", b"\xef\xbb\xbf{}", b"[" * 100_000],
)  # fmt: skip
def test_what_is_not_a_json_object_is_a_400(body: bytes) -> None:
    with pytest.raises(HttpRefusal) as caught:
        parse_json_object(body, 64)
    assert (caught.value.status, caught.value.kind) == (400, "invalid_json")


def test_nesting_is_counted_outside_strings_only() -> None:
    check_json_depth(b'{"a":"' + b"[" * 1_000 + b'"}', 4)
    check_json_depth(b'{"a\\"[[[[[[":[[[]]]}', 4)
    check_json_depth(b"[" + b"[]," * 1_000 + b"[]]", 4)
    for body in (b"[" * 5, b'{"a":"\\\\",' + b'"b":[[[[', b'["\\"",[[[[[]]]]]]'):
        with pytest.raises(HttpRefusal):
            check_json_depth(body, 4)


def test_counting_the_nesting_takes_linear_time() -> None:
    # An unending string of escaped quotes made an earlier pattern look at every suffix: hours for this body.
    body = b'"' + b'\\"' * 1_000_000 + b"[" * 100
    started = time.monotonic()
    check_json_depth(body, 64)
    assert time.monotonic() - started < 5
