"""Where the CPU time goes: a sampling profiler that sorts stacks into the parts of the path.

A timer of CPU time (`ITIMER_PROF`) interrupts the main thread, where trio runs; the innermost frame that belongs to a
part decides. C code (crypto, JSON, sockets) counts for the Python that called it. Costs about 1 % at 500 Hz.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

INTERVAL_S: Final = 0.002

PARTS: Final = (
    ("/cocoon/gateway/sse", "JSON and SSE"),
    ("/cocoon/gateway/objects", "JSON and SSE"),
    ("/cocoon/gateway/h11_server", "HTTP"),
    ("/h11/", "HTTP"),
    ("/hypercorn/", "HTTP"),
    ("/starlette/", "HTTP"),
    ("/cocoon/gateway/", "gateway app"),
    ("/cocoon/wire/", "CBOR"),
    ("/cbor2", "CBOR"),
    ("/cocoon/serve/sealing", "sealing"),
    ("/cocoon/serve/chunks", "sealing"),
    ("/cocoon/serve/openai", "request checks"),
    ("/cocoon/serve/", "session machines"),
    ("/cocoon/pump", "roles and pump"),
    ("/cocoon/client/", "roles and pump"),
    ("/cocoon/node/", "roles and pump"),
    ("/cocoon/exchange", "market"),
    ("/cocoon/market/", "market"),
    ("/cocoon/adapters/engines/", "engine adapter"),
    ("/cocoon/adapters/", "adapters"),
    ("/p2p/noise/", "Noise"),
    ("/noise/", "Noise"),
    ("/p2p/", "own p2p"),
    ("/libp2p/", "libp2p"),
    ("/trio/", "trio"),
    ("/cocoon/cli/bench/", "bench"),
)


class Sampler:
    """Counts samples by part from `start` on; `write` saves them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def start(self) -> None:
        """Begin. Main thread only."""
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def reset(self) -> None:
        """Forget what was counted: the start-up is over."""
        self._counts.clear()

    def stop(self) -> None:
        """End. Without it, a last signal while Python shuts down would kill the process."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def write(self, path: Path) -> None:
        """Save the counts as JSON, atomically."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self._counts))
        partial.replace(path)

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        while frame is not None:
            name = frame.f_code.co_filename
            for part, label in PARTS:
                if part in name:
                    self._counts[label] += 1
                    return
            frame = frame.f_back
        self._counts["other"] += 1
