"""Real providers that are killed, frozen, cut off or corrupted at a random moment of an answer; no app notices it.

Every provider stands behind a small TCP proxy of the test's, so that its network can be cut and its bytes changed.
Their engines invent the same words at a steady pace; that a real model goes on to the same greedy text is
`tests/unit/test_moving_streams.py`. `pytest -m long` runs 200.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HowFar
from tests.e2e.world import World
from tests.fuzz.long_form import LongForm

LISTEN = "/ip4/127.0.0.1/tcp/0"
BODY = {
    "model": "cocoon-tiny",
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "stream": True,
    "temperature": 0,
    "max_tokens": 400,
    "stream_options": {"include_usage": True},
}
KINDS = ("kill", "freeze", "cut", "corrupt")
PROVIDERS = 4


class Proxy:
    """A port before a provider's."""

    def __init__(self) -> None:
        self.target = 1
        self.is_cut = False
        self.corrupts = False
        self.bytes_out = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                inbound, _ = self._listener.accept()
                self._sockets.append(inbound)
                try:
                    outbound = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                except OSError:
                    inbound.close()
                    continue
                outbound.settimeout(None)
                self._sockets.append(outbound)
                for source, target in ((inbound, outbound), (outbound, inbound)):
                    threading.Thread(target=self._carry, args=(source, target, target is inbound), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                while self.is_cut:
                    time.sleep(0.05)  # as a cable that was pulled: nothing comes, nothing closes
                if is_answer:
                    self.bytes_out += len(data)
                    if self.corrupts:
                        data = data[:-1] + bytes([data[-1] ^ 1])
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """Close every connection; the port stays."""
        self.is_cut = self.corrupts = False
        for one in self._sockets[1:]:
            one.close()
        del self._sockets[1:]

    def close(self) -> None:
        self.forget()
        self._listener.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Place:
    """One provider, its proxy, and another one in its place once it is dead."""

    def __init__(self, bootstrap: str, folder: Path, number: int) -> None:
        self._bootstrap, self._folder, self._number = bootstrap, folder, number
        self.proxy = Proxy()
        self._lives = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._lives += 1
        self.proxy.target = free_port()
        words = {
            "listen": f"/ip4/127.0.0.1/tcp/{self.proxy.target}",
            "announce": f"/ip4/127.0.0.1/tcp/{self.proxy.port}",
            "home": str(self._folder / f"p{self._number}-{self._lives}"),
            "bootstrap": self._bootstrap,
        }
        options = [part for name, value in words.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.paced_provider", *options],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        assert b"peer" in self._process.stdout.readline()

    def fail(self, kind: str) -> None:
        assert self._process is not None
        if kind == "kill":
            self._process.kill()
        elif kind == "freeze":
            self._process.send_signal(signal.SIGSTOP)
        elif kind == "cut":
            self.proxy.is_cut = True
        else:
            self.proxy.corrupts = True

    def replace(self) -> None:
        """Whatever was done to it, a fresh provider stands there afterwards: peers are known by their failures."""
        self.end()
        self.start()

    def end(self) -> None:
        self.proxy.forget()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def close(self) -> None:
        self.end()
        self.proxy.close()


@contextmanager
def market(folder: Path) -> Iterator[tuple[dict[str, Any], list[Place]]]:
    world = World(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        node = stack.enter_context(world.service("node", "--listen", LISTEN, "--home", str(folder / "node")))
        bootstrap = node.ready["addresses"][0]
        places = [Place(bootstrap, folder, number) for number in range(PROVIDERS)]
        for place in places:
            stack.callback(place.close)
            place.start()
        gateway = stack.enter_context(
            world.service("gateway", "--port", "0", "--trust", "open", "--bootstrap", bootstrap, "--api-key", "k" * 20)
        )
        yield gateway.ready, places


def stream(base_url: str) -> Iterator[tuple[float, dict[str, Any]]]:
    request = urllib.request.Request(
        f"{base_url}/chat/completions",
        data=json.dumps(BODY).encode(),
        headers={"Content-Type": "application/json", "Authorization": "Bearer " + "k" * 20},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        for line in response:
            if line.startswith(b"data: ") and b"[DONE]" not in line:
                yield time.monotonic(), json.loads(line[6:])


def read(
    base_url: str, places: list[Place], *, after: int | None, kind: str
) -> tuple[str, dict[str, Any], float, Place | None]:
    """(text, last chunk, the longest gap in seconds, who was made to fail)"""
    before = [place.proxy.bytes_out for place in places]
    text, last, longest, previous, victim = "", {}, 0.0, 0.0, None
    ids = set()
    for number, (at, chunk) in enumerate(stream(base_url)):
        assert "error" not in chunk, chunk["error"]["message"]
        ids.add(chunk["id"])
        last = chunk
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
        longest = max(longest, at - previous) if previous else 0.0
        previous = at
        if after is not None and number == after:
            served = [place.proxy.bytes_out - already for place, already in zip(places, before, strict=True)]
            victim = places[served.index(max(served))]
            victim.fail(kind)
    assert len(ids) == 1, "one stream has one id"
    return text, last, longest, victim


def survive(folder: Path, seed: int, runs: int) -> Iterator[tuple[str, float, bool]]:
    """One run each: what was done, the longest gap, and whether the stream had to move."""
    chance = random.Random(seed)
    with market(folder) as (ready, places):
        whole, end, _, _ = read(ready["base_url"], places, after=None, kind="")
        assert end["usage"]["completion_tokens"] == 90
        for number in range(runs):
            kind = KINDS[number % len(KINDS)]
            text, last, gap, victim = read(ready["base_url"], places, after=chance.randrange(1, 40), kind=kind)
            assert text == whole, f"{kind}, run {number}, seed {seed}"
            assert last["usage"]["completion_tokens"] == end["usage"]["completion_tokens"]
            assert last["usage"]["prompt_tokens"] == end["usage"]["prompt_tokens"]
            assert last["x_cocoon"]["receipt"]["verified"]
            yield kind, gap, bool(last["x_cocoon"]["attempts"])
            if victim is not None:
                victim.replace()


def figures(gaps: list[float]) -> str:
    ordered = sorted(gaps)
    return f"gap p50 {ordered[len(ordered) // 2]:.2f} s, p95 {ordered[len(ordered) * 95 // 100]:.2f} s"


@pytest.mark.slow
def test_an_app_does_not_notice_that_its_provider_was_lost(tmp_path: Path, how_far: HowFar) -> None:
    done = list(survive(tmp_path, seed=7, runs=8))
    moved = [gap for _, gap, has_moved in done if has_moved]
    assert len(moved) >= 4, "too few answers were interrupted for this to mean anything"
    how_far(f"unkillable streams ({len(moved)} moved, {figures(moved)})", len(done), 200, "runs")


@pytest.mark.long
def test_two_hundred_lost_providers(tmp_path: Path) -> None:
    form = LongForm("unkillable stream")
    moved: list[float] = []
    while form.is_due and form.rounds < 25:
        with form.round() as number:
            done = list(survive(tmp_path / str(number), seed=number, runs=8))
            gaps = [gap for _, gap, has_moved in done if has_moved]
            moved += gaps
            form.count(runs=len(done), moved=len(gaps), slower_than_2_s=sum(gap > 2 for gap in gaps))
            form.note(gap_s=max(gaps, default=0.0))
    print(form, figures(moved) if moved else "")
