"""Attacks below the market: identities that take and do not give, lies about who is close, and chosen silence.

- `sybil`: nodes on top of the honest ones that connect to whom they can, join every topic, are grafted, forward
nothing. - `cold-boot`: the same, there before the honest nodes have met: no score is known yet. - `covert-flash`:
nodes that behave until the attack begins, with the scores they have earned, and then forward nothing. - `censorship`:
nodes of the network that forward everything but what the victims publish. - `eclipse`: nodes that answer every
question of the DHT with one another.

They bend the real routers' and DHT nodes' effects; scores, grafts and lookups of everybody else are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from p2p import gossip, kad
from p2p.kad import KadMessage
from p2p.kad.messages import kad_id
from sim.adversary.base import HOST_HOUR_NANO, IDENTITY_NANO, Action, Adversary, View

CLOSER_MAX = 20  # peers in one answer


class Proxy:
    """Stands for a machine, and is it in all that is not overridden."""

    def __init__(self, inner: Any, adversary: OverlayAttack) -> None:
        self.__dict__["_inner"] = inner
        self.__dict__["_adversary"] = adversary

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_inner"], name, value)


class SilentRouter(Proxy):
    """Forwards nothing that `drops` names; its own messages and all control traffic go out."""

    def receive(self, peer: bytes, rpc: gossip.Rpc, *, now: int) -> list[Any]:
        """What the router does, less what is dropped."""
        return self._less(self._inner.receive(peer, rpc, now=now))

    def on_time(self, *, now: int) -> list[Any]:
        """The same of the heartbeat: lazy gossip offers nothing that is dropped."""
        return self._less(self._inner.on_time(now=now))

    def _less(self, effects: list[Any]) -> list[Any]:
        adversary: OverlayAttack = self._adversary
        if not adversary.is_active:
            return effects
        out: list[Any] = []
        for effect in effects:
            if isinstance(effect, gossip.Send):
                effect = self._send(effect, adversary)
                if effect is None:
                    continue
            out.append(effect)
        return out

    def _send(self, effect: gossip.Send, adversary: OverlayAttack) -> gossip.Send | None:
        rpc = effect.rpc
        kept = tuple(message for message in rpc.messages if not adversary.drops(message))
        dropped = len(rpc.messages) - len(kept)
        ihave = () if adversary.drops_all else rpc.ihave
        if not dropped and ihave == rpc.ihave:
            return effect
        adversary.damage.count("dropped_forwards", dropped * len(effect.peers))
        less = rpc._replace(messages=kept, ihave=ihave)
        return None if less == gossip.Rpc() else effect._replace(rpc=less)


class LyingKad(Proxy):
    """Answers every question with the other liars: none of them knows anybody else."""

    def receive(self, peer: bytes, message: KadMessage, *, now: int) -> list[Any]:
        """The real node's answer, with other names in it."""
        effects = self._inner.receive(peer, message, now=now)
        adversary: OverlayAttack = self._adversary
        if not adversary.is_active:
            return list(effects)
        return [self._lie(effect, message, adversary) for effect in effects]

    def _lie(self, effect: Any, question: KadMessage, adversary: OverlayAttack) -> Any:
        if not isinstance(effect, kad.Send):
            return effect
        adversary.damage.count("lies")
        closer = adversary.accomplices(question.key)
        return replace(effect, message=replace(effect.message, closer=closer, providers=()))


class OverlayAttack(Adversary):
    """Rent for hosts; what is dropped."""

    takes = "gossip"
    drops_all = True
    world: Any = None

    def drops(self, message: gossip.Message) -> bool:
        """Whether this message is not forwarded."""
        return True

    def accomplices(self, key: bytes) -> tuple[kad.KadPeer, ...]:
        """For answers of a DHT."""
        return ()

    def wrap(self, machine: Any) -> Any:
        """Routers."""
        return SilentRouter(machine, self) if isinstance(machine, gossip.Router) else machine

    def plan(self, view: View) -> list[Action]:
        """Rent."""
        return [Action(name="hosts", cost_nano=len(view.own) * HOST_HOUR_NANO // 3_600, do=_nothing)]


def _nothing() -> None:
    pass


class Sybil(OverlayAttack):
    """Nodes on top, which connect to everybody they can, a few a second."""

    kind = "sybil"
    dials_per_s = 4

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rng: Any = None
        self._dialled: dict[int, int] = {}
        self.is_new = True  # its nodes are added by `attach`

    def plan(self, view: View) -> list[Action]:
        """Rent, and connections up to `dials` each."""
        actions = super().plan(view)
        most = int(self.param("dials", 40))
        honest = [node for node in self.world.nodes if node.is_up and node.number not in view.own]
        for number in view.own:
            node = self.world.nodes[number]
            if not node.is_up:
                actions.append(
                    Action(name="identities", cost_nano=IDENTITY_NANO, do=_caller(self.world.start, node))
                )  # fmt: skip
                continue
            done = self._dialled.get(number, 0)
            if done >= most or not honest:
                continue
            self._dialled[number] = done + self.dials_per_s
            for target in self.rng.sample(honest, min(self.dials_per_s, len(honest))):
                actions.append(Action(name="connections", cost_nano=1, do=_caller(self.world.connect, node, target)))
        return actions


class ColdBoot(Sybil):
    """There from the start."""

    kind = "cold-boot"
    dials_per_s = 40


class CovertFlash(OverlayAttack):
    """Well-behaved nodes until the attack begins."""

    kind = "covert-flash"


class Censorship(OverlayAttack):
    """Chosen silence: the victims are the honest providers, or a share of the publishers (`victims`, 0.2)."""

    kind = "censorship"
    drops_all = False
    victims: frozenset[bytes] = frozenset()

    def drops(self, message: gossip.Message) -> bool:
        return message.source in self.victims


class Eclipse(OverlayAttack):
    """Answers with one another."""

    kind = "eclipse"
    takes = "dht"

    def wrap(self, machine: Any) -> Any:
        """DHT nodes."""
        return LyingKad(machine, self) if isinstance(machine, kad.KadNode) else machine

    def accomplices(self, key: bytes) -> tuple[kad.KadPeer, ...]:
        """Those of them that are closest to the key."""
        target = kad_id(key)
        nodes = [self.world.nodes[number] for number in self.nodes]
        nodes.sort(key=lambda node: kad_id(node.peer) ^ target)
        return tuple(kad.KadPeer(node.peer, node.identity.addresses) for node in nodes[:CLOSER_MAX])


def _caller(function: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
    def call() -> None:
        function(*arguments)

    return call
