"""Two real yamux sessions over a wire that cuts bytes anywhere: what one writes the other reads, in order."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2p.yamux import Session, SessionStream, StreamArrived, StreamLimitReached, YamuxSettings

SETTINGS = YamuxSettings(streams_inbound_max=6, streams_outbound_max=8, send_buffer_bytes_max=40_000)


class TwoSessions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sessions = [Session(is_client=side == 0, now=0, settings=SETTINGS) for side in (0, 1)]
        self.wires = [bytearray(), bytearray()]  # from side 0, from side 1
        self.local: list[dict[int, SessionStream]] = [{}, {}]
        self.written: dict[tuple[int, int], bytearray] = {}  # (writer, stream id)
        self.read: dict[tuple[int, int], bytearray] = {}
        self.broken: set[int] = set()

    def streams(self, side: int) -> list[SessionStream]:
        return [s for s in self.local[side].values() if s.id not in self.broken]

    @rule(side=st.integers(0, 1))
    def open(self, side: int) -> None:
        try:
            stream = self.sessions[side].open()
        except StreamLimitReached:
            return
        self.local[side][stream.id] = stream

    @precondition(lambda self: any(self.streams(0)) or any(self.streams(1)))
    @rule(side=st.integers(0, 1), pick=st.integers(0, 99), size=st.integers(0, 90_000), seed=st.integers(0, 255))
    def write(self, side: int, pick: int, size: int, seed: int) -> None:
        streams = [s for s in self.streams(side) if not s.is_write_closed and not s.is_reset]
        if streams:
            stream = streams[pick % len(streams)]
            data = bytes((seed + i) & 255 for i in range(251)) * (size // 251 + 1)
            taken = self.sessions[side].write(stream, data[:size])
            self.written.setdefault((side, stream.id), bytearray()).extend(data[:taken])

    @rule(side=st.integers(0, 1), size=st.integers(1, 200_000))
    def carry(self, side: int, size: int) -> None:
        self.wires[side] += self.sessions[side].outgoing(64 * 1024)
        chunk = bytes(self.wires[side][:size])
        del self.wires[side][:size]
        for event in self.sessions[1 - side].receive(chunk):
            if isinstance(event, StreamArrived):
                self.local[1 - side][event.stream.id] = event.stream
                self.sessions[1 - side].accept(event.stream)

    @rule(side=st.integers(0, 1), pick=st.integers(0, 99), size=st.integers(1, 300_000))
    def read_some(self, side: int, pick: int, size: int) -> None:
        streams = self.streams(side)
        if streams:
            stream = streams[pick % len(streams)]
            got = self.sessions[side].read(stream, size)
            self.read.setdefault((1 - side, stream.id), bytearray()).extend(got)

    @rule(side=st.integers(0, 1), pick=st.integers(0, 99))
    def close_write(self, side: int, pick: int) -> None:
        streams = self.streams(side)
        if streams:
            self.sessions[side].close_write(streams[pick % len(streams)])

    @rule(side=st.integers(0, 1), pick=st.integers(0, 99))
    def reset(self, side: int, pick: int) -> None:
        streams = self.streams(side)
        if streams:
            stream = streams[pick % len(streams)]
            self.broken.add(stream.id)
            self.sessions[side].reset(stream)

    @invariant()
    def what_is_read_was_written_in_order(self) -> None:
        for key, got in self.read.items():
            assert self.written.get(key, bytearray())[: len(got)] == got

    @invariant()
    def nothing_grows_past_its_bound(self) -> None:
        for session in self.sessions:
            assert len(session.streams) <= 14
            for stream in session.streams:
                assert len(stream.unread) <= SETTINGS.window_bytes
                assert len(stream.unsent) <= SETTINGS.send_buffer_bytes_max
            assert session.unread_bytes == sum(len(s.unread) for s in session.streams)

    def teardown(self) -> None:
        for _ in range(400):
            for side in (0, 1):
                self.carry(side, 1 << 20)
                for stream in self.streams(side):
                    got = self.sessions[side].read(stream)
                    self.read.setdefault((1 - side, stream.id), bytearray()).extend(got)
        for side in (0, 1):
            for stream in self.streams(side):
                if not stream.is_reset:  # reset by the remote: refused over its limit
                    key = (1 - side, stream.id)
                    assert self.read.get(key, bytearray()) == self.written.get(key, bytearray())


TestTwoSessions = TwoSessions.TestCase
TestTwoSessions.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
