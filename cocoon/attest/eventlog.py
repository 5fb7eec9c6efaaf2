"""Replaying RTMR event logs: the firmware's CCEL (TCG crypto-agile) and the JSON log that dstack defines.

An RTMR is SHA-384(RTMR ‖ digest) over all events, from 48 zero bytes. So the *digests* are proven by a quote whose
RTMRs equal the replay; texts and payloads are not. An event's payload counts only when its digest is recomputed
from it here (`Event.proven`): in real firmware logs fewer than a third are the hash of their own text.

Formats: TCG PC Client Platform Firmware Profile §10 (TCG_PCR_EVENT2), Intel's "TDX Virtual Firmware Design Guide"
(CCEL: MR index 1–4 are RTMR 0–3), dstack's event log (run-time events: type 0x08000001, digest =
SHA-384(type ‖ ":" ‖ name ‖ ":" ‖ payload)).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from ..errors import EventLogInvalid, EvidenceMalformed
from . import limits
from .collateral import read_json

RTMR_BYTES: Final = 48
RTMR_COUNT: Final = 4
EV_NO_ACTION: Final = 3
EV_RUNTIME: Final = 0x08000001  # dstack's and our own run-time events
_ALG_SHA384: Final = 0x000C
_SPEC_ID: Final = b"Spec ID Event03\0"

Rtmrs = tuple[bytes, bytes, bytes, bytes]


class LogKind(Enum):
    """Which of the two formats."""

    CCEL = "ccel"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One measurement. `payload` is what the log says was measured: believe it only if `proven`."""

    rtmr: int  # 0–3
    kind: int
    digest: bytes
    name: str
    payload: bytes
    proven: bool  # the digest was recomputed from name and payload


def read_log(data: bytes, kind: LogKind) -> tuple[Event, ...]:
    """The events of a log. Raises `EventLogInvalid`."""
    if len(data) > limits.EVENT_LOG_BYTES_MAX:
        raise EventLogInvalid(f"an event log of {len(data)} bytes is too long", reason="eventlog.size")
    return _read_ccel(data) if kind is LogKind.CCEL else _read_json(data)


def detect_kind(data: bytes) -> LogKind:
    """Which format a file has: JSON opens with a bracket, a CCEL with a binary header."""
    return LogKind.JSON if data[:64].lstrip()[:1] in (b"[", b"{") else LogKind.CCEL


def replay(events: Iterable[Event]) -> Rtmrs:
    """The four RTMRs that these events extend to."""
    values = [bytes(RTMR_BYTES)] * RTMR_COUNT
    for event in events:
        if event.kind != EV_NO_ACTION:
            values[event.rtmr] = hashlib.sha384(values[event.rtmr] + event.digest).digest()
    return (values[0], values[1], values[2], values[3])


def runtime_digest(name: str, payload: bytes) -> bytes:
    """The digest of a run-time event, as dstack defines it."""
    return hashlib.sha384(struct.pack("<I", EV_RUNTIME) + b":" + name.encode() + b":" + payload).digest()


def trim_ccel(data: bytes) -> bytes:
    """A CCEL without the unused rest of its area: what a provider sends."""
    _, end = _walk_ccel(data)
    return data[:end]


# --- CCEL ------------------------------------------------------------------------------------------------


def _read_ccel(data: bytes) -> tuple[Event, ...]:
    events, end = _walk_ccel(data)
    if data[end:].strip(b"\xff") and data[end:].strip(b"\0"):
        raise EventLogInvalid("the log goes on after its end mark", reason="eventlog.trailing-bytes")
    return events


def _walk_ccel(data: bytes) -> tuple[tuple[Event, ...], int]:
    try:
        return _walk_ccel_unchecked(data)
    except struct.error:
        raise EventLogInvalid("the event log is cut off", reason="eventlog.truncated") from None


def _walk_ccel_unchecked(data: bytes) -> tuple[tuple[Event, ...], int]:
    header_size = struct.unpack_from("<I", data, 28)[0]
    header = data[32 : 32 + header_size]
    if len(header) != header_size or header[:16] != _SPEC_ID or header_size < 28:
        raise EventLogInvalid("not a TCG crypto-agile event log", reason="eventlog.header")
    count = struct.unpack_from("<I", header, 24)[0]
    if not 1 <= count <= limits.EVENT_DIGESTS_MAX:
        raise EventLogInvalid("too many digest algorithms", reason="eventlog.header")
    sizes: dict[int, int] = dict(struct.unpack_from("<HH", header, 28 + 4 * i) for i in range(count))
    if sizes.get(_ALG_SHA384) != RTMR_BYTES:
        raise EventLogInvalid("the log has no SHA-384 digests", reason="eventlog.algorithm")
    at = 32 + header_size
    events: list[Event] = []
    while at + 8 <= len(data):
        index, kind = struct.unpack_from("<II", data, at)
        if index == 0xFFFFFFFF or (index == 0 and kind == 0):
            break
        digests, payload, at = _ccel_event(data, at + 8, sizes)
        if _ALG_SHA384 not in digests:
            raise EventLogInvalid("an event without a SHA-384 digest", reason="eventlog.algorithm")
        if not 1 <= index <= RTMR_COUNT:
            if kind == EV_NO_ACTION:
                continue
            raise EventLogInvalid(f"an event for register {index}", reason="eventlog.register")
        if len(events) >= limits.EVENTS_MAX:
            raise EventLogInvalid("too many events", reason="eventlog.size")
        digest = digests[_ALG_SHA384]
        name, content = _runtime_payload(kind, payload)
        proven = digest == (runtime_digest(name, content) if kind == EV_RUNTIME else hashlib.sha384(payload).digest())
        events.append(Event(rtmr=index - 1, kind=kind, digest=digest, name=name, payload=content, proven=proven))
    return tuple(events), at


