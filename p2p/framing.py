"""Length-prefixed frames, sans-IO: an unsigned varint (LEB128, as in libp2p's specification) and that many
bytes. The reader knows its bound before it keeps a byte, so a peer cannot make it hold more than one frame.

What a frame means is nobody's business here.
"""

from __future__ import annotations

from p2p.errors import FrameInvalid, FrameTooLarge
from p2p.interface import FRAME_BYTES_CEILING

PREFIX_BYTES_MAX = 4  # 2**28 - 1, over the ceiling of 32 MiB


def encode_uvarint(value: int) -> bytes:
    """The shortest LEB128 form of a number that is not negative."""
    if value < 0:
        raise ValueError("an unsigned varint cannot be negative")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_frame(frame: bytes) -> bytes:
    """The frame with its prefix, ready for the stream."""
    return encode_uvarint(len(frame)) + frame


class FrameReader:
    """Turns pieces of a byte stream into frames.

    `feed` what arrived, then call `next_frame` until it returns None. After FrameTooLarge or FrameInvalid the
    stream cannot be understood any more, and every further call raises the same.
    """

    __slots__ = ("_buffer", "_frame_bytes_max", "_position", "_refused")

    def __init__(self, *, frame_bytes_max: int) -> None:
        if not 0 < frame_bytes_max <= FRAME_BYTES_CEILING:
            raise ValueError(f"frame_bytes_max must be in 1..{FRAME_BYTES_CEILING}")
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._position = 0  # what lies before it has been handed out
        self._refused: FrameTooLarge | FrameInvalid | None = None

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer) - self._position

    @property
    def is_between_frames(self) -> bool:
        """Whether the stream may end here without having lost anything."""
        return not self.buffered_bytes

    @property
    def unread(self) -> bytes:
        """What has arrived behind the last frame handed out."""
        return bytes(self._buffer[self._position :])

    def feed(self, data: bytes) -> None:
        if self._refused is not None:
            return  # nothing more is kept of a stream that broke the rules
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The next whole frame, or None while it is incomplete. Raises FrameTooLarge, FrameInvalid."""
        if self._refused is not None:
            raise self._refused
        try:
            prefix = self._prefix()
        except (FrameTooLarge, FrameInvalid) as error:
            self._refused = error
            self._buffer.clear()
            self._position = 0
            raise
        if prefix is None:
            return None
        start, size = prefix
        if len(self._buffer) - start < size:
            return None
        frame = bytes(memoryview(self._buffer)[start : start + size])
        self._position = start + size
        return frame

    def _prefix(self) -> tuple[int, int] | None:
        """Where the next frame starts and how long it is; None while even that is incomplete."""
        buffer, start = self._buffer, self._position
        size = 0
        for index in range(PREFIX_BYTES_MAX):
            if start + index >= len(buffer):
                return None
            byte = buffer[start + index]
            size |= (byte & 0x7F) << (7 * index)
            if size > self._frame_bytes_max:
                raise FrameTooLarge(f"a frame over the bound of {self._frame_bytes_max} bytes was announced")
            if not byte & 0x80:
                if index and not byte:
                    raise FrameInvalid("a length prefix was not in its shortest form")
                return start + index + 1, size
        raise FrameInvalid("a length prefix did not end in time")
