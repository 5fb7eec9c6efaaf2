"""Parameters of the gossip router, with the specification's defaults and, where those are zero, ours.

Sources: gossipsub v1.0 "Parameters", v1.1 "Overview of New Parameters", v1.2 "Parameters". Times end in `_s`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NANOSECONDS = 1_000_000_000

PROTOCOL_V11 = "/meshsub/1.1.0"
PROTOCOL_V12 = "/meshsub/1.2.0"
PROTOCOLS = (PROTOCOL_V12, PROTOCOL_V11)  # preferred first


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicScore:
    """How much a peer's behaviour in one topic counts: P1 to P4 of v1.1, "The Score Function"."""

    weight: float = 1.0
    # P1: a peer that has been in the mesh for 5 minutes is worth one valid message
    time_in_mesh_weight: float = 0.02
    time_in_mesh_quantum_s: float = 1.0
    time_in_mesh_cap: float = 300.0
    # P2
    first_deliveries_weight: float = 1.0
    first_deliveries_decay: float = 0.97  # per decay interval: half in 23 s
    first_deliveries_cap: float = 50.0
    # P3; a threshold of 0 switches it off: on a quiet topic silence is no fault
    mesh_deliveries_weight: float = -1.0
    mesh_deliveries_decay: float = 0.97
    mesh_deliveries_threshold: float = 0.0
    mesh_deliveries_cap: float = 100.0
    mesh_deliveries_activation_s: float = 30.0
    mesh_deliveries_window_s: float = 0.05
    # P3b
    mesh_failure_weight: float = -1.0
    mesh_failure_decay: float = 0.97
    # P4: four invalid messages are over the graylist threshold
    invalid_weight: float = -10.0
    invalid_decay: float = 0.99  # half in 69 s


def topic_score_for_rate(messages_per_s: float, *, weight: float = 1.0) -> TopicScore:
    """Parameters for a topic with about that many distinct messages a second.

    A mesh peer forwards nearly all of them first or nearly first, so a healthy counter stands at
    rate / (1 − decay). The threshold is a tenth of that; under one message in ten seconds it is off.
    """
    steady = messages_per_s / (1 - 0.97)
    threshold = steady / 10 if messages_per_s >= 0.1 else 0.0
    return TopicScore(
        weight=weight,
        first_deliveries_cap=max(5.0, min(steady, 100.0)),
        first_deliveries_weight=20.0 / max(5.0, min(steady, 100.0)),  # at most 20 points, whatever the rate
        mesh_deliveries_threshold=threshold,
        mesh_deliveries_cap=max(steady, 1.0),
        mesh_deliveries_weight=-20.0 / (threshold * threshold) if threshold else 0.0,  # a mute peer: −20
        mesh_failure_weight=-20.0 / (threshold * threshold) if threshold else 0.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings:
    """P5 to P7, the thresholds and decay of v1.1, "Peer Scoring"."""

    topics: Mapping[str, TopicScore] = field(default_factory=dict)
    topic_default: TopicScore | None = field(default_factory=TopicScore)  # None: other topics do not count
    topic_score_cap: float = 100.0  # "TopicCap"
    application_weight: float = 1.0  # P5
    colocation_weight: float = -5.0  # P6
    colocation_threshold: int = 8  # peers on one address: a household or a small office
    colocation_exempt: tuple[str, ...] = ()  # addresses of a development network
    behaviour_weight: float = -5.0  # P7
    behaviour_threshold: float = 2.0  # a lost race or two is no attack
    behaviour_decay: float = 0.97
    decay_interval_s: float = 1.0
    decay_to_zero: float = 0.01
    retain_s: float = 600.0  # "Time to remember peer scores after a peer disconnects"
    retained_max: int = 10_000  # 0.5 KB each
    # "Score Thresholds"
    gossip_threshold: float = -10.0
    publish_threshold: float = -50.0
    graylist_threshold: float = -80.0
    disconnect_threshold: float = -200.0  # ours: not worth a socket any more
    accept_px_threshold: float = 10.0  # a peer that has brought ten valid messages lately
    opportunistic_graft_threshold: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSettings:
    # v1.0 "Parameters"
    degree: int = 6
    degree_low: int = 4
    degree_high: int = 12
    degree_lazy: int = 6
    heartbeat_s: float = 1.0
    fanout_ttl_s: float = 60.0
    history_windows: int = 5
    gossip_windows: int = 3
    seen_ttl_s: float = 120.0
    # v1.1
    degree_score: int = 4
    degree_out: int = 2
    gossip_factor: float = 0.25
    flood_publish: bool = True
    prune_backoff_s: int = 60
    unsubscribe_backoff_s: int = 10
    backoff_slack_s: float = 1.0  # "plus some slack to account for the offset until the next heartbeat"
    graft_flood_s: float = 10.0  # a GRAFT this soon after a PRUNE counts twice
    prune_backoff_accepted_max_s: int = 3600
    px_peers: int = 16  # "larger than D_hi"
    px_dials_max: int = 8  # per PRUNE: a gift of addresses must not become a port scan
    opportunistic_graft_ticks: int = 60
    opportunistic_graft_peers: int = 2
    iwant_followup_s: float = 3.0
    retransmissions_max: int = 3
    ihave_messages_max: int = 10  # per peer and heartbeat
    ihave_messages_flood: int = 100  # beyond it each one is blamed: no late heartbeat of ours explains so many
    iwant_ids_max: int = 10_000  # per peer and heartbeat, then blamed: twice what we announce at most
    mesh_changes_max: int = 1024  # GRAFT, PRUNE and (un)subscriptions per peer and heartbeat, then blamed
    graylisted_penalty: float = 0.01  # P7 for each RPC of a graylisted peer: who goes on flooding falls further
    graylisted_ticks_max: int = 3  # heartbeats in the life of a connection, then it ends: a pause heals nothing
    graft_ihave_ids_max: int = 200  # news told to a peer that comes into the mesh
    ihave_ids_max: int = 5000  # per peer and heartbeat, both ways
    # v1.2
    idontwant_bytes_min: int = 2048  # below it the notice costs more than the copy that it saves
    idontwant_ids_max: int = 1000  # per peer and heartbeat
    idontwant_ttl_ticks: int = 3
    # ours
    message_bytes_max: int = 64 * 1024
    topics_per_peer_max: int = 256
    peers_max: int = 1024
    messages_per_peer_per_s: float = 500.0  # first copies from one forwarder, over all topics
    messages_per_peer_burst: float = 1000.0
    messages_per_topic_per_s: float = 250.0  # the same, in one topic
    messages_per_topic_burst: float = 500.0
    seen_max: int = 200_000  # 20 MB at most
    cache_messages_max: int = 10_000
    cache_bytes_max: int = 32 * 1024 * 1024
    backoffs_max: int = 20_000
    promises_max: int = 10_000
    pending_max: int = 1_000  # messages whose validator answers later
    pending_ttl_s: float = 30.0
    explicit_peers: tuple[bytes, ...] = ()
    score: ScoreSettings = field(default_factory=ScoreSettings)
