"""The yamux session against the words of its specification (libp2p/specs, yamux/README.md)."""

from __future__ import annotations

import pytest

from p2p.yamux import (
    PongReceived,
    RemoteGone,
    RemoteGoneAway,
    Session,
    SessionStream,
    StreamArrived,
    StreamLimitReached,
    StreamReadable,
    YamuxSettings,
    YamuxViolation,
)
from p2p.yamux.messages import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE, encode_header

SECOND = 1_000_000_000
WINDOW = 256 * 1024
WIRE = 1 << 20  # more than any test has to send


def pair(client: YamuxSettings | None = None, server: YamuxSettings | None = None) -> tuple[Session, Session]:
    return (
        Session(is_client=True, now=0, settings=client or YamuxSettings()),
        Session(is_client=False, now=0, settings=server or YamuxSettings()),
    )


def carry(source: Session, target: Session) -> list[object]:
    """Everything `source` has to send, one call of outgoing() after another, into `target`."""
    events: list[object] = []
    while source.has_outgoing:
        data = bytes(source.outgoing(WIRE))
        if not data:
            break
        events += target.receive(data)
    return events


def opened(client: Session, server: Session) -> tuple[SessionStream, SessionStream]:
    ours = client.open()
    (event,) = carry(client, server)
    assert isinstance(event, StreamArrived)
    server.accept(event.stream)
    carry(server, client)
    return ours, event.stream


def test_a_stream_carries_bytes_both_ways_and_the_client_uses_odd_ids() -> None:
    client, server = pair()
    ours, theirs = opened(client, server)
    assert (ours.id, theirs.id) == (1, 1)
    assert client.open().id == 3
    assert server.open().id == 2
    client.write(ours, b"question")
    carry(client, server)
    assert server.read(theirs) == b"question"
    server.write(theirs, b"answer")
    carry(server, client)
    assert client.read(ours) == b"answer"


def test_data_may_follow_the_syn_without_waiting_for_the_ack() -> None:
    client, server = pair()
    ours = client.open()
    client.write(ours, b"early")
    events = carry(client, server)
    assert [type(event) for event in events] == [StreamArrived, StreamReadable]
    assert server.read(server.streams[0]) == b"early"


def test_a_stream_is_acknowledged_when_it_is_accepted_and_not_before() -> None:
    client, server = pair(client=YamuxSettings(unacknowledged_outbound_max=1))
    client.open()
    (event,) = carry(client, server)
    assert carry(server, client) == []
    with pytest.raises(StreamLimitReached, match="acknowledgement"):
        client.open()
    assert isinstance(event, StreamArrived)
    server.accept(event.stream)
    carry(server, client)
    client.open()


def test_closing_is_half_and_the_last_bytes_arrive_before_the_end() -> None:
    client, server = pair()
    ours, theirs = opened(client, server)
    client.write(ours, b"x" * 100_000)
    client.close_write(ours)
    wire = bytearray()
    while client.has_outgoing:
        wire += client.outgoing(WIRE)
    server.receive(bytes(wire[:-1]))
    assert not theirs.is_ended, "the end must not be seen before the last byte"
    server.receive(bytes(wire[-1:]))
    assert theirs.is_ended


def test_an_end_that_comes_with_data_is_seen_after_the_data() -> None:
    _, server = pair()
    server.receive(encode_header(WINDOW_UPDATE, SYN, 1, 0))
    (stream,) = server.streams
    frame = encode_header(DATA, FIN, 1, 4) + b"last"
    server.receive(frame[:-1])
    assert not stream.is_ended
    server.receive(frame[-1:])
    assert stream.is_ended
    assert server.read(stream) == b"last"


def test_closing_is_half_and_the_other_way_stays_open() -> None:
    client, server = pair()
    ours, theirs = opened(client, server)
    client.write(ours, b"x" * 100_000)
    client.close_write(ours)
    carry(client, server)
    assert len(server.read(theirs)) == 100_000
    server.write(theirs, b"still open this way")
    server.close_write(theirs)
    carry(server, client)
    assert client.read(ours) == b"still open this way"
    assert ours.is_ended
    assert (client.streams, server.streams) == ((), ())


def test_the_end_is_said_in_a_frame_of_its_own() -> None:
    """Some implementations drop the data of a frame that carries FIN."""
    client, server = pair()
    ours, _ = opened(client, server)
    client.write(ours, b"last")
    client.close_write(ours)
    expected = encode_header(DATA, 0, 1, 4) + b"last" + encode_header(WINDOW_UPDATE, FIN, 1, 0)
    assert bytes(client.outgoing(WIRE)) == expected


def test_a_reset_drops_what_is_unread_on_both_sides() -> None:
    client, server = pair()
    ours, theirs = opened(client, server)
    server.write(theirs, b"unread")
    carry(server, client)
    client.reset(ours)
    carry(client, server)
    assert theirs.is_reset
    assert ours.is_reset
    assert client.read(ours) == b""
    assert (client.unread_bytes, server.streams) == (0, ())


