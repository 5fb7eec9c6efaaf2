"""What a listener on the wire sees: a provider is reached through a recording proxy, and nothing of the prompt or the
answer is in what passed."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.world import World

pytestmark = pytest.mark.slow

SESSION_BYTES_MIN = 8_000  # the question alone is padded to 4 KiB; connecting and asking for offers take half of it
CANARY = "canary-wire-90d1"


class Recorder:
    """Forwards connections to a port, and keeps every byte that passed."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.seen = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for one in (self._listener, *self._sockets):
            one.close()


@contextmanager
def recorder(port: int) -> Iterator[Recorder]:
    made = Recorder(port)
    try:
        yield made
    finally:
        made.close()


def test_the_wire_shows_neither_prompt_nor_answer(tmp_path: Path) -> None:
    world = World(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with recorder(port) as wire, world.service("node", "--home", str(tmp_path / "node")) as node:
        bootstrap = node.ready["addresses"][0]
        listen, announce = f"/ip4/127.0.0.1/tcp/{port}", f"/ip4/127.0.0.1/tcp/{wire.port}"
        words = ["serve", "cocoon-tiny", "--listen", listen, "--announce", announce, "--home", str(tmp_path / "p")]
        with world.service(*words, "--bootstrap", bootstrap):
            question = f"{CANARY} " + "What is Cocoon? " * 150
            before = len(wire.seen)
            words = ["chat", "--json", "--trust", "open", "--bootstrap", bootstrap, "--max-tokens", "64", question]
            ran = world.run(*words)
            assert ran.returncode == 0, ran.stderr
            answer = json.loads(ran.stdout.splitlines()[-1])["answer"]
            assert len(wire.seen) - before > SESSION_BYTES_MIN, "the session went through the proxy"
    for secret in (CANARY, "What is Cocoon?", question, answer, *(word for word in answer.split() if len(word) > 5)):
        assert secret.encode() not in wire.seen
        assert secret.encode("utf-16-le") not in wire.seen
