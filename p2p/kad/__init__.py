"""Kademlia DHT, sans-IO: a node, its routing table, lookups and stores."""

from p2p.errors import RecordInvalid
from p2p.interface import RecordValidator
from p2p.kad.keys import is_multihash, provider_key
from p2p.kad.machine import Ask, Done, Effect, KadNode, TooManyOperations
from p2p.kad.messages import (
    KadMessage,
    KadMessageInvalid,
    KadPeer,
    Kind,
    Record,
    decode_message,
    encode_message,
    message_bytes,
)
from p2p.kad.operations import (
    ClosestFound,
    PeerFound,
    Provided,
    ProvidersFound,
    Result,
    ValueFound,
    ValuePut,
)
from p2p.kad.serving import Refuse, Send
from p2p.kad.settings import KadSettings
from p2p.kad.table import GroupsOf, network_groups, no_groups

__all__ = [
    "Ask",
    "ClosestFound",
    "Done",
    "Effect",
    "GroupsOf",
    "KadMessage",
    "KadMessageInvalid",
    "KadNode",
    "KadPeer",
    "KadSettings",
    "Kind",
    "PeerFound",
    "Provided",
    "ProvidersFound",
    "Record",
    "RecordInvalid",
    "RecordValidator",
    "Refuse",
    "Result",
    "Send",
    "TooManyOperations",
    "ValueFound",
    "ValuePut",
    "decode_message",
    "encode_message",
    "is_multihash",
    "message_bytes",
    "network_groups",
    "no_groups",
    "provider_key",
]
