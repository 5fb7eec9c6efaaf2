"""The output of all requests of one session, waiting for its next frame: when it leaves, and what it carries.

A frame leaves at once when the last one is 20 ms old, or when it holds a request's first token; otherwise 20 ms
after the last. What credit does not allow stays here, within bounds, and says when the engine should pause.
"""

from __future__ import annotations

from ..wire import limits
from ..wire.messages import Chunk
from . import bounds
from .outbox import ServedRequest


class FrameQueue:
    """Requests with something to send, oldest first."""

    def __init__(self, *, now: int) -> None:
        self._ready: dict[int, ServedRequest] = {}  # with output that credit may allow
        self._blocked: dict[int, int] = {}  # ids with output that waits for credit or payment, and since when
        self._full: dict[int, ServedRequest] = {}
        self._buffered_bytes = 0
        self._flushed_ns = now - bounds.FRAME_INTERVAL_NS
        self.flush_at_ns: int | None = None

    def grew(self, request: ServedRequest, grown_bytes: int, *, now: int, urgent: bool) -> None:
        """This request has more to send."""
        self._buffered_bytes += grown_bytes
        own = request.buffered_bytes
        if (
            own >= bounds.BUFFER_BYTES_HIGH
            or request.is_unpaid  # nobody has to compute far ahead of a client that does not pay
            or (own > grown_bytes and self._buffered_bytes >= bounds.SESSION_BUFFER_BYTES_HIGH)
        ):
            self._full[request.id] = request
        if request.id not in self._blocked:
            self._ready[request.id] = request
            self._flush_by(now if urgent else max(now, self._flushed_ns + bounds.FRAME_INTERVAL_NS))

    def unblock(self, request: ServedRequest, now: int) -> None:
        """It got credit, or payment."""
        if self._blocked.pop(request.id, None) is not None:
            self._ready[request.id] = request
            self._flush_by(max(now, self._flushed_ns + bounds.FRAME_INTERVAL_NS))

    def remove(self, request: ServedRequest) -> None:
        """It has closed; its output is dropped."""
        self._ready.pop(request.id, None)
        self._blocked.pop(request.id, None)
        self._full.pop(request.id, None)
        self._buffered_bytes -= request.buffered_bytes

    def clear(self) -> None:
        """The session is over."""
        self._ready.clear()
        self._blocked.clear()
        self._full.clear()
        self._buffered_bytes = 0
        self.flush_at_ns = None

    def is_blocked(self, request_id: int) -> bool:
        """Whether it waits for credit or payment."""
        return request_id in self._blocked

    def is_full(self, request_id: int) -> bool:
        """Whether its engine should pause."""
        return request_id in self._full

    def stalled(self, now: int) -> list[int]:
        """Requests whose reader has taken nothing for too long."""
        return [request_id for request_id, since in self._blocked.items() if now - since >= bounds.STALL_NS]

    def deadline(self) -> int | None:
        """When `take` or `stalled` has something."""
        when = self.flush_at_ns
        if self._blocked:
            stall_ns = min(self._blocked.values()) + bounds.STALL_NS
            when = stall_ns if when is None else min(when, stall_ns)
        return when

    def take(self, now: int) -> tuple[list[Chunk], list[ServedRequest]]:
        """The chunks of the next frame, and the requests they are of. What does not fit follows with the next one."""
        chunks: list[Chunk] = []
        touched: list[ServedRequest] = []
        size = 0
        for request in list(self._ready.values()):
            if len(chunks) >= limits.FRAME_CHUNKS_MAX or size >= bounds.FLUSH_BYTES_MAX:
                break
            before = request.buffered_bytes
            while len(chunks) < limits.FRAME_CHUNKS_MAX and size < bounds.FLUSH_BYTES_MAX:
                chunk = request.next_chunk(now)
                if chunk is not None:
                    chunks.append(chunk)
                    size += len(chunk.sealed)
                    if not chunk.final and request.has_output:
                        continue  # as long as credit and payment allow
                elif request.has_output:
                    self._blocked[request.id] = now
                del self._ready[request.id]
                break
            self._buffered_bytes += request.buffered_bytes - before
            touched.append(request)
        self.flush_at_ns = None
        if chunks:
            self._flushed_ns = now
        if self._ready:
            self._flush_by(now + bounds.FRAME_INTERVAL_NS)
        return chunks, touched

    def take_drained(self) -> list[int]:
        """Requests that were full and have room again."""
        drained = [
            request.id
            for request in self._full.values()
            if request.buffered_bytes == 0
            or (
                not request.is_unpaid
                and request.buffered_bytes <= bounds.BUFFER_BYTES_LOW
                and self._buffered_bytes <= bounds.SESSION_BUFFER_BYTES_LOW
            )
        ]
        for request_id in drained:
            del self._full[request_id]
        return drained

    def _flush_by(self, when_ns: int) -> None:
        if self.flush_at_ns is None or when_ns < self.flush_at_ns:
            self.flush_at_ns = when_ns
