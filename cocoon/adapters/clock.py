"""The system's clock and randomness behind the ports."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable


class SystemClock:
    """Wall time that never runs backwards, from any thread.

    When the system's clock is set back, this one goes on at half speed until the other has caught up, so time
    neither stops nor returns. Set forward, it follows at once.
    """

    def __init__(
        self,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        self._now = wall_ns()
        self._at = monotonic_ns()

    def now(self) -> int:
        """Nanoseconds since the Unix epoch; never less than an earlier answer."""
        with self._lock:
            at = self._monotonic_ns()
            self._now = max(self._wall_ns(), self._now + (at - self._at) // 2)
            self._at = at
            return self._now


entropy = secrets.token_bytes
"""The operating system's randomness, fit for keys."""
