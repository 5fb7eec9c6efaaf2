"""Logs: stdlib `logging` inside, event names and fields, one renderer at the edge.

Code that logs writes an event and its fields, never prose and never content:

    log = logging.getLogger("cocoon.gateway")
    log.info("request.finished", extra={"tokens": 12, "provider": peer})

Programs that embed `cocoon` see ordinary log records and configure what they like. The command line calls
`configure`: coloured lines on a terminal, one JSON object per line otherwise, always on standard error.

What must never appear is taken out on the way: `Secret`, `PrivateText`, bytes, and any field whose name says that it
holds content or a key. The message of a foreign exception is dropped as well, because nobody can vouch for it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

from .errors import CocoonError
from .types import PrivateText, Secret

LEVELS: Final = ("debug", "info", "warning", "error")

FIELD_CHARS_MAX: Final = 512  # a field is a number, an id or an address; more is content that strayed

_PRIVATE_FIELDS: Final = frozenset(
    (
        *("answer", "body", "chunk", "completion", "content", "input", "messages", "output", "plaintext", "prompt"),
        *("response", "text", "token_ids", "tools", "headers", "cookie"),
        *("api_key", "authorization", "key", "password", "private_key", "secret", "seed", "token"),
    )
)
_RECORD_FIELDS: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime"}

# Below warning the libraries that we use describe every packet, and nobody can vouch for what they say of it.
FOREIGN_LEVEL: Final = logging.WARNING
OURS: Final = ("cocoon", "p2p")


def redact(name: str, value: Any) -> Any:
    """What may be shown of a field called `name`."""
    if isinstance(value, (Secret, PrivateText, bytes, bytearray, memoryview)) or name.lower() in _PRIVATE_FIELDS:
        size = f"{len(value)} " if isinstance(value, (str, bytes, bytearray)) else ""
        return f"<{size}redacted>"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(key): redact(str(key), item) for key, item in list(value.items())[:32]}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact(name, item) for item in list(value)[:32]]
    if isinstance(value, BaseException):
        return describe(value)
    text = str(value)
    return text if len(text) <= FIELD_CHARS_MAX else text[:FIELD_CHARS_MAX] + "…"


def describe(error: BaseException) -> str:
    """An error in one line: our own with its message, a foreign one by its type only."""
    if isinstance(error, CocoonError):
        return f"{error.code}: {str(error)[:FIELD_CHARS_MAX]}"
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(describe(part) for part in error.exceptions[:8])
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    return type(error).__name__


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The redacted `extra` fields of a record, and its error."""
    fields = {
        name: redact(name, value)
        for name, value in vars(record).items()
        if name not in _RECORD_FIELDS and not name.startswith("_")
    }
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = describe(record.exc_info[1])
        fields["error_at"] = place(record.exc_info[1])
    return fields


class EventFormatter(logging.Formatter):
    """Renders records through structlog: `human` for people, JSON lines for machines."""

    def __init__(self, *, human: bool, colour: bool) -> None:
        super().__init__()
        import structlog

        self._stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human)
        self._render: Any = (
            structlog.dev.ConsoleRenderer(colors=colour, pad_event_to=28)
            if human
            else structlog.processors.JSONRenderer()
        )

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        event: MutableMapping[str, Any] = {
            "event": _event(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            **fields_of(record),
        }
        return str(self._render(None, record.levelname.lower(), self._stamp(None, "", event)))


def configure(*, level: str, json_lines: bool | None = None, stream: TextIO | None = None) -> None:
    """Send every log of this process to `stream` (standard error), at `level` and above (others' from warning on).

    `json_lines=None` decides by whether the stream is a terminal. Calling it again replaces what it set before.
    """
    target = sys.stderr if stream is None else stream
    is_terminal = target.isatty()
    human = is_terminal if json_lines is None else not json_lines
    handler = logging.StreamHandler(target)
    handler.setFormatter(EventFormatter(human=human, colour=is_terminal))
    handler.set_name("cocoon")
    root = logging.getLogger()
    for old in [one for one in root.handlers if one.get_name() == "cocoon"]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(FOREIGN_LEVEL)
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())


def _event(record: logging.LogRecord) -> str:
    """The event name. Foreign libraries log prose with arguments, which may hold anything: keep the template."""
    if record.name.split(".")[0] in OURS:
        return record.getMessage()[:FIELD_CHARS_MAX]
    return str(record.msg)[:FIELD_CHARS_MAX] if record.args else f"<{record.name} message redacted>"


def place(error: BaseException) -> str:
    """File and line where it was raised: enough to find it, and no local variable."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
