"""aioquic's sans-IO connection with its manners changed: what of the library itself has to be other than it is.

All overrides of private names of aioquic 1.7.2 are here, and each has a test that notices when it becomes needless:
- windows rise as data arrives, so nothing ever holds a sender back: here they rise when `QuicMachine` says so;
- handshake messages of up to 16 MiB are gathered, and all of it copied for each packet: here 16 KiB are taken;
- a server asks for no certificate of the client except "for test purposes";
- a client makes four key shares, and offers and takes RSA: here two, and none;
- what peers do is logged as warnings: here nothing is logged.

Not here: streams as our program sees them (`quic_machine.py`).
"""

from __future__ import annotations

import ssl
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # not named in its __all__
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    EPOCHS,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    QuicConnection,
    QuicConnectionError,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicProtocolVersion
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from p2p.driver.quic_state import QuicSettings
from p2p.interface import KIB

ALPN = "libp2p"
DATAGRAM_BYTES_MAX = 1232  # fits the smallest IPv6 packet: there is no path MTU discovery here
CONNECTION_ID_BYTES = 8
CRYPTO_BYTES_MAX = 16 * KIB  # of handshake messages in each direction and epoch: a certificate has 400 bytes
STREAMS_MAX = 256  # open at one time, each way: as in yamux
STREAMS_SLACK = 32  # the peer's that have ended for us, and wait for the last acknowledgement
IDLE_TIMEOUT_S = 30.0  # the peer's applies when it is shorter


class _Quiet:
    """In place of the library's logger: what peers do is nobody's warning, and asking costs time."""

    def debug(self, *_: object) -> None: ...
    def info(self, *_: object) -> None: ...
    def warning(self, *_: object) -> None: ...
    def error(self, *_: object) -> None: ...


_QUIET: Any = _Quiet()
_TICKET_BYTES = 512  # for session tickets, of which we make none
_CRYPTO_OUT_BYTES = {tls.Epoch.INITIAL: 2 * KIB, tls.Epoch.HANDSHAKE: 8 * KIB, tls.Epoch.ONE_RTT: _TICKET_BYTES}
_EPOCHS = {epochs: epochs for epochs in map(EPOCHS, ("IH01", "IH1", "01", "1"))}  # one of each kind for all


def configuration(*, is_client: bool, certificate: Any, private_key: Any) -> QuicConfiguration:
    """Shared by all connections of a node that it dialled, or that it accepted."""
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        certificate=certificate,
        private_key=private_key,
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=IDLE_TIMEOUT_S,
        max_datagram_size=DATAGRAM_BYTES_MAX,
        supported_versions=[QuicProtocolVersion.VERSION_1],
        verify_mode=ssl.CERT_NONE,  # by `verify_certificate`, once the handshake has proved the key
        cipher_suites=[
            tls.CipherSuite.AES_128_GCM_SHA256,
            tls.CipherSuite.AES_256_GCM_SHA384,
            tls.CipherSuite.CHACHA20_POLY1305_SHA256,
        ],
    )


class TamedConnection(QuicConnection):
    def __init__(
        self,
        configuration: QuicConfiguration,
        *,
        settings: QuicSettings,
        original_destination_connection_id: bytes | None,
        retry_source_connection_id: bytes | None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self._logger = _QUIET
        self._loss._logger = _QUIET
        handlers = self._QuicConnection__frame_handlers  # type: ignore[attr-defined]  # 7 KiB of equal sets otherwise
        for kind, (handler, epochs) in handlers.items():
            handlers[kind] = (handler, _EPOCHS.get(epochs, epochs))
        self._local_max_stream_data_bidi_local = settings.window_bytes
        self._local_max_stream_data_bidi_remote = settings.window_bytes
        self._local_max_stream_data_uni = 0
        for limit, value in (
            (self._local_max_data, settings.receive_total_bytes_max),
            (self._local_max_streams_bidi, STREAMS_MAX + STREAMS_SLACK),
            (self._local_max_streams_uni, 0),  # libp2p has none
        ):
            limit.value = limit.sent = value

    def _forget_handshake(self) -> None:
        """What nobody needs any more: a third of the memory of a connection."""
        context: Any = self.tls
        context._peer_certificate = context.key_schedule = context._x25519_private_key = None
        context._ec_private_keys = context.handshake_extensions = context.received_extensions = ()
        self._crypto_buffers = {tls.Epoch.ONE_RTT: Buffer(capacity=_TICKET_BYTES)}

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._crypto_buffers = {epoch: Buffer(capacity=size) for epoch, size in _CRYPTO_OUT_BYTES.items()}
        self.tls._request_client_certificate = not self._is_client
        self.tls._supported_groups = [tls.Group.X25519, tls.Group.SECP256R1]  # a key each is made for every dial
        self.tls._signature_algorithms = [
            tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256,
            tls.SignatureAlgorithm.ECDSA_SECP384R1_SHA384,
            tls.SignatureAlgorithm.ED25519,
        ]

    def _find_preferred_address(self) -> None:
        """A server may not send us elsewhere (rule G4)."""

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        if end > CRYPTO_BYTES_MAX:
            raise QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_BUFFER_EXCEEDED,
                frame_type=frame_type,
                reason_phrase="handshake messages over their bound",
            )
        buf.seek(start)
        super()._handle_crypto_frame(context, frame_type, buf)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        for limit in (self._local_max_data, self._local_max_streams_bidi):
            if limit.value == limit.sent:
                continue
            if limit is self._local_max_streams_bidi and limit.sent - limit.used >= STREAMS_MAX // 2:
                continue  # the peer has places enough for now
            buf = builder.start_frame(
                limit.frame_type,
                capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            buf.push_uint_var(limit.value)
            limit.sent = limit.value

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local or stream.receiver.is_finished:
            return
        buf = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        assert stream.stream_id is not None
        buf.push_uint_var(stream.stream_id)
        buf.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local
