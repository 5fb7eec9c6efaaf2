"""Frames: what is written is read back however the bytes are cut, and hostile bytes cost no memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import FrameInvalid, FrameTooLarge
from p2p.framing import FrameReader, encode_frame, encode_uvarint
from p2p.interface import FRAME_BYTES_CEILING

BOUND = 5_000


def read_all(reader: FrameReader) -> list[bytes]:
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append(frame)
    return frames


@given(st.lists(st.binary(max_size=BOUND), max_size=8), st.data())
def test_frames_come_back_however_the_stream_is_cut(frames: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(encode_frame(frame) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    reader = FrameReader(frame_bytes_max=BOUND)
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        reader.feed(wire[start:end])
        got += read_all(reader)
    assert got == frames
    assert reader.is_between_frames


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5), st.data())
def test_a_truncated_stream_yields_only_whole_frames_and_says_that_it_is_inside_one(
    frames: list[bytes], data: st.DataObject
) -> None:
    wire = b"".join(encode_frame(frame) for frame in frames)
    cut = data.draw(st.integers(0, len(wire) - 1))
    reader = FrameReader(frame_bytes_max=BOUND)
    reader.feed(wire[:cut])
    got = read_all(reader)
    assert got == frames[: len(got)]
    assert reader.is_between_frames == (sum(len(encode_frame(frame)) for frame in got) == cut)


@given(st.lists(st.binary(max_size=300), max_size=30))
def test_random_bytes_give_frames_or_a_typed_error_in_bounded_memory(pieces: list[bytes]) -> None:
    reader = FrameReader(frame_bytes_max=100)
    for piece in pieces:
        reader.feed(piece)
        try:
            assert all(len(frame) <= 100 for frame in read_all(reader))
        except (FrameTooLarge, FrameInvalid):
            with pytest.raises((FrameTooLarge, FrameInvalid)):
                reader.next_frame()
        assert reader.buffered_bytes <= 104, "less than one frame and its prefix stays"


@given(st.integers(0, FRAME_BYTES_CEILING))
def test_a_length_has_one_form_only(size: int) -> None:
    prefix = encode_uvarint(size)
    assert sum((byte & 0x7F) << (7 * index) for index, byte in enumerate(prefix)) == size
    reader = FrameReader(frame_bytes_max=FRAME_BYTES_CEILING)
    reader.feed(prefix[:-1] + bytes([prefix[-1] | 0x80, 0]))  # the same number, one byte longer
    with pytest.raises(FrameInvalid):
        reader.next_frame()


@pytest.mark.parametrize(
    ("wire", "error"),
    [
        pytest.param(encode_uvarint(101), FrameTooLarge, id="one over the bound"),
        pytest.param(b"\xff\xff\xff\x7f", FrameTooLarge, id="far over the bound"),
        pytest.param(b"\xff" * 50, FrameTooLarge, id="a number without end"),
        pytest.param(b"\x80\x80\x80\x80\x00", FrameInvalid, id="zero in five bytes"),
        pytest.param(b"\x80\x00", FrameInvalid, id="zero in two bytes"),
    ],
)
def test_a_bad_length_is_refused_before_the_frame_arrives(wire: bytes, error: type[Exception]) -> None:
    reader = FrameReader(frame_bytes_max=100)
    reader.feed(encode_frame(b"good") + wire)
    assert reader.next_frame() == b"good"
    for _ in range(2):
        with pytest.raises(error):
            reader.next_frame()
        reader.feed(b"x" * 1000)
        assert reader.buffered_bytes == 0


def test_a_frame_of_exactly_the_bound_passes() -> None:
    reader = FrameReader(frame_bytes_max=100)
    reader.feed(encode_frame(b"x" * 100))
    assert reader.next_frame() == b"x" * 100