def test_frames_that_were_under_way_to_a_stream_we_reset_are_read_over() -> None:
    client, server = pair()
    ours, theirs = opened(client, server)
    other, _ = opened(client, server)
    server.write(theirs, b"late" * 1000)
    late = bytes(server.outgoing(WIRE))
    client.reset(ours)
    assert client.receive(late) == []
    assert client.unread_bytes == 0
    assert not other.is_reset


def test_one_byte_over_the_window_ends_the_session_and_nothing_of_it_is_kept() -> None:
    _, server = pair()
    server.receive(encode_header(WINDOW_UPDATE, SYN, 1, 0))
    for _ in range(8):
        server.receive(encode_header(DATA, 0, 1, WINDOW // 8) + bytes(WINDOW // 8))
    assert server.unread_bytes == WINDOW
    with pytest.raises(YamuxViolation, match="window"):
        server.receive(encode_header(DATA, 0, 1, 1) + b"!")
    assert server.unread_bytes == 0
    assert bytes(server.outgoing(WIRE)).endswith(encode_header(GO_AWAY, 0, 0, 1))
    assert server.receive(encode_header(WINDOW_UPDATE, SYN, 3, 0)) == []


def test_credit_is_given_back_in_halves_of_a_window_and_only_for_bytes_that_were_read() -> None:
    client, server = pair()
    ours, theirs = opened(client, server)
    client.write(ours, bytes(WINDOW // 2))
    carry(client, server)
    assert not server.has_outgoing, "unread bytes earn no credit"
    server.read(theirs, WINDOW // 2 - 1)
    assert not server.has_outgoing
    server.read(theirs, 1)
    assert bytes(server.outgoing(WIRE)) == encode_header(WINDOW_UPDATE, 0, 1, WINDOW // 2)


def test_a_writer_waits_for_a_peer_that_does_not_read_and_goes_on_when_it_does() -> None:
    client, server = pair()
    ours, theirs = opened(client, server)
    data = bytes(range(256)) * 4096  # 1 MiB, four windows
    sent = client.write(ours, data)
    carry(client, server)
    for _ in range(100):
        sent = client.write(ours, data, sent)
        carry(client, server)
    assert sent == WINDOW + 128 * 1024, "one window in flight, one buffer full, not a byte more"
    assert not ours.is_reset
    got = bytearray()
    for _ in range(100):
        got += server.read(theirs)
        carry(server, client)
        carry(client, server)
        if ours in client.take_unblocked():
            sent = client.write(ours, data, sent)
        carry(client, server)
    assert bytes(got) == data


def test_streams_take_turns_so_a_bulk_stream_does_not_hold_up_a_small_one() -> None:
    client, server = pair()
    bulk, _ = opened(client, server)
    small, theirs = opened(client, server)
    client.write(bulk, bytes(128 * 1024))
    client.write(small, b"token")
    server.receive(bytes(client.outgoing(64 * 1024)))
    assert server.read(theirs) == b"token"


def test_streams_over_the_inbound_limit_are_reset_and_the_others_stay() -> None:
    client, server = pair(server=YamuxSettings(streams_inbound_max=2))
    first, _ = opened(client, server)
    opened(client, server)
    third = client.open()
    carry(client, server)
    carry(server, client)
    assert third.is_reset
    assert not first.is_reset
    server.reset(server.streams[0])
    carry(server, client)
    fourth, _ = opened(client, server)
    assert not fourth.is_reset


def test_streams_that_nobody_accepts_are_bounded_apart() -> None:
    client, server = pair(server=YamuxSettings(unaccepted_inbound_max=3))
    streams = [client.open() for _ in range(5)]
    arrived = carry(client, server)
    carry(server, client)
    assert len(arrived) == 3
    assert [stream.is_reset for stream in streams] == [False, False, False, True, True]


def test_a_flood_of_refused_streams_ends_the_session() -> None:
    server = Session(is_client=False, now=0, settings=YamuxSettings(streams_inbound_max=1))
    flood = b"".join(encode_header(WINDOW_UPDATE, SYN, 2 * i + 1, 0) for i in range(2000))
    with pytest.raises(YamuxViolation, match="flood"):
        server.receive(flood)


def test_outbound_streams_are_refused_at_once_at_the_limit_and_possible_again_after() -> None:
    client, server = pair(client=YamuxSettings(streams_outbound_max=1))
    ours, theirs = opened(client, server)
    with pytest.raises(StreamLimitReached):
        client.open()
    assert not client.has_outgoing, "a refused stream sends nothing"
    server.reset(theirs)
    carry(server, client)
    assert ours.is_reset
    client.open()


def test_a_ping_is_answered_and_a_flood_of_them_ends_the_session() -> None:
    client, server = pair()
    ping_id = client.ping()
    carry(client, server)
    assert carry(server, client) == [PongReceived(ping_id)]
    with pytest.raises(YamuxViolation, match="pings"):
        server.receive(encode_header(PING, SYN, 0, 7) * 300)


def test_a_pong_that_nobody_asked_for_is_ignored() -> None:
    client, _ = pair()
    assert client.receive(encode_header(PING, ACK, 0, 99)) == []


def test_a_peer_that_causes_answers_and_reads_none_is_cut_off() -> None:
    server = Session(is_client=False, now=0, settings=YamuxSettings(control_bytes_max=100))
    with pytest.raises(YamuxViolation, match="does not read"):
        server.receive(encode_header(PING, SYN, 0, 7) * 20)


def test_after_go_away_no_stream_can_be_opened_and_open_ones_go_on() -> None:
    client, server = pair()
    ours, theirs = opened(client, server)
    server.go_away()
    assert carry(server, client) == [RemoteGoneAway(0)]
    with pytest.raises(RemoteGone):
        client.open()
    client.write(ours, b"goes on")
    carry(client, server)
    assert server.read(theirs) == b"goes on"


def test_a_silent_remote_is_asked_and_then_given_up() -> None:
    client, server = pair()
    client.receive(encode_header(PING, ACK, 0, 0))
    assert client.deadline() == 30 * SECOND
    client.on_time(now=30 * SECOND)
    assert not client.has_outgoing
    client.on_time(now=60 * SECOND)
    assert client.has_outgoing, "a ping goes out"
    with pytest.raises(RemoteGone):
        client.on_time(now=90 * SECOND)
    assert server.streams == ()


def test_a_remote_that_answers_pings_is_kept_for_ever() -> None:
    client, server = pair()
    for tick in range(1, 50):
        client.on_time(now=30 * SECOND * tick)
        server.on_time(now=30 * SECOND * tick)
        carry(client, server)
        carry(server, client)


def test_a_stream_we_closed_and_the_remote_never_does_is_reset_after_five_minutes_of_silence() -> None:
    client, server = pair(client=YamuxSettings(keepalive_timeout_s=1e9))
    ours, _ = opened(client, server)
    client.close_write(ours)
    carry(client, server)
    for tick in range(1, 11):
        client.on_time(now=30 * SECOND * tick)
    assert not ours.is_reset
    client.on_time(now=30 * SECOND * 11)
    assert ours.is_reset


def test_unread_bytes_of_all_streams_together_are_bounded_and_the_worst_stream_pays() -> None:
    client, server = pair(server=YamuxSettings(receive_total_bytes_max=300_000))
    first, _ = opened(client, server)
    second, _ = opened(client, server)
    for _ in range(3):
        client.write(first, bytes(80_000))
        carry(client, server)
    client.write(second, bytes(80_000))
    carry(client, server)
    carry(server, client)
    assert first.is_reset
    assert not second.is_reset
    assert server.unread_bytes == 80_000


def test_a_larger_window_is_announced_with_the_syn_and_with_the_ack() -> None:
    client, server = pair(YamuxSettings(window_bytes=WINDOW * 4), YamuxSettings(window_bytes=WINDOW * 2))
    ours, theirs = opened(client, server)
    assert (ours.send_window, theirs.send_window) == (WINDOW * 2, WINDOW * 4)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("version", bytes([1]) + bytes(11)),
        ("type", encode_header(4, 0, 0, 0)),
        ("flag", encode_header(DATA, 16, 1, 0)),
        ("stream id 0", encode_header(WINDOW_UPDATE, SYN, 0, 0)),
        ("our parity", encode_header(WINDOW_UPDATE, SYN, 2, 0)),
        ("in use", encode_header(WINDOW_UPDATE, SYN, 1, 0) * 2),
        ("ping on a stream", encode_header(PING, SYN, 1, 0)),
        ("go-away on a stream", encode_header(GO_AWAY, 0, 1, 0)),
        ("frame over every window", encode_header(DATA, 0, 99, WINDOW + 1)),
        ("window over 2^32 - 1", encode_header(WINDOW_UPDATE, SYN, 1, 2**32 - 1)),
        (
            "data after FIN",
            encode_header(WINDOW_UPDATE, SYN | FIN, 1, 0) + encode_header(DATA, 0, 1, 1),
        ),
    ],
)
def test_what_no_honest_peer_sends_ends_the_session(name: str, data: bytes) -> None:
    server = Session(is_client=False, now=0)
    with pytest.raises(YamuxViolation):
        server.receive(data)
    assert server.streams == (), name


def test_a_reset_of_a_stream_that_is_gone_says_nothing_more() -> None:
    client, server = pair()
    ours, theirs = opened(client, server)
    client.receive(encode_header(WINDOW_UPDATE, RST, 1, 0))
    client.reset(ours)
    assert not client.has_outgoing
    assert not theirs.is_reset
