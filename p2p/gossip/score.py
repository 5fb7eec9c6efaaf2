"""What each peer's behaviour is worth: the seven functions of gossipsub v1.1, "The Score Function".

Counters change as things happen; values are computed at each decay interval, and at once when something bad
happened, so that reading a score is reading a number. Scores are this node's own opinion and are never sent.
"""

from __future__ import annotations

from collections.abc import Callable

from p2p.gossip.settings import NANOSECONDS, ScoreSettings, TopicScore


class TopicCounters:
    """One peer in one topic."""

    __slots__ = ("failure", "first", "grafted_at", "invalid", "is_active", "mesh_deliveries")

    def __init__(self) -> None:
        self.grafted_at: int | None = None  # in our mesh since then
        self.first = 0.0  # P2
        self.mesh_deliveries = 0.0  # P3
        self.is_active = False  # long enough in the mesh for P3
        self.failure = 0.0  # P3b
        self.invalid = 0.0  # P4


class PeerScore:
    """One peer. `value` is the current score."""

    __slots__ = ("address", "behaviour", "expires_at", "topics", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.topics: dict[str, TopicCounters] = {}
        self.behaviour = 0.0  # P7
        self.address: str | None = None  # P6
        self.expires_at: int | None = None  # when disconnected


def no_application_score(peer: bytes) -> float:
    return 0.0


class Scores:
    def __init__(
        self, settings: ScoreSettings, *, application: Callable[[bytes], float] = no_application_score
    ) -> None:
        """`application` is P5: any real number for a peer, asked once per decay interval."""
        self._settings = settings
        self._application = application
        self._peers: dict[bytes, PeerScore] = {}
        self._retained: dict[bytes, PeerScore] = {}
        self._addresses: dict[str, dict[bytes, None]] = {}

    # --- peers ---------------------------------------------------------------------------------------------

    def connect(self, peer: bytes, address: str | None) -> PeerScore:
        """`address`: the remote's IP, for P6; None when unknown (a relayed link)."""
        score = self._retained.pop(peer, None) or PeerScore()
        score.expires_at = None
        self._peers[peer] = score
        if address is not None and address not in self._settings.colocation_exempt:
            score.address = address
            neighbours = self._addresses.setdefault(address, {})
            neighbours[peer] = None
            for other in neighbours:
                self._evaluate(other, self._peers[other])
        else:
            self._evaluate(peer, score)
        return score

    def disconnect(self, peer: bytes, *, now: int) -> None:
        """A bad score is remembered, "so that malicious peers cannot easily reset their score"; a good one
        is not, so that nobody can store one up."""
        score = self._peers.pop(peer)
        for name in score.topics:
            self.pruned(score, name)
        if score.address is not None:
            neighbours = self._addresses[score.address]
            del neighbours[peer]
            if not neighbours:
                del self._addresses[score.address]
            score.address = None
        self._evaluate(peer, score)
        if score.value < 0:
            score.expires_at = now + int(self._settings.retain_s * NANOSECONDS)
            self._retained[peer] = score
            if len(self._retained) > self._settings.retained_max:
                del self._retained[next(iter(self._retained))]

    # --- events --------------------------------------------------------------------------------------------

    def grafted(self, score: PeerScore, topic: str, *, now: int) -> None:
        counters = self._counters(score, topic)
        if counters is not None:
            counters.grafted_at = now
            counters.is_active = False

    def pruned(self, score: PeerScore, topic: str) -> None:
        """ "Whenever a peer is pruned with a negative score, the parameter is augmented by the rate deficit"."""
        counters = score.topics.get(topic)
        parameters = self._parameters(topic)
        if counters is None or parameters is None or counters.grafted_at is None:
            return
        if counters.is_active:
            deficit = parameters.mesh_deliveries_threshold - counters.mesh_deliveries
            if deficit > 0:
                counters.failure += deficit * deficit
        counters.grafted_at = None
        counters.is_active = False

    def first_delivery(self, score: PeerScore, topic: str) -> None:
        """The peer brought a valid message that we did not have."""
        counters = score.topics.get(topic) or self._counters(score, topic)
        parameters = self._parameters(topic)
        if counters is None or parameters is None:
            return
        counters.first = min(counters.first + 1, parameters.first_deliveries_cap)
        if counters.grafted_at is not None:
            counters.mesh_deliveries = min(counters.mesh_deliveries + 1, parameters.mesh_deliveries_cap)

    def near_first_delivery(self, score: PeerScore, topic: str) -> None:
        """A mesh peer brought a copy almost as soon as the first came: "first or near-first"."""
        counters = score.topics.get(topic)
        parameters = self._parameters(topic)
        if counters is not None and parameters is not None and counters.grafted_at is not None:
            counters.mesh_deliveries = min(counters.mesh_deliveries + 1, parameters.mesh_deliveries_cap)

    def near_first_window(self, topic: str) -> int:
        """ns after a first delivery within which copies still count for P3."""
        parameters = self._parameters(topic)
        if parameters is None or not parameters.mesh_deliveries_threshold:
            return 0
        return int(parameters.mesh_deliveries_window_s * NANOSECONDS)

    def invalid_message(self, peer: bytes, score: PeerScore, topic: str) -> None:
        """P4. Counts in topics without parameters too: against the default's, or as misbehaviour."""
        counters = self._counters(score, topic)
        if counters is None:
            score.behaviour += 1
        else:
            counters.invalid += 1
        self._evaluate(peer, score)

    def misbehaved(self, peer: bytes, score: PeerScore, amount: float = 1.0) -> None:
        """P7, "explicitly incremented by the router on specific events"."""
        score.behaviour += amount
        self._evaluate(peer, score)

    # --- decay ---------------------------------------------------------------------------------------------

    def decay(self, *, now: int) -> None:
        """One decay interval: counters shrink, values are computed anew, old memories go."""
        for peer, score in self._peers.items():
            self._decay_one(score, now)
            self._evaluate(peer, score, now)
        for peer in [p for p, s in self._retained.items() if s.expires_at is not None and s.expires_at <= now]:
            del self._retained[peer]
        for score in self._retained.values():
            self._decay_one(score, now)

    def _decay_one(self, score: PeerScore, now: int) -> None:
        zero = self._settings.decay_to_zero
        if score.behaviour:
            score.behaviour *= self._settings.behaviour_decay
            if score.behaviour < zero:
                score.behaviour = 0.0
        for name, counters in score.topics.items():
            parameters = self._parameters(name)
            if parameters is None:
                continue
            if counters.first:
                counters.first *= parameters.first_deliveries_decay
                if counters.first < zero:
                    counters.first = 0.0
            if counters.mesh_deliveries:
                counters.mesh_deliveries *= parameters.mesh_deliveries_decay
                if counters.mesh_deliveries < zero:
                    counters.mesh_deliveries = 0.0
            if counters.failure:
                counters.failure *= parameters.mesh_failure_decay
                if counters.failure < zero:
                    counters.failure = 0.0
            if counters.invalid:
                counters.invalid *= parameters.invalid_decay
                if counters.invalid < zero:
                    counters.invalid = 0.0
            if counters.grafted_at is not None and not counters.is_active:
                active_after = parameters.mesh_deliveries_activation_s * NANOSECONDS
                counters.is_active = now - counters.grafted_at > active_after

    # --- the function --------------------------------------------------------------------------------------

    def _evaluate(self, peer: bytes, score: PeerScore, now: int | None = None) -> None:
        settings = self._settings
        total = 0.0
        for name, counters in score.topics.items():
            parameters = self._parameters(name)
            if parameters is not None:
                total += parameters.weight * _topic_value(counters, parameters, now)
        if total > settings.topic_score_cap:  # "TopicCap"
            total = settings.topic_score_cap
        total += settings.application_weight * self._application(peer)
        if score.address is not None:
            surplus = len(self._addresses[score.address]) - settings.colocation_threshold
            if surplus > 0:
                total += settings.colocation_weight * surplus * surplus
        excess = score.behaviour - settings.behaviour_threshold
        if excess > 0:
            total += settings.behaviour_weight * excess * excess
        score.value = total

    def _counters(self, score: PeerScore, topic: str) -> TopicCounters | None:
        counters = score.topics.get(topic)
        if counters is None and self._parameters(topic) is not None:
            counters = score.topics[topic] = TopicCounters()  # only for topics that we are in: few
        return counters

    def _parameters(self, topic: str) -> TopicScore | None:
        return self._settings.topics.get(topic, self._settings.topic_default)


def _topic_value(counters: TopicCounters, parameters: TopicScore, now: int | None) -> float:
    value = parameters.first_deliveries_weight * counters.first
    if counters.grafted_at is not None and now is not None:
        quanta = (now - counters.grafted_at) / (parameters.time_in_mesh_quantum_s * NANOSECONDS)
        value += parameters.time_in_mesh_weight * min(quanta, parameters.time_in_mesh_cap)
    if counters.is_active:
        deficit = parameters.mesh_deliveries_threshold - counters.mesh_deliveries
        if deficit > 0:
            value += parameters.mesh_deliveries_weight * deficit * deficit
    if counters.failure:
        value += parameters.mesh_failure_weight * counters.failure
    if counters.invalid:
        value += parameters.invalid_weight * counters.invalid * counters.invalid
    return value
