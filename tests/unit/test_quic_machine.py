"""The QUIC machine: credit follows reading, every table has a bound, each end of a stream is told apart.

The last tests say what the library does by itself, so that an upgrade which mends it is noticed here.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode

from p2p.driver.quic_certificate import CertificateRefused
from p2p.driver.quic_machine import (
    HALF_CLOSED_IDLE_S,
    RELEASED_BYTES_MAX,
    SEND_BUFFER_BYTES_MAX,
    QuicMachine,
)
from p2p.driver.quic_state import Pong, QuicFailed, QuicSettings, StreamState
from p2p.driver.quic_tamed import CRYPTO_BYTES_MAX, STREAMS_MAX, STREAMS_SLACK
from p2p.errors import StreamLimitReached
from p2p.noise import AnotherPeer
from tests.fakes.quic_pair import PEERS, Pair

KIB = 1024


def opened(pair: Pair, first: bytes = b"x") -> tuple[StreamState, StreamState]:
    """A stream from the client, and the server's end of it."""
    stream = pair.client.open_stream()
    pair.client.write(stream, first)
    known = len(pair.arrived(pair.server))
    pair.run(lambda: len(pair.arrived(pair.server)) > known)
    return stream, pair.arrived(pair.server)[-1]


def closed_with(machine: QuicMachine) -> int | None:
    return machine._close_event.error_code if machine._close_event is not None else None


# --- who is there ------------------------------------------------------------------------------------------


def test_both_sides_know_who_the_other_is() -> None:
    pair = Pair().open()
    assert (pair.client.remote_peer, pair.server.remote_peer) == (PEERS["server"], PEERS["client"])


def test_another_peer_than_the_one_that_was_dialled_is_refused_before_anything_is_sent_to_it() -> None:
    pair = Pair(expected_peer=PEERS["client"])
    pair.run(lambda: pair.client.is_over and pair.server.is_over)
    assert isinstance(pair.client.failure, AnotherPeer)
    assert pair.server.remote_peer is None
    with pytest.raises(QuicFailed):
        pair.client.open_stream()


def test_a_client_without_a_certificate_is_nobody() -> None:
    pair = Pair(client_certificate=(None, None))
    pair.run(lambda: pair.server.is_over)
    assert isinstance(pair.server.failure, CertificateRefused)
    assert pair.server.remote_peer is None


def test_what_arrives_before_the_client_has_proved_itself_is_not_looked_at() -> None:
    class Hasty(QuicMachine):
        def take_events(self, *, now: float) -> Any:
            found = super().take_events(now=now)
            if self.remote_peer and not self._streams:
                self.send_stream_data(0, b"now!", end_stream=True)
            return found

    pair = Pair(client_type=Hasty, client_certificate=(None, None))
    pair.run(lambda: pair.server.is_over)
    assert pair.arrived(pair.server) == []


# --- flow control ------------------------------------------------------------------------------------------


def test_a_writer_is_held_back_at_the_window_until_somebody_reads_and_nothing_is_lost() -> None:
    pair = Pair(server_settings=QuicSettings(window_bytes=64 * KIB)).open()
    stream, theirs = opened(pair)
    data = random.Random(1).randbytes(3 * 1024 * KIB)
    sent, got, largest = 0, b"", 0
    for _ in range(400):
        sent = pair.client.write(stream, data, sent)
        pair.client.take_unblocked()
        pair.step()
        largest = max(largest, len(theirs.unread))
    assert 60 * KIB < largest <= 64 * KIB
    assert sent <= 64 * KIB + SEND_BUFFER_BYTES_MAX
    for _ in range(20_000):
        sent = pair.client.write(stream, data, sent) if sent < len(data) else sent
        pair.client.take_unblocked()
        got += pair.server.read(theirs, 32 * KIB)
        if len(got) == len(data) + 1:
            break
        pair.step()
    assert got[1:] == data


class Greedy(QuicMachine):
    """Takes what it was allowed for nothing."""

    def ignore_limits(self) -> None:
        self._remote_max_data = self._remote_max_streams_bidi = 1 << 40
        for stream in self._streams.values():
            stream.max_stream_data_remote = 1 << 40