def _ccel_event(data: bytes, at: int, sizes: dict[int, int]) -> tuple[dict[int, bytes], bytes, int]:
    count = struct.unpack_from("<I", data, at)[0]
    at += 4
    if count > limits.EVENT_DIGESTS_MAX:
        raise EventLogInvalid("an event with too many digests", reason="eventlog.size")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        algorithm = struct.unpack_from("<H", data, at)[0]
        size = sizes.get(algorithm)
        if size is None or algorithm in digests or at + 2 + size > len(data):
            raise EventLogInvalid("an unknown, doubled or cut-off digest", reason="eventlog.algorithm")
        digests[algorithm] = data[at + 2 : at + 2 + size]
        at += 2 + size
    size = struct.unpack_from("<I", data, at)[0]
    at += 4
    if size > limits.EVENT_BYTES_MAX or at + size > len(data):
        raise EventLogInvalid("an event longer than the log or its limit", reason="eventlog.truncated")
    return digests, data[at : at + size], at + size


def _runtime_payload(kind: int, data: bytes) -> tuple[str, bytes]:
    """A run-time event inside a CCEL carries `name:payload`; other kinds have no name."""
    if kind != EV_RUNTIME:
        return "", data
    name, colon, payload = data.partition(b":")
    if not colon or len(name) > limits.EVENT_NAME_CHARS_MAX or not name.isascii():
        return "", data
    return name.decode("ascii"), payload


# --- JSON ------------------------------------------------------------------------------------------------


def _read_json(data: bytes) -> tuple[Event, ...]:
    rows = _parse(data)
    if isinstance(rows, dict) and "event_log" in rows:  # dstack's answer as a whole: quote, log and more
        inner = rows["event_log"]
        rows = _parse(inner.encode("utf-8", "replace")) if isinstance(inner, str) else inner
    if not isinstance(rows, list):
        raise EventLogInvalid("the event log is not a JSON array", reason="eventlog.json")
    if len(rows) > limits.EVENTS_MAX:
        raise EventLogInvalid("too many events", reason="eventlog.size")
    return tuple(_json_event(row) for row in rows)


def _parse(data: bytes) -> Any:
    try:
        return read_json(data, "the event log", depth_max=8, reason="eventlog.json")
    except EvidenceMalformed as error:
        raise EventLogInvalid(str(error), reason="eventlog.json") from None


def _json_event(row: Any) -> Event:
    try:
        register, kind, name = row["imr"], row["event_type"], row.get("event", "")
        logged = bytes.fromhex(row["digest"])
        if type(register) is not int or type(kind) is not int or type(name) is not str:
            raise TypeError
        name_bytes = name.encode()
        payload = _json_payload(row.get("event_payload", ""), kind)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise EventLogInvalid("an event lacks a field or has a wrong type", reason="eventlog.json") from None
    if len(name_bytes) > limits.EVENT_NAME_CHARS_MAX or len(payload) > limits.EVENT_BYTES_MAX:
        raise EventLogInvalid("an event's name or payload is too long", reason="eventlog.size")
    if not 0 <= register < RTMR_COUNT or not 0 <= kind < 1 << 32:
        raise EventLogInvalid(f"an event for register {register}", reason="eventlog.register")
    if kind != EV_RUNTIME:
        if len(logged) != RTMR_BYTES:
            raise EventLogInvalid("a digest that is not 48 bytes long", reason="eventlog.digest")
        proven = hashlib.sha384(payload).digest() == logged
        return Event(rtmr=register, kind=kind, digest=logged, name=name, payload=payload, proven=proven)
    # A run-time event is measured by its content: the log may leave the digest out, but may not contradict it.
    digest = runtime_digest(name, payload)
    if logged and logged != digest:
        raise EventLogInvalid(f"the event {name[:40]!r} is not what was measured", reason="eventlog.payload")
    return Event(rtmr=register, kind=kind, digest=digest, name=name, payload=payload, proven=True)


def _json_payload(text: Any, kind: int) -> bytes:
    """The payload in hex. Firmware events may describe themselves in words instead: text, never proven."""
    if kind == EV_RUNTIME:
        return bytes.fromhex(text)
    if not isinstance(text, str):
        raise TypeError
    try:
        return bytes.fromhex(text)
    except ValueError:
        return text.encode()
