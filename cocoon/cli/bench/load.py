"""The load generator: streaming chats over raw HTTP/1.1 keep-alive connections, timed as they arrive.

It parses as little as it can (chunk boundaries and `data:` lines), so that what it measures is the target. One retry
when a reused connection dies before its first byte, as every SDK does.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Final

import trio

CONNECT_TIMEOUT_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 120.0
READ_BYTES: Final = 65_536


@dataclass(slots=True)
class Stream:
    """One finished (or failed) streaming answer."""

    started_s: float
    first_s: float = 0.0
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # (when, tokens so far, estimated by events)
    ended_s: float = 0.0
    text: str = ""
    tokens: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to send requests."""

    name: str
    port: int
    path: str = "/v1/chat/completions"
    key: str = ""
    model: str = "cocoon-tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What was measured of one target at one number of streams. Times in ms."""

    target: str
    streams: int
    requests: int
    failed: int
    altered: int
    tokens: int
    wall_s: float
    tokens_per_s: float
    first_token_p50_ms: float
    first_token_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float


def request_bytes(target: Target, prompt: str, tokens: int) -> bytes:
    """One request, ready to send."""
    body = json.dumps(
        {
            "model": target.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {target.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def run_cell(
    target: Target,
    *,
    streams: int,
    rounds: int,
    prompt: str,
    tokens: int,
    expected: str | None,
    spread_s: float = 0.0,
) -> tuple[Cell, list[Stream]]:
    """`streams` connections side by side, each with `rounds` requests one after the other.

    Their first requests are spread evenly over `spread_s`, as strangers' requests are; 0 starts all at once.
    """
    results: list[Stream] = []
    payload = request_bytes(target, prompt, tokens)

    async def one_connection(number: int) -> None:
        await trio.sleep(spread_s * number / streams)
        connection: trio.SocketStream | None = None
        for _ in range(rounds):
            connection = await _ask(target, payload, connection, results)
        if connection is not None:
            await connection.aclose()

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(streams):
            nursery.start_soon(one_connection, number)
    return summarise(target.name, streams, results, time.perf_counter() - started, expected), results


async def _ask(
    target: Target, payload: bytes, connection: trio.SocketStream | None, results: list[Stream]
) -> trio.SocketStream | None:
    for attempt in (0, 1):
        is_reused = connection is not None
        stream = Stream(started_s=time.perf_counter())
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                if connection is None:
                    connection = await trio.open_tcp_stream("127.0.0.1", target.port)
                await connection.send_all(payload)
                keep = await _read(connection, stream)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError) as error:
            stream.error = f"{type(error).__name__}: {error}"
            keep = False
        if not keep and connection is not None:
            await connection.aclose()
            connection = None
        if stream.error and is_reused and not stream.arrivals and attempt == 0:
            continue  # the server had closed an idle connection
        results.append(stream)
        return connection
    return connection


async def _read(connection: trio.SocketStream, stream: Stream) -> bool:
    """Read one response; whether the connection may be used again."""
    buffered = b""
    while b"\r\n\r\n" not in buffered:
        data = await connection.receive_some(READ_BYTES)
        if not data:
            raise ValueError("closed before the headers")
        buffered += data
    head, _, rest = buffered.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status != 200:
        raise ValueError(f"status {status}: {rest[:200]!r}")
    pending = b""
    texts: list[str] = []
    is_done = False
    data = rest
    while True:
        if data:
            now = time.perf_counter()
            pending += data
            events = 0
            *lines, pending = pending.split(b"\n")
            for line in lines:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    is_done = True
                    continue
                event: dict[str, Any] = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(str(event["error"])[:200])
                for choice in event.get("choices", ()):
                    text = choice.get("delta", {}).get("content")
                    if text:
                        texts.append(text)
                        events += 1
                if event.get("usage"):
                    stream.tokens = event["usage"]["completion_tokens"]
            if events:
                stream.first_s = stream.first_s or now
                stream.arrivals.append((now, events))
        if is_done and (pending.endswith(b"0\r\n\r\n") or b"\r\n0\r\n" in data or data.endswith(b"0\r\n\r\n")):
            break
        data = await connection.receive_some(READ_BYTES)
        if not data:
            if is_done:
                stream.ended_s = time.perf_counter()
                stream.text = "".join(texts)
                return False
            raise ValueError("closed before [DONE]")
    stream.ended_s = time.perf_counter()
    stream.text = "".join(texts)
    return b"connection: close" not in head.lower()


def summarise(name: str, streams: int, results: list[Stream], wall_s: float, expected: str | None) -> Cell:
    """Figures of a cell; failed and altered answers count as such, not as times."""
    good = [each for each in results if not each.error]
    first = [(each.first_s - each.started_s) * 1000 for each in good if each.first_s]
    gaps = [
        (after - before) * 1000
        for each in good
        for (before, _), (after, _) in zip(each.arrivals, each.arrivals[1:], strict=False)
    ]
    tokens = sum(each.tokens for each in good)
    return Cell(
        target=name,
        streams=streams,
        requests=len(results),
        failed=len(results) - len(good),
        altered=sum(1 for each in good if expected is not None and each.text != expected),
        tokens=tokens,
        wall_s=wall_s,
        tokens_per_s=tokens / wall_s if wall_s else 0.0,
        first_token_p50_ms=percentile(first, 50),
        first_token_p99_ms=percentile(first, 99),
        gap_p50_ms=percentile(gaps, 50),
        gap_p99_ms=percentile(gaps, 99),
    )


def percentile(samples: list[float], percent: int) -> float:
    """Nearest-rank percentile; 0 without samples."""
    if not samples:
        return 0.0
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
