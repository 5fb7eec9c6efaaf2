"""Inbound streams: which handler serves which protocol, how many streams a peer may have, and the supervision
boundary that keeps one bad stream from being more than one bad stream."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from p2p.counters import Counters
from p2p.errors import StreamClosed, StreamError
from p2p.framed import FramedStream, RawStream
from p2p.interface import PeerId, StreamHandler

log = logging.getLogger("p2p")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    protocol: str
    handler: StreamHandler
    frame_bytes_max: int
    streams_per_peer_max: int
    streams_max: int


class Services:
    """The protocols a node serves, and the streams that are being served."""

    def __init__(self, counters: Counters, *, streams_per_peer_max: int) -> None:
        self._counters = counters
        self._streams_per_peer_max = streams_per_peer_max
        self._by_protocol: dict[str, Service] = {}
        self._open: Counter[tuple[PeerId, str]] = Counter()
        self._open_per_peer: Counter[PeerId] = Counter()
        self._open_per_protocol: Counter[str] = Counter()

    def add(self, service: Service) -> None:
        self._by_protocol[service.protocol] = service

    def find(self, protocol: str) -> Service | None:
        return self._by_protocol.get(protocol)

    async def serve(self, service: Service, raw: RawStream, peer: PeerId) -> None:
        """Run the handler on one inbound stream. Returns when it is over; only cancellation passes."""
        key = (peer, service.protocol)
        if (
            self._open[key] >= service.streams_per_peer_max
            or self._open_per_peer[peer] >= self._streams_per_peer_max
            or self._open_per_protocol[service.protocol] >= service.streams_max
        ):
            self._counters.streams_refused += 1
            await raw.reset()
            return
        self._open[key] += 1
        self._open_per_peer[peer] += 1
        self._open_per_protocol[service.protocol] += 1
        self._counters.streams_accepted += 1
        stream = FramedStream(
            raw,
            peer=peer,
            protocol=service.protocol,
            frame_bytes_max=service.frame_bytes_max,
            counters=self._counters,
        )
        served = False
        try:
            await service.handler(stream)
            served = True
        except StreamClosed:
            served = True  # the peer had said all, and the handler did not expect the end: still in order
        except StreamError:
            pass  # the peer's doing, and over
        except Exception as error:  # the supervision boundary of a stream
            self._counters.handler_errors += 1
            log.warning(
                "stream.handler_failed",
                extra={"protocol": service.protocol, "peer": peer, "error": type(error).__name__},
            )
        finally:
            self._forget(key)
            if served:
                await stream.aclose()
            else:
                await stream.reset()

    def _forget(self, key: tuple[PeerId, str]) -> None:
        self._open[key] -= 1
        self._open_per_peer[key[0]] -= 1
        self._open_per_protocol[key[1]] -= 1
        if not self._open[key]:
            del self._open[key]
        if not self._open_per_peer[key[0]]:
            del self._open_per_peer[key[0]]