def test_a_peer_that_ignores_the_window_is_cut_off_and_its_bytes_are_not_kept() -> None:
    pair = Pair(client_type=Greedy).open()
    greedy: Any = pair.client
    _, theirs = opened(pair)
    greedy.ignore_limits()
    greedy.send_stream_data(0, bytes(5 * 1024 * KIB))
    pair.run(lambda: pair.server.is_over)
    assert closed_with(pair.server) == QuicErrorCode.FLOW_CONTROL_ERROR
    assert len(theirs.unread) <= 256 * KIB


def test_when_too_much_lies_unread_in_total_the_fullest_stream_pays_and_the_others_go_on() -> None:
    settings = QuicSettings(window_bytes=64 * KIB, receive_total_bytes_max=512 * KIB)
    pair = Pair(server_settings=settings).open()
    quiet, their_quiet = opened(pair)
    streams = [pair.client.open_stream() for _ in range(20)]
    for number, stream in enumerate(streams):
        pair.client.write(stream, bytes(60 * KIB + number))
    worst = 0
    for _ in range(600):
        pair.step()
        worst = max(worst, pair.server.unread_bytes)
    assert worst <= 512 * KIB
    assert 0 < sum(stream.is_reset for stream in streams) < 20
    assert not quiet.is_reset
    pair.client.write(quiet, b"still here")
    pair.run(lambda: bytes(their_quiet.unread) == b"xstill here")


def test_bytes_of_streams_that_were_reset_are_given_back_to_the_connection() -> None:
    settings = QuicSettings(window_bytes=64 * KIB, receive_total_bytes_max=256 * KIB)
    pair = Pair(server_settings=settings).open()
    for turn in range(40):  # ten times the connection's window
        stream, theirs = opened(pair)
        pair.client.write(stream, bytes(50 * KIB))
        pair.run(lambda theirs=theirs: len(theirs.unread) > 40 * KIB)
        if turn % 2:
            pair.client.reset(stream)
            pair.run(lambda theirs=theirs: theirs.is_reset)
        else:
            pair.server.reset(theirs)
        pair.settle(rounds=30)
    assert pair.server.unread_bytes == 0
    assert not pair.client.is_over


def test_bytes_that_were_announced_by_a_reset_and_never_came_are_given_back_too() -> None:
    settings = QuicSettings(window_bytes=64 * KIB, receive_total_bytes_max=256 * KIB)
    pair = Pair(server_settings=settings).open()
    chance = random.Random(3)
    for _ in range(30):
        stream = pair.client.open_stream()
        pair.client.write(stream, bytes(50 * KIB))
        pair.loses = lambda _: chance.random() < 0.5
        pair.settle(rounds=5)
        pair.client.reset(stream)
        pair.loses = lambda _: False
        pair.settle(rounds=80)
    assert pair.server._local_max_data.used > 100 * KIB
    assert pair.server._local_max_data.used == pair.server._consumed_total


def test_everything_arrives_in_order_although_a_fifth_of_the_datagrams_is_lost() -> None:
    for seed in range(3):
        chance = random.Random(seed)
        pair = Pair(loses=lambda _, chance=chance: chance.random() < 0.2)
        pair.run(lambda pair=pair: pair.client.remote_peer and pair.server.remote_peer)
        stream = pair.client.open_stream()
        data = chance.randbytes(300 * KIB)
        sent, got = 0, b""
        for _ in range(60_000):
            sent = pair.client.write(stream, data, sent) if sent < len(data) else sent
            pair.step()
            for theirs in pair.arrived(pair.server)[:1]:
                got += pair.server.read(theirs, 64 * KIB)
            if len(got) == len(data):
                break
        assert got == data, f"seed {seed}: {len(got)} bytes"


# --- limits on streams -------------------------------------------------------------------------------------


