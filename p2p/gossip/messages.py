"""Gossipsub RPCs: the values, and a strict codec that keeps received messages as they came.

A message is forwarded and verified from its received bytes; nothing is encoded twice. Every list and length has
a bound that is checked before anything is built. Schema: libp2p/specs, pubsub/README.md "The RPC", gossipsub
v1.0 to v1.2 "Protobuf".

Strict: fields of a message stand in rising order, none twice, none unknown. All encoders in use write them so,
and a message has then exactly one form, hence one id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from typing import NamedTuple

from p2p.protobuf import BYTES, VARINT, ProtobufInvalid, bytes_field, fields, varint, varint_bytes, varint_field

SIGN_PREFIX = b"libp2p-pubsub:"  # pubsub/README.md, "Message Signing"

RPC_BYTES_MAX = 1024 * 1024
MESSAGES_MAX = 1000  # per RPC
SUBSCRIPTIONS_MAX = 512
CONTROLS_MAX = 512  # topics in GRAFT, PRUNE or IHAVE of one RPC
IDS_MAX = 5000  # message ids of one kind in one RPC
ID_BYTES_MAX = 64
TOPIC_BYTES_MAX = 256
PEER_ID_BYTES_MAX = 64
SEQNO_BYTES_MAX = 8
SIGNATURE_BYTES_MAX = 1024
KEY_BYTES_MAX = 1024
PX_PEERS_MAX = 64
PEER_RECORD_BYTES_MAX = 4096
BACKOFF_S_DEFAULT = 60


class RpcInvalid(ProtobufInvalid):
    """Bytes that are no RPC, or over a bound of one."""


class Message:
    """One published message. `raw` is its wire form, `signed` what its signature covers (without the prefix).

    Do not change one: routers share it with their caches and queues."""

    __slots__ = ("data", "id", "key", "raw", "seqno", "signature", "signed", "source", "topic")

    def __init__(
        self,
        *,
        source: bytes,
        data: bytes,
        seqno: bytes,
        topic: str,
        signature: bytes,
        key: bytes,
        raw: bytes,
        signed: bytes,
    ) -> None:
        self.source = source
        self.data = data
        self.seqno = seqno
        self.topic = topic
        self.signature = signature
        self.key = key
        self.raw = raw
        self.signed = signed
        self.id: bytes | None = None  # set by the router, by its id function

    def __repr__(self) -> str:
        return f"<Message {self.topic} {len(self.data)} bytes>"


class Prune(NamedTuple):
    topic: str
    backoff_s: int = BACKOFF_S_DEFAULT
    peers: tuple[tuple[bytes, bytes], ...] = ()  # (peer id, signed peer record or b"")


class Rpc(NamedTuple):
    subscriptions: tuple[tuple[bool, str], ...] = ()
    messages: tuple[Message, ...] = ()
    ihave: tuple[tuple[str, tuple[bytes, ...]], ...] = ()
    iwant: tuple[bytes, ...] = ()
    graft: tuple[str, ...] = ()
    prune: tuple[Prune, ...] = ()
    idontwant: tuple[bytes, ...] = ()


def id_of_whole_message(message: Message) -> bytes:
    """SHA-256 of every signed field and the signature, each with its length: a bad copy cannot suppress a good one,
    and two messages with one sequence number are two messages. `key` is left out, because nobody signs it: whoever
    forwards could add or strip it, and one message would have two ids. The default."""
    digest = hashlib.sha256()
    for part in (
        message.source,
        message.seqno,
        message.topic.encode(),
        message.data,
        message.signature,
    ):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


def id_of_source_and_seqno(message: Message) -> bytes:
    """The default of the Go and Python implementations. (js: public key and sequence number.)"""
    return message.source + message.seqno


# --- encoding ------------------------------------------------------------------------------------------------


def new_message(*, source: bytes, data: bytes, seqno: bytes, topic: str) -> Message:
    """An unsigned message of ours: sign `SIGN_PREFIX + message.signed`, then `with_signature`."""
    signed = bytes_field(1, source) + bytes_field(2, data) + bytes_field(3, seqno) + bytes_field(4, topic.encode())
    return Message(
        source=source,
        data=data,
        seqno=seqno,
        topic=topic,
        signature=b"",
        key=b"",
        raw=signed,
        signed=signed,
    )


def with_signature(message: Message, signature: bytes) -> Message:
    return Message(
        source=message.source,
        data=message.data,
        seqno=message.seqno,
        topic=message.topic,
        signature=signature,
        key=b"",
        raw=message.signed + bytes_field(5, signature),
        signed=message.signed,
    )


def encode_rpc(rpc: Rpc) -> bytes:
    parts: list[bytes] = []
    for is_subscribed, topic in rpc.subscriptions:
        parts.append(bytes_field(1, varint_field(1, int(is_subscribed)) + bytes_field(2, topic.encode())))
    for message in rpc.messages:
        parts += (b"\x12", varint(len(message.raw)), message.raw)
    control = _encode_control(rpc)
    if control:
        parts.append(bytes_field(3, control))
    return b"".join(parts)


def rpc_bytes(rpc: Rpc) -> int:
    """`len(encode_rpc(rpc))` without encoding: what a simulation charges for it."""
    total = sum(_field_bytes(2 + _field_bytes(len(topic.encode()))) for _, topic in rpc.subscriptions)
    total += sum(_field_bytes(len(message.raw)) for message in rpc.messages)
    control = 0
    for topic, ids in rpc.ihave:
        control += _field_bytes(_field_bytes(len(topic.encode())) + sum(_field_bytes(len(i)) for i in ids))
    if rpc.iwant:
        control += _field_bytes(sum(_field_bytes(len(i)) for i in rpc.iwant))
    for topic in rpc.graft:
        control += _field_bytes(_field_bytes(len(topic.encode())))
    for prune in rpc.prune:
        peers = sum(
            _field_bytes(_field_bytes(len(peer)) + (_field_bytes(len(record)) if record else 0))
            for peer, record in prune.peers
        )
        control += _field_bytes(_field_bytes(len(prune.topic.encode())) + peers + 1 + varint_bytes(prune.backoff_s))
    if rpc.idontwant:
        control += _field_bytes(sum(_field_bytes(len(i)) for i in rpc.idontwant))
    return total + (_field_bytes(control) if control else 0)


def _field_bytes(size: int) -> int:
    """A length-delimited field with a number under 16."""
    return 1 + varint_bytes(size) + size


def _encode_control(rpc: Rpc) -> bytes:
    parts: list[bytes] = []
    for topic, ids in rpc.ihave:
        listed = b"".join([bytes_field(2, message_id) for message_id in ids])
        parts.append(bytes_field(1, bytes_field(1, topic.encode()) + listed))
    if rpc.iwant:
        parts.append(bytes_field(2, b"".join([bytes_field(1, message_id) for message_id in rpc.iwant])))
    parts += [bytes_field(3, bytes_field(1, topic.encode())) for topic in rpc.graft]
    for prune in rpc.prune:
        peers = b"".join(
            bytes_field(2, bytes_field(1, peer) + (bytes_field(2, record) if record else b""))
            for peer, record in prune.peers
        )
        parts.append(bytes_field(4, bytes_field(1, prune.topic.encode()) + peers + varint_field(3, prune.backoff_s)))
    if rpc.idontwant:
        parts.append(bytes_field(5, b"".join([bytes_field(1, message_id) for message_id in rpc.idontwant])))
    return b"".join(parts)


# --- decoding ------------------------------------------------------------------------------------------------


class RpcDecoder:
    """bytes → Rpc. Remembers the last messages by their bytes: five of six copies in a mesh are repeats, and a
    repeat costs a lookup instead of a parse and a hash. One per router."""

    def __init__(self, *, message_bytes_max: int, remembered_max: int = 1024) -> None:
        self._message_bytes_max = message_bytes_max
        self._remembered_max = remembered_max
        self._remembered: dict[bytes, Message] = {}

    def decode(self, data: bytes) -> Rpc:
        """Raises RpcInvalid."""
        try:
            return self._decode(data)
        except RpcInvalid:
            raise
        except ProtobufInvalid as error:
            raise RpcInvalid(str(error)) from error

    def _decode(self, data: bytes) -> Rpc:
        if len(data) > RPC_BYTES_MAX:
            raise RpcInvalid("RPC too long")
        subscriptions: list[tuple[bool, str]] = []
        messages: list[Message] = []
        control = _Control()
        for tag, a, b, _ in fields(data, 0, len(data)):
            if tag == 2 << 3 | BYTES:
                messages.append(self._message(data, a, b))
                _bound(messages, MESSAGES_MAX)
            elif tag == 3 << 3 | BYTES:
                control.decode(data, a, b)
            elif tag == 1 << 3 | BYTES:
                subscriptions.append(_decode_subscription(data, a, b))
                _bound(subscriptions, SUBSCRIPTIONS_MAX)
            elif tag >> 3 <= 3:
                raise RpcInvalid("wrong wire type")
        if control.is_empty:
            return Rpc(tuple(subscriptions), tuple(messages))
        return Rpc(
            tuple(subscriptions),
            tuple(messages),
            tuple(control.ihave),
            tuple(control.iwant),
            tuple(control.graft),
            tuple(control.prune),
            tuple(control.idontwant),
        )

    def _message(self, data: bytes, start: int, end: int) -> Message:
        if end - start > self._message_bytes_max + 2048:
            raise RpcInvalid("message too long")
        raw = data[start:end]
        message = self._remembered.get(raw)
        if message is None:
            message = decode_message(raw, data_bytes_max=self._message_bytes_max)
            if len(self._remembered) >= self._remembered_max:
                self._remembered.clear()
            self._remembered[raw] = message
        return message


_MESSAGE_BOUNDS = {
    1: PEER_ID_BYTES_MAX,
    3: SEQNO_BYTES_MAX,
    4: TOPIC_BYTES_MAX,
    5: SIGNATURE_BYTES_MAX,
    6: KEY_BYTES_MAX,
}


def decode_message(raw: bytes, *, data_bytes_max: int) -> Message:
    """Raises RpcInvalid (or ProtobufInvalid)."""
    found: dict[int, bytes] = {}
    last = 0
    signed_end = len(raw)
    for tag, a, b, field_start in fields(raw, 0, len(raw)):
        number = tag >> 3
        if tag & 7 != BYTES or not last < number <= 6:
            raise RpcInvalid("a message whose fields are unknown, repeated or out of order")
        last = number
        if b - a > (data_bytes_max if number == 2 else _MESSAGE_BOUNDS[number]):
            raise RpcInvalid("a message field over its bound")
        if number >= 5 and field_start < signed_end:
            signed_end = field_start
        found[number] = raw[a:b]
    if 4 not in found:
        raise RpcInvalid("a message without a topic")
    return Message(
        source=found.get(1, b""),
        data=found.get(2, b""),
        seqno=found.get(3, b""),
        topic=_text(found[4]),
        signature=found.get(5, b""),
        key=found.get(6, b""),
        raw=raw,
        signed=raw[:signed_end],
    )


class _Control:
    __slots__ = ("graft", "idontwant", "ihave", "ihave_ids", "iwant", "prune")

    def __init__(self) -> None:
        self.ihave: list[tuple[str, tuple[bytes, ...]]] = []
        self.iwant: list[bytes] = []
        self.graft: list[str] = []
        self.prune: list[Prune] = []
        self.idontwant: list[bytes] = []
        self.ihave_ids = 0

    @property
    def is_empty(self) -> bool:
        return not (self.ihave or self.iwant or self.graft or self.prune or self.idontwant)

    def decode(self, data: bytes, start: int, end: int) -> None:
        for tag, a, b, _ in fields(data, start, end):
            if tag == 1 << 3 | BYTES:
                topic, ids = _topic_and_ids(data, a, b)
                self.ihave_ids += len(ids)
                self.ihave.append((topic, ids))
                if self.ihave_ids > IDS_MAX:
                    raise RpcInvalid("too many ids")
                _bound(self.ihave, CONTROLS_MAX)
            elif tag == 2 << 3 | BYTES:
                _collect_ids(data, a, b, self.iwant)
            elif tag == 3 << 3 | BYTES:
                self.graft.append(_topic_and_ids(data, a, b)[0])
                _bound(self.graft, CONTROLS_MAX)
            elif tag == 4 << 3 | BYTES:
                self.prune.append(_decode_prune(data, a, b))
                _bound(self.prune, CONTROLS_MAX)
            elif tag == 5 << 3 | BYTES:
                _collect_ids(data, a, b, self.idontwant)
            elif tag >> 3 <= 5:
                raise RpcInvalid("wrong wire type")


def _decode_subscription(data: bytes, start: int, end: int) -> tuple[bool, str]:
    is_subscribed = False
    topic: str | None = None
    for tag, a, b, _ in fields(data, start, end):
        if tag == 1 << 3 | VARINT:
            is_subscribed = bool(a)
        elif tag == 2 << 3 | BYTES:
            topic = _topic(data, a, b)
        elif tag >> 3 <= 2:
            raise RpcInvalid("wrong wire type")
    if topic is None:
        raise RpcInvalid("a subscription without a topic")
    return is_subscribed, topic


def _topic_and_ids(data: bytes, start: int, end: int) -> tuple[str, tuple[bytes, ...]]:
    topic: str | None = None
    ids: list[bytes] = []
    for tag, a, b, _ in fields(data, start, end):
        if tag == 1 << 3 | BYTES:
            topic = _topic(data, a, b)
        elif tag == 2 << 3 | BYTES:
            _add_id(ids, data, a, b)
        elif tag >> 3 <= 2:
            raise RpcInvalid("wrong wire type")
    if topic is None:
        raise RpcInvalid("a control message without a topic")
    return topic, tuple(ids)


def _collect_ids(data: bytes, start: int, end: int, ids: list[bytes]) -> None:
    for tag, a, b, _ in fields(data, start, end):
        if tag == 1 << 3 | BYTES:
            _add_id(ids, data, a, b)
        elif tag >> 3 == 1:
            raise RpcInvalid("wrong wire type")


def _add_id(ids: list[bytes], data: bytes, a: int, b: int) -> None:
    if not 0 < b - a <= ID_BYTES_MAX:
        raise RpcInvalid("a message id over its bound")
    ids.append(data[a:b])
    _bound(ids, IDS_MAX)


def _decode_prune(data: bytes, start: int, end: int) -> Prune:
    topic: str | None = None
    backoff_s = BACKOFF_S_DEFAULT
    peers: list[tuple[bytes, bytes]] = []
    for tag, a, b, _ in fields(data, start, end):
        if tag == 1 << 3 | BYTES:
            topic = _topic(data, a, b)
        elif tag == 2 << 3 | BYTES:
            peers.append(_decode_px_peer(data, a, b))
            _bound(peers, PX_PEERS_MAX)
        elif tag == 3 << 3 | VARINT:
            backoff_s = a
        elif tag >> 3 <= 3:
            raise RpcInvalid("wrong wire type")
    if topic is None:
        raise RpcInvalid("a control message without a topic")
    return Prune(topic, backoff_s, tuple(peers))


def _decode_px_peer(data: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    found = {1: b"", 2: b""}
    for tag, a, b, _ in fields(data, start, end):
        if tag >> 3 > 2:
            continue
        if tag & 7 != BYTES or b - a > (PEER_ID_BYTES_MAX if tag >> 3 == 1 else PEER_RECORD_BYTES_MAX):
            raise RpcInvalid("an exchanged peer over its bound")
        found[tag >> 3] = data[a:b]
    return found[1], found[2]


def _topic(data: bytes, a: int, b: int) -> str:
    if b - a > TOPIC_BYTES_MAX:
        raise RpcInvalid("topic too long")
    return _text(data[a:b])


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RpcInvalid("a topic that is not text") from None


def _bound(items: Sized, most: int) -> None:
    if len(items) > most:
        raise RpcInvalid("too many entries")
