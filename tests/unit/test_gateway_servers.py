"""What both HTTP servers promise under odd, slow and hostile clients, with a small ASGI app or the gateway behind."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

from cocoon.errors import ConfigError
from cocoon.gateway.asgi import Message, Receive, Scope, Send, ServerLimits, response_body, response_start
from cocoon.gateway.h11_server import serve_h11
from cocoon.gateway.hypercorn_server import serve_hypercorn
from cocoon.gateway.server import bind, open_gateway
from cocoon.ports import Delta
from tests.fakes.client_role import FakeClientRole, Script, words
from tests.fakes.gateway import (
    CHAT,
    KEY,
    WallClock,
    asking,
    events,
    exchange,
    gateway_settings,
    raw_request,
    read_until,
    running_gateway,
    status_of,
    wait_until,
)

BOTH = pytest.mark.parametrize("serve", [serve_h11, serve_hypercorn])
H11 = pytest.mark.parametrize("serve", [serve_h11])  # bounds that hypercorn does not have
GET = b"GET /path%20x?q=%201 HTTP/1.1\r\nHost: a\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it was asked, and the body it got."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    about = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode()}
    answer = json.dumps({**about, "size": len(body), "start": body[:16].decode("latin1")}).encode()
    await send(response_start(200, [(b"content-length", b"%d" % len(answer))]))
    await send(response_body(answer, more=False))


def served(
    serve: Any, app: Any, story: Callable[[int], Awaitable[Any]], *, limits: dict[str, Any] | None = None
) -> Any:
    """Run `story(port)` against a server, and then stop it."""

    async def main() -> Any:
        listener = await bind("127.0.0.1", 0)
        bounds = ServerLimits(**{"connections_max": 8, "grace_s": 0.5, **(limits or {})})
        stop = trio.Event()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(serve, app, listener, limits=bounds, stop=stop))
                result = await story(listener.getsockname()[1])
                stop.set()
        assert listener.fileno() == -1
        return result

    return trio.run(main)


def bodies(answers: bytes) -> list[Any]:
    """The JSON objects in a row of raw answers."""
    decoder, text, found = json.JSONDecoder(), answers.decode(), []
    while (start := text.find("{")) >= 0:
        value, end = decoder.raw_decode(text[start:])
        found.append(value)
        text = text[start + end :]
    return found


# --- ordinary HTTP -----------------------------------------------------------------------------------------


@BOTH
def test_requests_follow_one_another_on_one_connection(serve: Any) -> None:
    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            for _ in range(3):
                await stream.send_all(GET)
                answer = bodies(await read_until(stream, b"}"))[0]
                assert answer == {"method": "GET", "path": "/path x", "query": "q=%201", "size": 0, "start": ""}

    served(serve, echo, story)


@BOTH
def test_an_app_that_does_not_read_an_empty_body_keeps_the_connection(serve: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(response_start(200, [(b"content-length", b"2")]))
        await send(response_body(b"{}", more=False))

    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            for _ in range(3):
                await stream.send_all(GET)
                assert status_of(await read_until(stream, b"{}")) == 200

    served(serve, app, story)


@BOTH
def test_pipelined_requests_are_answered_in_order(serve: Any) -> None:
    async def story(port: int) -> None:
        post = b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        answers = bodies(await exchange(port, GET + post + LAST_GET))
        assert [answer["path"] for answer in answers] == ["/path x", "/2", "/"]
        assert answers[1]["start"] == "abc"

    served(serve, echo, story)


@BOTH
def test_bodies_arrive_whole_chunked_or_not_and_byte_by_byte(serve: Any) -> None:
    async def story(port: int) -> None:
        chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        pieces = b"4\r\nabcd\r\n3;x=y\r\nefg\r\n0\r\n\r\n"
        assert bodies(await exchange(port, chunked + pieces))[0]["start"] == "abcdefg"
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            for byte in chunked + pieces:
                await stream.send_all(bytes((byte,)))
            assert bodies(await read_until(stream, b"}"))[0]["start"] == "abcdefg"
        big = b"x" * 3_000_000
        head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(big)
        assert bodies(await exchange(port, head + big))[0]["size"] == len(big)

    served(serve, echo, story)


@BOTH
def test_a_client_that_waits_for_100_continue_gets_it(serve: Any) -> None:
    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            await stream.send_all(b"ok")
            assert bodies(await read_until(stream, b"}"))[0]["start"] == "ok"

    served(serve, echo, story)


@BOTH
def test_head_has_no_body_and_http_1_0_is_closed_after_the_answer(serve: Any) -> None:
    async def story(port: int) -> None:
        head = await exchange(port, b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert status_of(head) == 200
        assert head.endswith(b"\r\n\r\n")
        old = await exchange(port, b"GET / HTTP/1.0\r\n\r\n")
        assert bodies(old)[0]["path"] == "/"

    served(serve, echo, story)


@BOTH
def test_a_stream_to_http_1_0_is_not_chunked(serve: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(response_start(200, []))
        for piece in (b"one ", b"two ", b"three"):
            await send(response_body(piece, more=piece != b"three"))

    async def story(port: int) -> None:
        assert (await exchange(port, b"GET / HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\none two three")
        chunked = await exchange(port, LAST_GET)
        assert chunked.endswith(b"4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n")

    served(serve, app, story)


# --- broken and hostile ------------------------------------------------------------------------------------

MALFORMED = {
    "noise": b"\x00\x01\x02\xff\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a header without colon": b"GET / HTTP/1.1\r\nHost: a\r\nbroken\r\n\r\n",
    "a folded name": b"GET / HTTP/1.1\r\nHost: a\r\nX Y: 1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a negative length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "headers without end": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000,
    "a line without end": b"GET /" + b"a" * 200_000,
}


@BOTH
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_never_reach_the_app(serve: Any, name: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it reached the app")

    async def story(port: int) -> None:
        answer = await exchange(port, MALFORMED[name])
        assert status_of(answer) in (0, 400, 431, 501, 505), answer

    served(serve, app, story)


@BOTH
def test_a_broken_chunk_in_the_body_is_not_a_whole_body(serve: Any) -> None:
    async def story(port: int) -> None:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await exchange(port, head + b"zz\r\nabc")
        assert status_of(answer) in (0, 400)
        assert bodies(await exchange(port, LAST_GET))[0]["path"] == "/"

    served(serve, echo, story)


@H11
def test_a_target_that_is_no_path_and_a_version_that_is_not_ours_are_refused(serve: Any) -> None:
    async def story(port: int) -> None:
        for target in (b"http://evil.example/", b"*", b"evil.example:443"):
            assert status_of(await exchange(port, b"OPTIONS %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)) == 400
        assert status_of(await exchange(port, b"GET / HTTP/9.9\r\nHost: a\r\n\r\n")) == 505

    served(serve, echo, story)


@BOTH
def test_an_app_that_fails_costs_its_request_only(serve: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send(response_start(200, []))
            await send(response_body(b"half", more=True))
        if scope["path"] != "/":
            raise RuntimeError("a bug")
        await echo(scope, receive, send)

    async def story(port: int) -> None:
        assert status_of(await exchange(port, b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) == 500
        late = await exchange(port, b"GET /late HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b"half" in late
        assert not late.endswith(b"0\r\n\r\n")  # the client can see that it is not whole
        assert bodies(await exchange(port, LAST_GET))[0]["path"] == "/"

    served(serve, app, story)


@BOTH
def test_a_connection_that_sends_nothing_or_half_a_header_is_closed(serve: Any) -> None:
    async def story(port: int) -> None:
        for start in (b"", b"GET / HTTP/1.1\r\nHo"):
            assert status_of(await exchange(port, start, timeout_s=3)) in (0, 408)

    served(serve, echo, story, limits={"header_timeout_s": 0.2, "idle_timeout_s": 0.2})


@H11
def test_a_header_that_drips_in_is_cut_off(serve: Any) -> None:
    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)

        async def drip() -> None:
            for byte in b"GET / HTTP/1.1\r\n" + b"x" * 10_000:
                await stream.send_all(bytes((byte,)))
                await trio.sleep(0.02)

        async with stream:
            with trio.fail_after(3), pytest.raises(trio.BrokenResourceError):
                await drip()

    served(serve, echo, story, limits={"header_timeout_s": 0.3})


@BOTH
def test_connections_beyond_the_bound_wait_for_a_slot(serve: Any) -> None:
    async def story(port: int) -> None:
        first = await trio.open_tcp_stream("127.0.0.1", port)
        await first.send_all(GET)
        await read_until(first, b"}")
        second = await trio.open_tcp_stream("127.0.0.1", port)  # the kernel takes it, the server does not yet
        await second.send_all(GET)
        with trio.move_on_after(0.2) as scope:
            await second.receive_some()
        assert scope.cancelled_caught
        await first.aclose()
        assert bodies(await read_until(second, b"}"))
        await second.aclose()

    served(serve, echo, story, limits={"connections_max": 1, "idle_timeout_s": 0.5})


@BOTH
def test_the_app_hears_at_once_that_the_client_left(serve: Any) -> None:
    left = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(GET)
        await trio.sleep(0.05)
        assert not left.is_set()
        await stream.aclose()
        with trio.fail_after(1):
            await left.wait()

    served(serve, app, story)


async def _flood(scope: Scope, receive: Receive, send: Send) -> None:
    """Writes far more than any kernel buffer holds."""
    await send(response_start(200, []))
    for _ in range(400):
        await send(response_body(b"x" * 100_000, more=True))
    await send(response_body(b"end", more=False))


@BOTH
def test_a_reader_that_stalls_and_goes_on_gets_everything(serve: Any) -> None:
    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(LAST_GET)
            await trio.sleep(0.5)
            received, end = 0, b""
            async for piece in stream:
                received += len(piece)
                end = (end + piece)[-20:]
            assert received > 40_000_000
            assert b"end" in end

    served(serve, _flood, story)


@BOTH
def test_a_reader_that_never_reads_is_given_up(serve: Any) -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_flood, scope, receive, send)
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()
        ended.set()

    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(GET)
            with trio.fail_after(3):
                await ended.wait()

    served(serve, app, story, limits={"write_timeout_s": 0.3})


@H11
def test_nothing_follows_a_write_that_was_cancelled_half_way(serve: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.move_on_after(0.2):
            await _flood(scope, receive, send)
        await send(response_body(b"a last word", more=False))

    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(GET)
            await trio.sleep(0.4)
            received = b""
            async for piece in stream:
                received += piece
            assert len(received) > 100_000
            assert b"a last word" not in received  # it would stand inside the chunk that was cut
            assert not received.endswith(b"0\r\n\r\n")

    served(serve, app, story)


@BOTH
def test_a_stalled_reader_does_not_hold_up_a_stop(serve: Any) -> None:
    async def story(port: int) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(GET)
        await trio.sleep(0.2)
        return client  # left open: the server has to cut it

    served(serve, _flood, story).close()


@BOTH
def test_a_stop_lets_a_running_answer_end_and_closes_idle_connections(serve: Any) -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(0.3)
        await echo(scope, receive, send)

    async def main() -> None:
        listener = await bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        stop = trio.Event()
        limits = ServerLimits(connections_max=8, grace_s=5.0)
        with trio.fail_after(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(serve, slow, listener, limits=limits, stop=stop))
                idle = await trio.open_tcp_stream("127.0.0.1", port)
                busy = await trio.open_tcp_stream("127.0.0.1", port)
                await busy.send_all(GET)
                await trio.sleep(0.1)
                stop.set()
                assert bodies(await read_until(busy, b"}"))
                async with idle, busy:
                    assert await idle.receive_some() == b""

    trio.run(main)


@H11
def test_bytes_sent_early_are_bounded(serve: Any) -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.set()

    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(GET + b"y" * 200_000)
            with trio.fail_after(2):
                await ended.wait()

    served(serve, app, story)


@H11
def test_a_refusal_before_the_body_was_read_reaches_a_client_that_still_sends(serve: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(response_start(413, [(b"content-length", b"3")]))
        await send(response_body(b"big", more=False))

    async def story(port: int) -> None:
        for _ in range(20):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n")
                await stream.send_all(b"x" * 3_000_000)
                assert (await read_until(stream, b"big")).startswith(b"HTTP/1.1 413")

    served(serve, app, story)


@H11
def test_a_chatty_app_does_not_starve_others(serve: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/chatty":
            await echo(scope, receive, send)
            return
        await send(response_start(200, []))
        while True:
            await send(response_body(b"x", more=True))

    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream, trio.open_nursery() as nursery:

            async def drain() -> None:
                async for _ in stream:
                    pass

            nursery.start_soon(drain)
            await stream.send_all(b"GET /chatty HTTP/1.1\r\nHost: a\r\n\r\n")
            await trio.sleep(0.05)
            assert bodies(await exchange(port, LAST_GET, timeout_s=2))[0]["path"] == "/"
            nursery.cancel_scope.cancel()

    served(serve, app, story)


@H11
def test_messages_after_the_client_left_do_nothing(serve: Any) -> None:
    done: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await send(response_start(200, []))
        await send(response_body(b"too late", more=False))
        done.append(await receive())

    async def story(port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(GET)
        await trio.sleep(0.05)
        await stream.aclose()
        await wait_until(lambda: bool(done))

    served(serve, app, story)
    assert done == [{"type": "http.disconnect"}]


# --- the gateway's start and stop --------------------------------------------------------------------------


def test_a_port_in_use_says_what_to_do() -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            settings = gateway_settings(port=taken.getsockname()[1])
            with pytest.raises(ConfigError, match="in use") as caught:
                async with open_gateway(FakeClientRole(Script()), settings, WallClock()):
                    pass
            assert "--port" in caught.value.advice

    trio.run(main)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such name"])
def test_an_address_that_is_not_ours_is_a_configuration_error(host: str) -> None:
    async def main() -> None:
        async with open_gateway(FakeClientRole(Script()), gateway_settings(host=host), WallClock()):
            pass

    with pytest.raises(ConfigError):
        trio.run(main)


@pytest.mark.parametrize("server", ["h11", "hypercorn"])
def test_a_gateway_that_stops_lets_a_stream_end_within_the_grace(server: str) -> None:
    async def main() -> None:
        role = FakeClientRole(Script(steps=[*words("one"), 0.3, Delta(text=" two", token_ids=(1,))]))
        received = b""
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                leave = trio.Event()

                async def run() -> None:
                    async with running_gateway(role, server=server, shutdown_grace_s=3.0) as running:
                        ports.append(running.handle.port)
                        started.set()
                        await leave.wait()

                ports: list[int] = []
                started = trio.Event()
                nursery.start_soon(run)
                await started.wait()
                async with asking(ports[0], {**CHAT, "stream": True}) as stream:
                    received += await read_until(stream, b"one")
                    leave.set()
                    async for piece in stream:
                        received += piece
        assert b" two" in received
        assert b"[DONE]" in received

    trio.run(main)


def test_an_error_inside_the_context_comes_out_as_itself() -> None:
    async def main() -> None:
        async with open_gateway(FakeClientRole(Script()), gateway_settings(), WallClock()):
            raise ConfigError("mine")

    with pytest.raises(ConfigError, match="mine"):
        trio.run(main)


@pytest.mark.parametrize("server", ["h11", "hypercorn"])
def test_nothing_is_printed_or_logged_by_a_healthy_gateway(
    server: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        role = FakeClientRole(Script(steps=words("hello")))
        async with running_gateway(role, server=server) as running:
            response = await running.http.post("/chat/completions", json={**CHAT, "stream": True})
            assert events(response.text)[-1] == "[DONE]"

    trio.run(main)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelname != "DEBUG" and record.name != "httpx"] == []


def test_the_key_of_a_running_gateway_is_in_no_repr() -> None:
    async def main() -> str:
        async with open_gateway(FakeClientRole(Script()), gateway_settings(), WallClock()) as handle:
            return repr(handle)

    assert KEY not in trio.run(main)


def test_a_raw_request_helper_is_well_formed() -> None:
    # The helper that the attacks are built on must itself be accepted, or they would prove nothing.
    async def main() -> bytes:
        async with running_gateway(FakeClientRole(Script())) as running:
            return await exchange(running.handle.port, raw_request(running.handle.port))

    assert status_of(trio.run(main)) == 200
