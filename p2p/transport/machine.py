"""One connection from its first byte: agree on Noise, prove who is there, agree on yamux, carry streams. Sans-IO.

    connection = Connection(is_dialer=True, …)
    send(connection.outgoing())
    events = connection.receive(data, now=now)     # then send(connection.outgoing()) again
    connection.session, connection.remote_peer     # once `is_open`

States are named for what they await. Any error (NegotiationFailed, NoiseError, YamuxViolation, RemoteGone) is the
end: send what `outgoing` still has, and close. Nobody is known before `is_open`.

Whoever calls `outgoing` must send what it returns, whole and in order: the bytes are sealed with a counter.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import ClassVar

from p2p import noise, yamux
from p2p.noise import NoiseHandshake, NoiseIdentity, SealedChannel, VerifyIdentity
from p2p.noise.cipher import PLAINTEXT_BYTES_MAX
from p2p.transport.multistream import Negotiation
from p2p.yamux import Session, SessionEvent, YamuxSettings
from p2p.yamux.messages import DEFAULT_SETTINGS

BATCH_BYTES_MAX = PLAINTEXT_BYTES_MAX  # one full Noise message: one seal and one system call per batch


class State(Enum):
    AWAITING_NOISE_AGREEMENT = "awaiting noise agreement"
    AWAITING_HANDSHAKE = "awaiting handshake"
    AWAITING_YAMUX_AGREEMENT = "awaiting yamux agreement"
    OPEN = "open"


class Connection:
    def __init__(
        self,
        *,
        is_dialer: bool,
        identity: NoiseIdentity,
        verify: VerifyIdentity,
        ephemeral_private: bytes,
        now: int,
        expected_peer: bytes | None = None,
        settings: YamuxSettings = DEFAULT_SETTINGS,
    ) -> None:
        """`ephemeral_private`: 32 fresh random bytes. `expected_peer`: the 38-byte id that was dialled."""
        self.is_dialer = is_dialer
        self.state = State.AWAITING_NOISE_AGREEMENT
        self._settings = settings
        self._session: Session | None = None
        self._channel: SealedChannel | None = None
        self._handshake = NoiseHandshake(
            is_initiator=is_dialer,
            identity=identity,
            verify=verify,
            ephemeral_private=ephemeral_private,
            expected_peer=expected_peer,
        )
        self._negotiation = Negotiation(is_dialer=is_dialer, protocol=noise.PROTOCOL)
        self._out = self._negotiation.start()
        self._now = now

    @property
    def is_open(self) -> bool:
        return self.state is State.OPEN

    @property
    def remote_peer(self) -> bytes:
        """The proven peer id."""
        assert self._handshake.remote_peer is not None
        return self._handshake.remote_peer

    @property
    def session(self) -> Session:
        assert self._session is not None
        return self._session

    def outgoing(self) -> bytes:
        """The next bytes for the wire, b"" when there are none; call again until it is."""
        if self._session is not None and not self._out:
            assert self._channel is not None
            return self._channel.seal(self._session.outgoing(BATCH_BYTES_MAX))
        out, self._out = self._out, b""
        return out

    def receive(self, data: bytes, *, now: int) -> list[SessionEvent]:
        """Take bytes from the wire, cut anywhere."""
        self._now = now
        if self._session is not None:
            assert self._channel is not None
            plaintexts = self._channel.open(data)
            if len(plaintexts) == 1:
                return self._session.receive(plaintexts[0])
            return [event for plaintext in plaintexts for event in self._session.receive(plaintext)]
        return self._BEFORE_OPEN[self.state](self, data)

    # --- before it is open: each step hands what is left over to the next -----------------------------------

    def _agree_on_noise(self, data: bytes) -> list[SessionEvent]:
        self._out += self._negotiation.receive(data)
        if not self._negotiation.is_agreed:
            return []
        self.state = State.AWAITING_HANDSHAKE
        self._out += self._handshake.start()
        return self._shake_hands(self._negotiation.rest)

    def _shake_hands(self, data: bytes) -> list[SessionEvent]:
        self._out += self._handshake.receive(data)
        self._channel = self._handshake.channel
        if self._channel is None:
            return []
        self.state = State.AWAITING_YAMUX_AGREEMENT
        self._negotiation = Negotiation(is_dialer=self.is_dialer, protocol=yamux.PROTOCOL)
        self._out += self._channel.seal(self._negotiation.start())
        return self._agree_on_yamux(b"")

    def _agree_on_yamux(self, data: bytes) -> list[SessionEvent]:
        assert self._channel is not None
        plaintext = b"".join(self._channel.open(data))
        self._out += self._channel.seal(self._negotiation.receive(plaintext))
        if not self._negotiation.is_agreed:
            return []
        self.state = State.OPEN
        self._session = Session(is_client=self.is_dialer, now=self._now, settings=self._settings)
        return self._session.receive(self._negotiation.rest)

    _BEFORE_OPEN: ClassVar[dict[State, Callable[[Connection, bytes], list[SessionEvent]]]] = {
        State.AWAITING_NOISE_AGREEMENT: _agree_on_noise,
        State.AWAITING_HANDSHAKE: _shake_hands,
        State.AWAITING_YAMUX_AGREEMENT: _agree_on_yamux,
    }
