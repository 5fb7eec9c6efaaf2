"""What a session machine asks its driver to do, in this order: send, tell, hang up.

A driver performs the effects of one call in their order, and then looks at `deadline()` again: when that is not
later than now, it calls `on_time` at once. Nothing here does anything by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import CocoonError
from ..wire import limits
from ..wire.codec import decode, encode
from ..wire.messages import Message, SessionMessage
from .events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send this message as one length-prefixed frame."""

    message: Message
    encoded: bytes | None = field(default=None, repr=False)

    @property
    def data(self) -> bytes:
        """The bytes to put into the frame."""
        return encode(self.message) if self.encoded is None else self.encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """Tell the role above."""

    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnect:
    """Close the stream; the machine is finished. `why` is None when the two ends agreed to part."""

    why: CocoonError | None


Effect = Send | Emit | Disconnect
Effects = tuple[Effect, ...]


def decode_session(data: bytes) -> Message:
    """The session message in one frame; the other direction of `Send.data`. Raises `RemoteProtocolError`."""
    message: Message = decode(
        data,
        SessionMessage,
        bytes_max=limits.SESSION_FRAME_BYTES_MAX,
        items_max=limits.SESSION_FRAME_ITEMS_MAX,
    )
    return message
