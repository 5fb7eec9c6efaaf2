"""GRAFT, PRUNE, IHAVE, IWANT and IDONTWANT as they arrive (gossipsub v1.0 "Message Processing", v1.1 "PRUNE Backoff
and Peer Exchange", "Outbound Mesh Quotas", "Spam Protection Measures", v1.2 "IDONTWANT Message").

Functions over `RouterState`. A graylisted peer never gets here.
"""

from __future__ import annotations

from p2p.gossip.mesh import news_for, prune_message
from p2p.gossip.messages import Message, Prune, Rpc
from p2p.gossip.settings import NANOSECONDS
from p2p.gossip.state import Dial, Effect, Neighbour, RouterState, Send


def handle_control(state: RouterState, neighbour: Neighbour, rpc: Rpc, now: int, effects: list[Effect]) -> None:
    prunes: list[Prune] = []
    news: list[tuple[str, tuple[bytes, ...]]] = []
    for topic in rpc.graft:
        was_in = neighbour.peer in state.mesh.get(topic, ())
        refusal = _grafted(state, neighbour, topic, now)
        if refusal is not None:
            prunes.append(refusal)
        elif not was_in and neighbour.peer in state.mesh.get(topic, ()):
            news += news_for(state, topic)
    for pruned in rpc.prune:
        _pruned(state, neighbour, pruned, now, effects)
    wanted = _ihave(state, neighbour, rpc, now) if rpc.ihave else ()
    if prunes or wanted or news:
        effects.append(Send((neighbour.peer,), Rpc(prune=tuple(prunes), iwant=wanted, ihave=tuple(news))))
    if rpc.iwant:
        _iwant(state, neighbour, rpc.iwant, effects)
    for message_id in rpc.idontwant:
        if neighbour.idontwant_ids >= state.settings.idontwant_ids_max:
            break  # "To prevent DoS the number of IDONTWANT control messages is limited"
        neighbour.idontwant_ids += 1
        neighbour.dont_send[message_id] = state.tick + state.settings.idontwant_ttl_ticks


def _grafted(state: RouterState, neighbour: Neighbour, topic: str, now: int) -> Prune | None:
    """A GRAFT: into the mesh, or the PRUNE to answer with."""
    settings = state.settings
    mesh = state.mesh.get(topic)
    if mesh is None:
        return None  # v1.1 "Spam Protection Measures": "GRAFT messages for unknown topics are ignored"
    if not state.subscribed(neighbour, topic) or neighbour.peer in mesh:
        return None
    if neighbour.is_explicit:
        # "It is an error to GRAFT on a explicit peer, and such an attempt should be … rejected with a PRUNE"
        return prune_message(state, neighbour, topic, now=now, with_px=False)
    until = state.backoffs.until(topic, neighbour.peer)
    if now < until:
        # "will immediately prune a GRAFT within the backoff period and extend it", with a penalty; twice
        # when it comes right after the PRUNE, which no lost race explains
        state.scores.misbehaved(neighbour.peer, neighbour.score)
        if now < until - int((settings.prune_backoff_s - settings.graft_flood_s) * NANOSECONDS):
            state.scores.misbehaved(neighbour.peer, neighbour.score)
        return prune_message(state, neighbour, topic, now=now, with_px=False)
    if neighbour.score.value < 0:
        return prune_message(state, neighbour, topic, now=now, with_px=False)
    if len(mesh) >= settings.degree_high and not neighbour.is_outbound:
        # "it only accepts the new peer in the mesh if it is an outbound connection"
        return prune_message(state, neighbour, topic, now=now, with_px=True)
    state.join_mesh(neighbour, topic, now=now)
    return None


def _pruned(state: RouterState, neighbour: Neighbour, pruned: Prune, now: int, effects: list[Effect]) -> None:
    settings = state.settings
    if pruned.topic not in state.mesh:
        return
    state.leave_mesh(neighbour, pruned.topic)
    backoff_s = min(pruned.backoff_s or settings.prune_backoff_s, settings.prune_backoff_accepted_max_s)
    state.backoffs.extend(pruned.topic, neighbour.peer, now + backoff_s * NANOSECONDS)
    # "we only accept it and connect … if the originating peer's score exceeds this threshold"
    if pruned.peers and neighbour.score.value >= settings.score.accept_px_threshold:
        offered = [
            (peer, record)
            for peer, record in dict(pruned.peers).items()
            if peer not in state.neighbours and peer != state.me
        ]
        if len(offered) > settings.px_dials_max:
            offered = state.rng.sample(offered, settings.px_dials_max)
        effects += [Dial(peer, record) for peer, record in offered]


def _ihave(state: RouterState, neighbour: Neighbour, rpc: Rpc, now: int) -> tuple[bytes, ...]:
    """The ids to ask for. "IHAVE messages are capped to a certain number … per heartbeat"."""
    settings = state.settings
    neighbour.ihave_messages += 1
    if neighbour.ihave_messages > settings.ihave_messages_flood:
        state.scores.misbehaved(neighbour.peer, neighbour.score)
    if neighbour.ihave_messages > settings.ihave_messages_max:
        return ()
    if neighbour.score.value < settings.score.gossip_threshold:
        return ()
    wanted: dict[bytes, None] = {}
    for topic, ids in rpc.ihave:
        if topic not in state.mesh:
            continue
        for message_id in ids:
            if neighbour.ihave_ids + len(wanted) >= settings.ihave_ids_max:
                break
            if message_id not in state.seen and state.promises.may_ask(message_id, now=now):
                wanted[message_id] = None
    if not wanted:
        return ()
    neighbour.ihave_ids += len(wanted)
    asked = list(wanted)
    for message_id in asked:
        state.promises.asked(message_id, now=now)
    # "the router tracks a random message ID within the advertised set"
    state.promises.add(neighbour.peer, state.rng.choice(asked), now=now)
    return tuple(asked)


def _iwant(state: RouterState, neighbour: Neighbour, ids: tuple[bytes, ...], effects: list[Effect]) -> None:
    """ "The router responds a limited number of times to each peer"."""
    settings = state.settings
    neighbour.iwant_ids += len(ids)
    if neighbour.iwant_ids > settings.iwant_ids_max:
        state.scores.misbehaved(neighbour.peer, neighbour.score)
        return
    if neighbour.score.value < settings.score.gossip_threshold:
        return
    messages: list[Message] = []
    is_insatiable = False
    for message_id in dict.fromkeys(ids):
        cached = state.cache.get(message_id)
        if cached is None or message_id in neighbour.dont_send:
            continue
        asked = cached.sent[neighbour.peer] = cached.sent.get(neighbour.peer, 0) + 1
        if asked <= settings.retransmissions_max:
            messages.append(cached.message)
        elif asked > 2 * settings.retransmissions_max:  # answers that crossed explain a few
            is_insatiable = True
    if is_insatiable:
        state.scores.misbehaved(neighbour.peer, neighbour.score)
    if messages:
        effects.append(Send((neighbour.peer,), Rpc(messages=tuple(messages))))
