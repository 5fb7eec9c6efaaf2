"""multistream-select 1.0 at the connection: two peers agree on one protocol, here always the only one we have.

Sans-IO; used in clear for `/noise` and sealed for `/yamux/1.0.0`. Lines are a uvarint length, text, a newline.
Source: libp2p/specs, connections/README.md, "multistream-select". (Streams negotiate elsewhere.)
"""

from __future__ import annotations

from p2p.errors import P2PError

HELLO = b"/multistream/1.0.0"
REFUSAL = b"na"
LINE_BYTES_MAX = 127  # one length byte: our names are short, and longer proposals cannot be ours
PROPOSALS_MAX = 16  # a peer that proposes more is not looking for a protocol


class NegotiationFailed(P2PError):
    """The remote does not speak multistream-select, or not the protocol."""


class Negotiation:
    """One side of one agreement. When `is_agreed`, `rest` holds the bytes that already belong to the protocol."""

    def __init__(self, *, is_dialer: bool, protocol: str) -> None:
        self.is_agreed = False
        self.rest = b""
        self._is_dialer = is_dialer
        self._protocol = protocol.encode()
        self._has_greeted = False
        self._proposals = 0

    def start(self) -> bytes:
        """The dialer says both lines at once: one round trip."""
        return encode_line(HELLO) + encode_line(self._protocol) if self._is_dialer else b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes, return the answer. Raises NegotiationFailed."""
        self.rest += data
        answer = b""
        while not self.is_agreed and self.rest:
            size = self.rest[0]
            if not 1 <= size <= LINE_BYTES_MAX:
                raise NegotiationFailed("a negotiation line over its bound")
            if not self._has_greeted and size != len(HELLO) + 1:
                raise NegotiationFailed("the remote does not speak multistream-select")
            if len(self.rest) < 1 + size:
                break
            line, self.rest = self.rest[1 : 1 + size], self.rest[1 + size :]
            if not line.endswith(b"\n"):
                raise NegotiationFailed("a negotiation line without an end")
            answer += self._line(line[:-1])
        return answer

    def _line(self, line: bytes) -> bytes:
        if not self._has_greeted:
            if line != HELLO:
                raise NegotiationFailed("the remote does not speak multistream-select")
            self._has_greeted = True
            return b"" if self._is_dialer else encode_line(HELLO)
        if line == self._protocol:
            self.is_agreed = True
            return b"" if self._is_dialer else encode_line(line)
        if self._is_dialer:
            raise NegotiationFailed(f"the remote does not speak {self._protocol.decode()}")
        self._proposals += 1
        if self._proposals > PROPOSALS_MAX:
            raise NegotiationFailed("too many proposals")
        return encode_line(REFUSAL)


def encode_line(text: bytes) -> bytes:
    return bytes([len(text) + 1]) + text + b"\n"