def test_so_many_streams_and_no_more_can_be_open_and_places_are_given_back() -> None:
    pair = Pair().open()
    streams = [pair.client.open_stream() for _ in range(STREAMS_MAX)]
    with pytest.raises(StreamLimitReached):
        pair.client.open_stream()
    for stream in streams:
        pair.client.write(stream, b"x")
    pair.run(lambda: len(pair.arrived(pair.server)) == STREAMS_MAX)
    for turn in range(3 * STREAMS_MAX):  # each place again and again
        pair.client.reset(streams.pop(0))
        streams.append(pair.client.open_stream())
        pair.client.write(streams[-1], b"x")
        if turn % 8 == 0:
            pair.settle(rounds=12)
    pair.settle(rounds=60)
    assert not pair.client.is_over
    assert len(pair.server.streams) == STREAMS_MAX
    assert len(pair.server._streams) <= STREAMS_MAX + STREAMS_SLACK


def test_a_peer_that_opens_more_than_it_may_is_cut_off() -> None:
    pair = Pair(client_type=Greedy).open()
    greedy: Any = pair.client
    greedy.ignore_limits()
    for number in range(STREAMS_MAX + STREAMS_SLACK + 1):
        greedy.send_stream_data(4 * number, b"x")
        greedy.ignore_limits()
    pair.run(lambda: pair.server.is_over)
    assert closed_with(pair.server) == QuicErrorCode.STREAM_LIMIT_ERROR
    assert len(pair.server._streams) <= STREAMS_MAX + STREAMS_SLACK


def test_streams_in_one_direction_are_not_taken() -> None:
    pair = Pair(client_type=Greedy).open()
    greedy: Any = pair.client
    greedy._remote_max_streams_uni = greedy._remote_max_stream_data_uni = 1 << 20
    greedy.send_stream_data(2, b"x")
    pair.run(lambda: pair.server.is_over)
    assert closed_with(pair.server) == QuicErrorCode.STREAM_LIMIT_ERROR


def test_a_peer_that_never_confirms_our_resets_does_not_make_our_tables_grow() -> None:
    pair = Pair().open()
    pair.client._remote_max_streams_bidi = 1 << 20
    pair.loses = lambda _: True
    opened_before = 0
    with pytest.raises(StreamLimitReached):  # noqa: PT012 - it comes after many
        while opened_before < 10_000:
            pair.client.reset(pair.client.open_stream())
            opened_before += 1
    assert STREAMS_MAX < opened_before <= 3 * STREAMS_MAX
    assert len(pair.client._table) <= 3 * STREAMS_MAX


# --- ends --------------------------------------------------------------------------------------------------


def test_one_half_ends_and_the_other_goes_on() -> None:
    pair = Pair().open()
    stream, theirs = opened(pair)
    pair.client.close_write(stream, now=pair.now)
    pair.run(lambda: theirs.is_ended)
    pair.server.write(theirs, b"answer")
    pair.run(lambda: bytes(stream.unread) == b"answer")
    assert not stream.is_ended
    pair.server.close_write(theirs, now=pair.now)
    pair.run(lambda: stream.is_ended)
    pair.settle()
    assert pair.client.streams == pair.server.streams == ()
    assert pair.client._streams == pair.server._streams == {}


def test_a_reset_reaches_both_halves() -> None:
    pair = Pair().open()
    stream, theirs = opened(pair)
    pair.server.reset(theirs)
    pair.run(lambda: stream.is_reset)
    pair.settle()
    assert pair.client._table == pair.server._table == {}
    assert pair.client.write(stream, b"dropped") == len(b"dropped")
    assert not pair.client.is_over


