"""A limited circuit relay v2 for others: for public nodes (`NodeSettings.relay`).

A peer that cannot be dialled reserves a place (RESERVE) and stays connected. Whoever wants it asks us (CONNECT); we
ask the peer (STOP), and then carry sealed bytes between the two streams, so many and for so long, both bounded.
Own rather than the library's, which knows one circuit per peer, ends both directions at the first end of one, and
tries to read a reset stream three times. Source: libp2p/specs, relay/circuit-v2.md.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from multiaddr import Multiaddr

from p2p.driver.exchange import MessageStream
from p2p.driver.host import GuardedHost
from p2p.driver.negotiate import propose
from p2p.driver.streams import MuxedRawStream
from p2p.errors import FrameInvalid, FrameTooLarge, OpenFailed, StreamReset
from p2p.identity import PEER_ID_BYTES
from p2p.interface import RelayLimits
from p2p.reach import (
    HOP,
    STOP,
    HopKind,
    HopMessage,
    ReachMessageInvalid,
    Status,
    StopKind,
    StopMessage,
    decode_hop,
    decode_stop,
    encode_hop,
    encode_stop,
)

log = logging.getLogger("p2p")

REQUEST_TIMEOUT_S = 10.0  # for the request to come
STOP_TIMEOUT_S = 10.0  # for the wanted peer to answer
RELAY_ERRORS = (StreamReset, FrameTooLarge, FrameInvalid, ReachMessageInvalid, OpenFailed)
MUXER_ERRORS = (MuxedStreamError, MuxedStreamReset, MuxedStreamEOF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    expires_at_s: float  # trio's clock
    host: str


class Relay:
    def __init__(self, host: GuardedHost, *, limits: RelayLimits) -> None:
        self._host = host
        self._swarm = host.get_network()
        self._limits = limits
        self.reservations: dict[ID, Reservation] = {}
        self._circuits: Counter[ID] = Counter()  # each circuit counts for both its ends
        self.circuits_open = 0

    def start(self) -> None:
        self._host.set_stream_handler(TProtocol(HOP), self._handle)

    async def _handle(self, net_stream: INetStream) -> None:
        stream = MessageStream(net_stream.muxed_stream)
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                request = decode_hop(await stream.receive())
        except (trio.TooSlowError, *RELAY_ERRORS) as error:
            log.debug("relay.request_refused", extra={"error": type(error).__name__})
            await stream.raw.reset()
            return
        source = net_stream.muxed_conn.peer_id
        try:
            if net_stream.muxed_conn.is_relayed:  # "relays SHOULD NOT allow … over a relayed connection"
                await self._refuse(stream, Status.PERMISSION_DENIED)
            elif request.kind is HopKind.RESERVE:
                await self._reserve(stream, source, net_stream.muxed_conn.get_remote_address())
            elif request.kind is HopKind.CONNECT:
                await self._connect(stream, source, request.peer)
            else:
                await self._refuse(stream, Status.UNEXPECTED_MESSAGE)
        except (*RELAY_ERRORS, *MUXER_ERRORS):
            await stream.raw.reset()

    async def _refuse(self, stream: MessageStream, status: Status) -> None:
        await stream.send(encode_hop(HopMessage(kind=HopKind.STATUS, status=status)))
        await stream.raw.close_write()
        await stream.raw.release()

    # --- reservations ------------------------------------------------------------------------------------

    def _forget_stale(self) -> None:
        now = trio.current_time()
        for peer in [
            peer
            for peer, reservation in self.reservations.items()
            if reservation.expires_at_s <= now or not self._swarm.direct_connections(peer)
        ]:
            del self.reservations[peer]

    async def _reserve(self, stream: MessageStream, peer: ID, remote: tuple[str, int] | None) -> None:
        self._forget_stale()
        limits = self._limits
        host = remote[0] if remote else ""
        if peer not in self.reservations:
            on_host = sum(reservation.host == host for reservation in self.reservations.values())
            if len(self.reservations) >= limits.reservations_max or on_host >= limits.reservations_per_host_max:
                await self._refuse(stream, Status.RESERVATION_REFUSED)
                return
        self.reservations[peer] = Reservation(expires_at_s=trio.current_time() + limits.reservation_ttl_s, host=host)
        await stream.send(
            encode_hop(
                HopMessage(
                    kind=HopKind.STATUS,
                    status=Status.OK,
                    expires_at_s=int(time.time() + limits.reservation_ttl_s),
                    addresses=tuple(Multiaddr(address).to_bytes() for address in self._host.direct_addresses()),
                    duration_s=int(limits.circuit_duration_s),
                    data_bytes=limits.circuit_bytes,
                )
            )
        )
        await stream.raw.close_write()
        await stream.raw.release()

    # --- circuits ----------------------------------------------------------------------------------------

    async def _connect(self, stream: MessageStream, source: ID, wanted: bytes) -> None:
        self._forget_stale()
        limits = self._limits
        if len(wanted) != PEER_ID_BYTES:
            await self._refuse(stream, Status.MALFORMED_MESSAGE)
            return
        target = ID(wanted)
        if target not in self.reservations or target == source:
            await self._refuse(stream, Status.NO_RESERVATION)
            return
        if (
            self.circuits_open >= limits.circuits_max
            or max(self._circuits[source], self._circuits[target]) >= limits.circuits_per_peer_max
        ):
            await self._refuse(stream, Status.RESOURCE_LIMIT_EXCEEDED)
            return
        self.circuits_open += 1
        self._circuits.update((source, target))
        try:
            far = await self._ask_target(target, source)
            if far is None:
                await self._refuse(stream, Status.CONNECTION_FAILED)
                return
            await self._carry(stream, far)
        finally:
            self.circuits_open -= 1
            self._circuits.subtract((source, target))
            self._circuits += Counter()  # drops those at zero

    async def _ask_target(self, target: ID, source: ID) -> MessageStream | None:
        """A stream that the target has accepted as one end of the circuit."""
        muxed = None
        accepted = False
        try:
            with trio.fail_after(STOP_TIMEOUT_S):
                muxed = await self._swarm.direct_connections(target)[-1].muxed_conn.open_stream()
                await propose(muxed, STOP)
                far = MessageStream(muxed)
                await far.send(
                    encode_stop(
                        StopMessage(
                            kind=StopKind.CONNECT,
                            peer=source.to_bytes(),
                            duration_s=int(self._limits.circuit_duration_s),
                            data_bytes=self._limits.circuit_bytes,
                        )
                    )
                )
                answer = decode_stop(await far.receive())
                accepted = answer.kind is StopKind.STATUS and answer.status == Status.OK
                return far if accepted else None
        except (trio.TooSlowError, *RELAY_ERRORS, *MUXER_ERRORS):
            return None
        finally:
            if muxed is not None and not accepted:
                with trio.move_on_after(1) as scope:
                    scope.shield = True
                    await muxed.reset()

    async def _carry(self, near: MessageStream, far: MessageStream) -> None:
        limits = self._limits
        done = False
        try:
            await near.send(
                encode_hop(
                    HopMessage(
                        kind=HopKind.STATUS,
                        status=Status.OK,
                        duration_s=int(limits.circuit_duration_s),
                        data_bytes=limits.circuit_bytes,
                    )
                )
            )
            with trio.move_on_after(limits.circuit_duration_s or float("inf")) as scope:
                async with trio.open_nursery() as nursery:
                    for one, other in ((near, far), (far, near)):
                        nursery.start_soon(self._carry_one_way, one, other.raw, nursery.cancel_scope)
                done = not nursery.cancel_scope.cancelled_caught and not scope.cancelled_caught
        finally:
            with trio.move_on_after(1) as closing:
                closing.shield = True
                for end in (near.raw, far.raw):
                    if done:
                        await end.release()
                    else:
                        await end.reset()

    async def _carry_one_way(self, source: MessageStream, target: MuxedRawStream, scope: trio.CancelScope) -> None:
        """One direction to its end, which is passed on. A break, or one byte too many, breaks both."""
        left = self._limits.circuit_bytes or float("inf")
        data = source.rest
        try:
            while data or (data := await source.raw.read_some()):
                left -= len(data)
                if left < 0:
                    scope.cancel()
                    return
                await target.write_all(data)
                data = b""
            await target.close_write()
        except StreamReset:
            scope.cancel()
