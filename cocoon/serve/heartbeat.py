"""Is the other end alive? The same small machine in both ends of a session.

Anything received counts as life. After 15 s of silence a Ping goes out, after 45 s the stream is dead.
"""

from __future__ import annotations

from ..errors import LimitExceeded
from ..wire.messages import Ping, Pong
from . import bounds


class Heartbeat:
    """Times of the last life and the last Ping, in ns."""

    __slots__ = ("_heard_ns", "_next_ping_ns", "_pings", "_pings_since_ns", "_token")

    def __init__(self, *, now: int) -> None:
        self._heard_ns = now
        self._next_ping_ns = now + bounds.PING_IDLE_NS
        self._token = 0
        self._pings_since_ns = now
        self._pings = 0

    def heard(self, now: int) -> None:
        """Something came from the other end."""
        self._heard_ns = now
        self._next_ping_ns = now + bounds.PING_IDLE_NS

    def answer(self, ping: Ping, now: int) -> Pong:
        """The answer to a Ping. Raises `LimitExceeded` on a flood."""
        if now - self._pings_since_ns >= bounds.PING_IDLE_NS:
            self._pings_since_ns, self._pings = now, 0
        if self._pings >= bounds.PINGS_PER_IDLE_MAX:
            raise LimitExceeded("too many pings")
        self._pings += 1
        return Pong(token=ping.token)

    def ping_due(self, now: int) -> Ping | None:
        """The Ping to send now, if it is time for one."""
        if now < self._next_ping_ns:
            return None
        self._next_ping_ns = now + bounds.PING_IDLE_NS
        self._token += 1
        return Ping(token=self._token)

    @property
    def heard_ns(self) -> int:
        """The last sign of life."""
        return self._heard_ns

    def probe(self, now: int) -> Ping:
        """A Ping out of turn, for somebody who cannot wait."""
        self._next_ping_ns = now + bounds.PING_IDLE_NS
        self._token += 1
        return Ping(token=self._token)

    def is_dead(self, now: int) -> bool:
        """Whether the silence has lasted too long."""
        return now - self._heard_ns >= bounds.DEAD_NS

    def deadline(self) -> int:
        """When there is something to do."""
        return min(self._next_ping_ns, self._heard_ns + bounds.DEAD_NS)