def test_a_peer_that_writes_to_a_stream_nobody_reads_is_told_to_stop() -> None:
    pair = Pair().open()
    stream, theirs = opened(pair)
    pair.server.write(theirs, b"the last word")
    pair.server.close_write(theirs, now=pair.now)
    pair.server.release(theirs)
    pair.client.write(stream, bytes(RELEASED_BYTES_MAX // 2))
    pair.settle(rounds=60)
    assert not stream.is_stopped
    pair.client.write(stream, bytes(RELEASED_BYTES_MAX))
    pair.run(lambda: stream.is_stopped)
    assert bytes(stream.unread) == b"the last word"
    assert pair.server.unread_bytes == 0


def test_a_stop_before_any_data_is_not_an_accident() -> None:
    pair = Pair(client_type=Greedy).open()
    stream = pair.client.open_stream()
    pair.client.stop_stream(stream.id, 0)
    pair.settle(rounds=20)
    pair.client.write(stream, b"hello")
    pair.run(lambda: pair.arrived(pair.server))
    (theirs,) = pair.arrived(pair.server)
    assert theirs.is_stopped
    pair.server.write(theirs, b"to nobody")
    pair.server.close_write(theirs, now=pair.now)
    assert not pair.server.is_over


def test_a_peer_that_never_closes_its_side_is_reset_after_minutes_of_silence() -> None:
    pair = Pair().open()
    stream, _ = opened(pair)
    pair.client.close_write(stream, now=pair.now)
    assert pair.client.reset_silent_streams(now=pair.now + HALF_CLOSED_IDLE_S - 1) == []
    assert pair.client.reset_silent_streams(now=pair.now + HALF_CLOSED_IDLE_S + 1) == [stream]
    assert stream.is_reset


def test_a_ping_is_answered() -> None:
    pair = Pair().open()
    pair.client.ping()
    pair.run(lambda: any(isinstance(event, Pong) for event in pair.events[pair.client]))


def test_a_peer_that_falls_silent_is_given_up_after_the_idle_time() -> None:
    pair = Pair().open()
    pair.loses = lambda _: True
    since = pair.now
    pair.client.ping()
    while not pair.client.is_over:
        pair.now += 0.25
        pair.step()
    assert 25 < pair.now - since < 70


# --- hostile handshakes and bugs ---------------------------------------------------------------------------


def test_a_handshake_message_of_megabytes_is_refused_at_its_first_kilobytes() -> None:
    pair = Pair()
    huge = bytes((11,)) + (1 << 20).to_bytes(3, "big") + bytes(200 * KIB)  # a Certificate, announced as 1 MiB long

    def flood() -> bool:
        if pair.client.remote_peer and not pair.client._crypto_streams[tls.Epoch.ONE_RTT].sender._buffer_stop:
            pair.client._crypto_streams[tls.Epoch.ONE_RTT].sender.write(huge)
        return pair.server.is_over

    pair.run(flood)
    assert closed_with(pair.server) == QuicErrorCode.CRYPTO_BUFFER_EXCEEDED
    assert len(pair.server.tls._receive_buffer) <= CRYPTO_BYTES_MAX


def test_whatever_the_library_raises_ends_that_connection_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("receive_datagram", "handle_timer", "datagrams_to_send", "next_event"):
        pair = Pair().open()
        with monkeypatch.context() as patch:

            def trip(*_: object, **__: object) -> None:
                raise AssertionError("on what a peer sent")

            patch.setattr(QuicConnection, name, trip)
            if name == "next_event":
                pair.server.take_events(now=pair.now)
            else:
                getattr(pair.server, name)(*([b"", ("", 0)] if name == "receive_datagram" else []), pair.now)
        assert isinstance(pair.server.failure, QuicFailed)
        assert pair.server.take_events(now=pair.now) == []


# --- what the library does by itself -----------------------------------------------------------------------


def test_the_library_still_raises_its_windows_without_being_read() -> None:
    class Stock(QuicMachine):
        _write_stream_limits = QuicConnection._write_stream_limits
        _write_connection_limits = QuicConnection._write_connection_limits

    settings = QuicSettings(window_bytes=64 * KIB)
    pair = Pair(client_type=Stock, client_settings=settings).open()
    stream, theirs = opened(pair)
    sent, data = 0, bytes(1024 * KIB)
    for _ in range(2000):
        sent = pair.server.write(theirs, data, sent) if sent < len(data) else sent
        pair.step()
    assert len(stream.unread) > 4 * 64 * KIB, "aioquic waits for the reader now: the overrides may go"


def test_the_library_still_asks_no_client_for_a_certificate() -> None:
    context = tls.Context(is_client=False)
    assert context._request_client_certificate is False


def test_the_library_still_gathers_any_length_of_handshake_message() -> None:
    context = tls.Context(is_client=False)
    context.handle_message(bytes((1,)) + (1 << 20).to_bytes(3, "big") + bytes(600 * KIB), {})
    assert len(context._receive_buffer) > 512 * KIB
