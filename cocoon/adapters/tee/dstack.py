"""Quotes and measurements through dstack's guest agent, which speaks HTTP/1.1 with JSON on a Unix socket.

Blocking; call it from a worker thread. The agent lives in the same guest; its answers are checked all the same,
because a quote that does not carry our report data is of no use to anybody.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ...attest import limits
from ...attest.eventlog import LogKind, read_log
from ...attest.verifier import EVENT_CONFIG, EVENT_IMAGE, EVENT_MODEL, EVENT_SEAL
from ...errors import AttestationError, Unavailable
from ...types import Digest
from .configfs import REPORT_DATA_BYTES, checked_quote

SOCKET: Final = Path("/var/run/dstack.sock")
TIMEOUT_S: Final = 10.0  # a quote takes about 50 ms; the agent may be busy with another
ANSWER_BYTES_MAX: Final = 2 * limits.EVENT_LOG_BYTES_MAX  # quote and log, both as text


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


class DstackDevice:
    """dstack's guest agent as a quote device."""

    def __init__(self, *, path: Path = SOCKET) -> None:
        self._path = path
        self._log: bytes | None = None

    def describe(self) -> str:
        """The agent's socket. Raises `Unavailable`."""
        self._call("/Info", {})
        return f"dstack's guest agent at {self._path}"

    def quote(self, report_data: bytes) -> bytes:
        """One quote over 64 bytes. Raises `Unavailable`."""
        assert len(report_data) == REPORT_DATA_BYTES
        answer = self._call("/GetQuote", {"report_data": report_data.hex()})
        log = answer.get("event_log")
        try:
            quote = bytes.fromhex(answer["quote"])
            data = log.encode() if isinstance(log, str) else json.dumps(log).encode()
            read_log(data, LogKind.JSON)
        except (KeyError, TypeError, ValueError, AttestationError) as error:
            raise Unavailable(f"dstack's agent gave an answer without quote or log: {error}") from error
        self._log = data
        return checked_quote(quote, report_data)

    def logs(self) -> tuple[tuple[LogKind, bytes], ...]:
        """The log that came with the last quote; it holds all four registers."""
        if self._log is None:
            self.quote(bytes(REPORT_DATA_BYTES))
        assert self._log is not None
        return ((LogKind.JSON, self._log),)

    def measure(self, *, image: Digest, config: Digest, models: Sequence[bytes]) -> None:
        """Measure what runs into RTMR3 and seal it, once per boot (rule K6). Raises `Unavailable`."""
        events = [(EVENT_IMAGE, image), (EVENT_CONFIG, config), *((EVENT_MODEL, m) for m in models), (EVENT_SEAL, b"")]
        for kind, data in self.logs():
            if any(event.name == EVENT_SEAL for event in read_log(data, kind)):
                raise Unavailable("this boot has been measured already", advice="Reboot the guest to change it.")
        for name, payload in events:
            self._call("/EmitEvent", {"event": name, "payload": payload.hex()})
        self._log = None

    def _call(self, path: str, body: dict[str, str]) -> dict[str, Any]:
        connection = _UnixConnection(self._path)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read(ANSWER_BYTES_MAX + 1)
            if response.status != 200 or len(data) > ANSWER_BYTES_MAX:
                raise Unavailable(f"dstack's agent answered {path} with status {response.status}")
            answer = json.loads(data) if data.strip() else {}
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise Unavailable(
                f"dstack's agent failed: {error}", advice=f"Is this a dstack guest with {self._path} mounted?"
            ) from error
        finally:
            connection.close()
        if not isinstance(answer, dict):
            raise Unavailable("dstack's agent gave no JSON object")
        return answer
