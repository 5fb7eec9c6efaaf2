"""What thousands of machines in one process may share, because it is a function of its input and nothing else.

In a real node the hash of a peer id is computed where it is needed. Here a million table entries would each hold a copy
of one of ten thousand numbers, and every lookup would hash the same ids again: `shared_hashes` gives all machines one
table of them for the time of a run. The values are the same, so nothing that a machine does changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import p2p.kad.lookup
import p2p.kad.machine
import p2p.kad.messages
import p2p.kad.serving
import p2p.kad.table
from p2p.kad import KadMessage
from p2p.protobuf import varint_bytes

_MODULES: tuple[ModuleType, ...] = (
    p2p.kad.lookup,
    p2p.kad.machine,
    p2p.kad.messages,
    p2p.kad.serving,
    p2p.kad.table,
)
HASHES_MAX = 1_000_000  # distinct ids and keys, 200 MB; then the table starts afresh
PARSED_MAX = 100_000  # offers and beacons, 300 MB at most; then the table starts afresh
_ONE_BYTE = 0x80  # lengths under it take one byte


@contextmanager
def shared_hashes() -> Iterator[None]:
    """Within it, `kad_id` looks up what it has computed before."""
    original = p2p.kad.messages.kad_id
    known: dict[bytes, int] = {}

    def kad_id(key: bytes) -> int:
        found = known.get(key)
        if found is None:
            if len(known) >= HASHES_MAX:
                known.clear()
            found = known[key] = original(key)
        return found

    patched = [module for module in _MODULES if getattr(module, "kad_id", None) is original]
    for module in patched:
        setattr(module, "kad_id", kad_id)  # noqa: B010 - the attribute is only known to be there at run time
    try:
        yield
    finally:
        for module in patched:
            setattr(module, "kad_id", original)  # noqa: B010


@contextmanager
def shared_offers() -> Iterator[None]:
    """Within it, every offer and every beacon is parsed, and its signatures are verified, once for all books that hold
    it. What is refused is refused anew each time."""
    import cocoon.market.book  # all of cocoon's market: only where a scenario has one

    module: Any = cocoon.market.book
    names = ("parse_offer", "verify_parsed", "parse_beacon", "verify_parsed_beacon")
    originals = {name: getattr(module, name) for name in names}
    for name, original in originals.items():
        setattr(module, name, _remembering(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def _remembering(original: Callable[..., Any]) -> Callable[..., Any]:
    """For functions of a message, or of what was parsed from one; further arguments are the same all through a run."""
    known: dict[bytes, Any] = {}

    def look_up(given: Any, **settings: Any) -> Any:
        message = given if type(given) is bytes else given.message
        found = known.get(message)
        if found is None:
            if len(known) >= PARSED_MAX:
                known.clear()
            found = known[message] = original(given, **settings)
        return found

    return look_up


def kad_bytes(message: KadMessage) -> int:
    """`p2p.kad.message_bytes`, written out for the commonest sizes: it is asked for each of a million answers."""
    key = message.key
    total = 2 + (_field(len(key)) if key else 0)
    record = message.record
    if record is not None:
        total += _field(_field(len(record.key)) + _field(len(record.value)))
    for peers in (message.closer, message.providers):
        for peer in peers:
            size = len(peer.peer)
            size += 2 if size < _ONE_BYTE else 1 + varint_bytes(size)
            for address in peer.addresses:
                length = len(address)
                size += length + (2 if length < _ONE_BYTE else 1 + varint_bytes(length))
            total += size + (2 if size < _ONE_BYTE else 1 + varint_bytes(size))
    return total


def _field(size: int) -> int:
    return 1 + varint_bytes(size) + size
