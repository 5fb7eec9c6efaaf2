"""Gossipsub 1.1 and 1.2, sans-IO: a router, its messages, its scores."""

from p2p.gossip.machine import MessageTooLong, Router, Validate, Verdict, accept_all
from p2p.gossip.messages import (
    Message,
    Prune,
    Rpc,
    RpcDecoder,
    RpcInvalid,
    encode_rpc,
    id_of_source_and_seqno,
    id_of_whole_message,
    rpc_bytes,
)
from p2p.gossip.settings import (
    PROTOCOL_V11,
    PROTOCOL_V12,
    PROTOCOLS,
    GossipSettings,
    ScoreSettings,
    TopicScore,
    topic_score_for_rate,
)
from p2p.gossip.signing import is_signed_by_source, signer
from p2p.gossip.state import Deliver, Dial, Disconnect, Effect, Send

__all__ = [
    "PROTOCOLS",
    "PROTOCOL_V11",
    "PROTOCOL_V12",
    "Deliver",
    "Dial",
    "Disconnect",
    "Effect",
    "GossipSettings",
    "Message",
    "MessageTooLong",
    "Prune",
    "Router",
    "Rpc",
    "RpcDecoder",
    "RpcInvalid",
    "ScoreSettings",
    "Send",
    "TopicScore",
    "Validate",
    "Verdict",
    "accept_all",
    "encode_rpc",
    "id_of_source_and_seqno",
    "id_of_whole_message",
    "is_signed_by_source",
    "rpc_bytes",
    "signer",
    "topic_score_for_rate",
]
