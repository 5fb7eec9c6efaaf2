"""The heartbeat: meshes, fanouts and gossip, once a second (gossipsub v1.0 "Heartbeat", v1.1 "Heartbeat
Maintenance", "Opportunistic Grafting", "Adaptive Gossip Dissemination").

Functions over `RouterState`. Everything for one peer leaves in one RPC.
"""

from __future__ import annotations

from p2p.gossip.messages import Prune, Rpc
from p2p.gossip.settings import NANOSECONDS
from p2p.gossip.state import Disconnect, Effect, Neighbour, RouterState, Send


class Outbox:
    """Control messages of one heartbeat, gathered per peer: "coalesced and piggybacked"."""

    def __init__(self) -> None:
        self.graft: dict[bytes, list[str]] = {}
        self.prune: dict[bytes, list[Prune]] = {}
        self.ihave: dict[bytes, list[tuple[str, tuple[bytes, ...]]]] = {}

    def effects(self) -> list[Effect]:
        return [
            Send(
                (peer,),
                Rpc(
                    graft=tuple(self.graft.get(peer, ())),
                    prune=tuple(self.prune.get(peer, ())),
                    ihave=tuple(self.ihave.get(peer, ())),
                ),
            )
            for peer in dict.fromkeys([*self.graft, *self.prune, *self.ihave])
        ]


def heartbeat(state: RouterState, *, now: int) -> list[Effect]:
    state.tick += 1
    state.next_heartbeat = now + int(state.settings.heartbeat_s * NANOSECONDS)
    _judge(state, now=now)
    outbox = Outbox()
    for topic, mesh in state.mesh.items():
        _maintain_mesh(state, topic, mesh, outbox, now=now)
        _emit_gossip(state, topic, mesh, outbox)
    _maintain_fanout(state, outbox, now=now)
    state.cache.shift()
    state.seen.expire(now=now)
    if state.tick % 15 == 0:
        state.backoffs.expire(now=now)
    effects = outbox.effects()
    effects += [Disconnect(peer, "score") for peer, neighbour in state.neighbours.items() if _is_over(state, neighbour)]
    return effects


def _is_over(state: RouterState, neighbour: Neighbour) -> bool:
    score, settings = neighbour.score.value, state.settings
    neighbour.graylisted_ticks += score < settings.score.graylist_threshold
    if neighbour.is_explicit:
        return False
    return score < settings.score.disconnect_threshold or neighbour.graylisted_ticks >= settings.graylisted_ticks_max


def _judge(state: RouterState, *, now: int) -> None:
    """Broken promises, the counters of one interval, and the decay of scores."""
    for peer, count in state.promises.broken(now=now).items():
        state.counters.promises_broken += count
        neighbour = state.neighbours.get(peer)
        if neighbour is not None:
            state.scores.misbehaved(peer, neighbour.score, count)
    for neighbour in state.neighbours.values():
        neighbour.ihave_messages = neighbour.ihave_ids = neighbour.idontwant_ids = 0
        neighbour.iwant_ids = neighbour.mesh_changes = 0
        if neighbour.dont_send:
            for message_id in [i for i, tick in neighbour.dont_send.items() if tick <= state.tick]:
                del neighbour.dont_send[message_id]
    interval = max(1, round(state.settings.score.decay_interval_s / state.settings.heartbeat_s))
    if state.tick % interval == 0:
        state.scores.decay(now=now)


# --- mesh ----------------------------------------------------------------------------------------------------


def _maintain_mesh(state: RouterState, topic: str, mesh: dict[bytes, Neighbour], outbox: Outbox, *, now: int) -> None:
    settings = state.settings
    # "Peers with negative score are pruned from all meshes."
    for neighbour in [n for n in mesh.values() if n.score.value < 0]:
        prune(state, neighbour, topic, outbox, now=now, with_px=False)
    if len(mesh) < settings.degree_low:
        _graft_some(state, topic, mesh, settings.degree - len(mesh), outbox, now=now)
    elif len(mesh) > settings.degree_high:
        _shrink(state, topic, mesh, outbox, now=now)
    if len(mesh) >= settings.degree_low:
        _fill_outbound_quota(state, topic, mesh, outbox, now=now)
    if state.tick % settings.opportunistic_graft_ticks == 0 and len(mesh) > 1:
        _graft_opportunistically(state, topic, mesh, outbox, now=now)


def graft(state: RouterState, neighbour: Neighbour, topic: str, outbox: Outbox, *, now: int) -> None:
    state.join_mesh(neighbour, topic, now=now)
    outbox.graft.setdefault(neighbour.peer, []).append(topic)
    outbox.ihave.setdefault(neighbour.peer, []).extend(news_for(state, topic))


def news_for(state: RouterState, topic: str) -> list[tuple[str, tuple[bytes, ...]]]:
    """An IHAVE for a peer that has just come into the mesh. What we heard shortly before would else never reach
    it: it is not forwarded again, and gossip goes to peers outside the mesh."""
    most = state.settings.graft_ihave_ids_max
    ids = state.cache.gossip_ids(topic)[-most:] if most else []
    return [(topic, tuple(ids))] if ids else []


def prune(state: RouterState, neighbour: Neighbour, topic: str, outbox: Outbox, *, now: int, with_px: bool) -> None:
    state.leave_mesh(neighbour, topic)
    outbox.prune.setdefault(neighbour.peer, []).append(prune_message(state, neighbour, topic, now=now, with_px=with_px))


