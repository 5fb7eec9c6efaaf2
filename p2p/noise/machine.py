"""The libp2p Noise handshake over a byte stream: framing, messages, identity. Sans-IO.

    handshake = NoiseHandshake(is_initiator=True, identity=…, verify=…, ephemeral_private=os.urandom(32))
    send(handshake.start())
    send(handshake.receive(data))      # until handshake.channel is there
    channel, peer = handshake.channel, handshake.remote_peer

Who the remote is stands only when `channel` is set. After NoiseError close the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from p2p.noise.cipher import NOISE_MESSAGE_BYTES_MAX, AnotherPeer, NoiseError, SealedChannel
from p2p.noise.handshake import XXHandshake
from p2p.noise.messages import (
    PAYLOAD_BYTES_MAX,
    HandshakePayload,
    decode_payload,
    encode_payload,
    statement_of_static_key,
)

PROTOCOL = "/noise"

HANDSHAKE_FRAME_BYTES_MAX = PAYLOAD_BYTES_MAX + 256  # keys, tags: 96 bytes at most
assert HANDSHAKE_FRAME_BYTES_MAX <= NOISE_MESSAGE_BYTES_MAX

VerifyIdentity = Callable[[bytes, bytes, bytes], bytes]
"""(identity key message, signature, signed bytes) → the peer id's bytes. Raises NoiseError when the key is of a
kind we do not take or the signature is false."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseIdentity:
    """Our side's long-lived half: one static key per process, its statement signed once."""

    static_private: bytes = field(repr=False)
    payload: bytes = field(repr=False)

    @classmethod
    def create(cls, *, static_private: bytes, identity_key: bytes, sign: Callable[[bytes], bytes]) -> NoiseIdentity:
        """`identity_key` is libp2p's PublicKey message; `sign` signs with its private half."""
        public = X25519PrivateKey.from_private_bytes(static_private).public_key().public_bytes_raw()
        signature = sign(statement_of_static_key(public))
        payload = encode_payload(HandshakePayload(identity_key=identity_key, signature=signature))
        return cls(static_private=static_private, payload=payload)


class NoiseHandshake:
    def __init__(
        self,
        *,
        is_initiator: bool,
        identity: NoiseIdentity,
        verify: VerifyIdentity,
        ephemeral_private: bytes,
        expected_peer: bytes | None = None,
        prologue: bytes = b"",
    ) -> None:
        """`expected_peer`: whom we dialled; anyone else is refused. `ephemeral_private`: 32 fresh random bytes."""
        self.channel: SealedChannel | None = None
        self.remote_peer: bytes | None = None
        self._identity = identity
        self._verify = verify
        self._expected_peer = expected_peer
        self._buffer = b""
        self._noise = XXHandshake(
            is_initiator=is_initiator,
            static_private=identity.static_private,
            ephemeral_private=ephemeral_private,
            prologue=prologue,
        )

    def start(self) -> bytes:
        """What to send at the beginning: the initiator's first message, nothing for the responder."""
        return _framed(self._noise.write(b"")) if self._noise.is_initiator else b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes, return the answer. Once `channel` is set, bytes go there. Raises NoiseError.

        Bytes that came after the last handshake message are already in the channel: call `channel.open(b"")`.
        """
        assert self.channel is None
        self._buffer += data
        answer = b""
        while self.channel is None and len(self._buffer) >= 2:
            size = self._buffer[0] << 8 | self._buffer[1]
            if size > HANDSHAKE_FRAME_BYTES_MAX:
                raise NoiseError("a handshake message too long")
            if len(self._buffer) - 2 < size:
                break
            message, self._buffer = self._buffer[2 : 2 + size], self._buffer[2 + size :]
            answer += self._step(message)
        return answer

    def _step(self, message: bytes) -> bytes:
        noise = self._noise
        payload = noise.read(message)
        answer = b""
        peer: bytes | None = None
        if noise.remote_static is not None:
            peer = self._identify(decode_payload(payload), noise.remote_static)
        if not noise.is_done:
            answer = _framed(noise.write(self._identity.payload))
        if noise.is_done:
            self.remote_peer = peer
            sending, receiving = noise.split()
            self.channel = SealedChannel(sending, receiving, self._buffer)
            self._buffer = b""
        return answer

    def _identify(self, payload: HandshakePayload, remote_static: bytes) -> bytes:
        peer = self._verify(payload.identity_key, payload.signature, statement_of_static_key(remote_static))
        if self._expected_peer is not None and peer != self._expected_peer:
            raise AnotherPeer("the remote is not the peer that was dialled")
        return peer


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message