def prune_message(
    state: RouterState, neighbour: Neighbour, topic: str, *, now: int, with_px: bool, backoff_s: int | None = None
) -> Prune:
    """Starts the backoff too: "both the pruned and the pruning peer add a backoff period from each other"."""
    backoff_s = state.settings.prune_backoff_s if backoff_s is None else backoff_s
    state.backoffs.extend(topic, neighbour.peer, now + backoff_s * NANOSECONDS)
    if not with_px or neighbour.score.value < 0:  # "no PX information is emitted towards those peers"
        return Prune(topic, backoff_s)
    # "when performing PX only peers with non-negative scores are exchanged"
    others = [
        other for other in state.topics.get(topic, {}).values() if other is not neighbour and other.score.value >= 0
    ]
    chosen = state.choose(others, state.settings.px_peers)
    # "This set of peers includes the Peer ID and a signed peer record for each peer exchanged."
    record = state.peer_record
    return Prune(topic, backoff_s, tuple((o.peer, record(o.peer) if record else b"") for o in chosen))


def _graft_some(
    state: RouterState, topic: str, mesh: dict[bytes, Neighbour], count: int, outbox: Outbox, *, now: int
) -> None:
    for neighbour in state.choose(state.candidates(topic, without=mesh, now=now), count):
        graft(state, neighbour, topic, outbox, now=now)


def _shrink(state: RouterState, topic: str, mesh: dict[bytes, Neighbour], outbox: Outbox, *, now: int) -> None:
    """ "The peer keeps the best D_score scoring peers and selects the remaining peers to keep at random …
    under the constraint that D_out peers are outbound connections"."""
    settings = state.settings
    ranked = list(mesh.values())
    state.rng.shuffle(ranked)  # so that equal scores do not favour whoever came first
    ranked.sort(key=lambda neighbour: neighbour.score.value, reverse=True)
    best, rest = ranked[: settings.degree_score], ranked[settings.degree_score :]
    state.rng.shuffle(rest)
    count = settings.degree - len(best)
    kept, dropped = rest[:count], rest[count:]
    missing = settings.degree_out - sum(neighbour.is_outbound for neighbour in best + kept)
    replaceable = [neighbour for neighbour in kept if not neighbour.is_outbound]
    for outbound in [neighbour for neighbour in dropped if neighbour.is_outbound]:
        if missing <= 0 or not replaceable:
            break
        loser = replaceable.pop()
        kept[kept.index(loser)] = outbound
        dropped[dropped.index(outbound)] = loser
        missing -= 1
    for neighbour in dropped:
        prune(state, neighbour, topic, outbox, now=now, with_px=True)


def _fill_outbound_quota(
    state: RouterState, topic: str, mesh: dict[bytes, Neighbour], outbox: Outbox, *, now: int
) -> None:
    """ "If the peer already has at least D_lo peers in the mesh but not enough outbound connections, then it
    selects as many needed peers to fill the quota and grafts them"."""
    missing = state.settings.degree_out - sum(neighbour.is_outbound for neighbour in mesh.values())
    if missing > 0:
        outbound = [n for n in state.candidates(topic, without=mesh, now=now) if n.is_outbound]
        for neighbour in state.choose(outbound, missing):
            graft(state, neighbour, topic, outbox, now=now)


def _graft_opportunistically(
    state: RouterState, topic: str, mesh: dict[bytes, Neighbour], outbox: Outbox, *, now: int
) -> None:
    """ "If the median score is below the threshold, the router opportunistically grafts (at least) two peers
    with score above the median"."""
    values = sorted(neighbour.score.value for neighbour in mesh.values())
    median = values[len(values) // 2]
    if median >= state.settings.score.opportunistic_graft_threshold:
        return
    better = [n for n in state.candidates(topic, without=mesh, now=now) if n.score.value > median]
    for neighbour in state.choose(better, state.settings.opportunistic_graft_peers):
        graft(state, neighbour, topic, outbox, now=now)


# --- fanout and gossip ---------------------------------------------------------------------------------------


def _maintain_fanout(state: RouterState, outbox: Outbox, *, now: int) -> None:
    settings = state.settings
    ttl = int(settings.fanout_ttl_s * NANOSECONDS)
    for topic in [t for t, at in state.fanout_published_at.items() if now - at > ttl]:
        del state.fanout_published_at[topic]
        state.fanout.pop(topic, None)
    for topic, fanout in state.fanout.items():
        lowest = settings.score.publish_threshold
        for peer in [peer for peer, neighbour in fanout.items() if neighbour.score.value < lowest]:
            del fanout[peer]
        found = state.candidates(topic, without=fanout, now=now)
        for neighbour in state.choose(found, settings.degree - len(fanout)):
            fanout[neighbour.peer] = neighbour
        _emit_gossip(state, topic, fanout, outbox)


def _emit_gossip(state: RouterState, topic: str, mesh: dict[bytes, Neighbour], outbox: Outbox) -> None:
    """ "Randomly selects gossip factor peers with a minimum of D_lazy, and emits gossip" to those above the
    gossip threshold that are not in the mesh."""
    ids = state.cache.gossip_ids(topic)
    if not ids:
        return
    settings = state.settings
    lowest = settings.score.gossip_threshold
    found = [
        neighbour
        for peer, neighbour in state.topics.get(topic, {}).items()
        if peer not in mesh and not neighbour.is_explicit and neighbour.score.value >= lowest
    ]
    count = max(settings.degree_lazy, int(len(found) * settings.gossip_factor))
    for neighbour in state.choose(found, count):
        told = ids
        if len(ids) > settings.ihave_ids_max:  # each peer hears of another part
            told = state.rng.sample(ids, settings.ihave_ids_max)
        outbox.ihave.setdefault(neighbour.peer, []).append((topic, tuple(told)))
