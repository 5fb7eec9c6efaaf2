"""Questions and answers of the DHT machines, carried between the nodes of level 1.

A question to a peer that is not connected is dialled for, and the connection is forgotten after the answer; the one who
was dialled learns of the asker, as by identify. Who asks hears of every question once: an answer, or that there is
none.

Not here: the workload and its measures (`dht.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from p2p import kad
from p2p.kad import Ask, KadMessage, Kind
from sim.kernel import SECOND
from sim.levels.node import Node
from sim.levels.sharing import kad_bytes

if TYPE_CHECKING:
    from sim.levels.world import World

DIAL_ROUND_TRIPS = 3  # TCP, Noise, and the stream: `p2p.transport` opens its muxer with the handshake
DIAL_TIMEOUT_NS = 5 * SECOND  # `p2p.interface.Limits.dial_timeout_s`

Done = Callable[[Any], None]


class DhtCarrier:
    def __init__(self, world: World) -> None:
        self.asks = 0
        self._world = world
        self._kernel = world.kernel
        self._network = world.network
        self._trace = world.kernel.trace.add
        self._operations: dict[tuple[int, int], Done] = {}  # (node, operation) → who wants to know
        self._on_ask: list[Callable[[Node, Ask], None]] = []
        self._on_answer: list[Callable[[Node, int, KadMessage | None, bool], None]] = []

    def on_ask(self, handler: Callable[[Node, Ask], None]) -> None:
        """`handler(node, ask)` for every question that a node sends."""
        self._on_ask.append(handler)

    def on_answer(self, handler: Callable[[Node, int, KadMessage | None, bool], None]) -> None:
        """`handler(node, request id, answer, True)` before the node's machine takes an answer or its lack, and the same
        with False once its effects are carried out."""
        self._on_answer.append(handler)

    def follow(self, node: Node, started: tuple[int, list[kad.Effect]], done: Done) -> None:
        """Carry out an operation that was started on the node's DHT machine, and hear of its result."""
        operation, effects = started
        self._operations[node.number, operation] = done
        self.perform(node, effects)

    def perform(self, node: Node, effects: list[kad.Effect]) -> None:
        for effect in effects:
            if type(effect) is Ask:
                self._ask(node, effect)
            elif type(effect) is kad.Done:
                done = self._operations.pop((node.number, effect.operation_id), None)
                if done is not None:
                    done(effect.result)
        if node.kad is not None:
            self.reschedule(node)

    def _ask(self, node: Node, ask: Ask) -> None:
        """The asker hears of every question: an answer, or that there is none."""
        self.asks += 1
        for handler in self._on_ask:
            handler(node, ask)
        kernel, session = self._kernel, node.session
        limit = kernel.now + int(self._world.kad_settings.request_timeout_s * SECOND)
        target = self._world.node_of.get(ask.peer.peer)
        dial_ns = 0
        is_reached = target is not None and target.is_up
        if target is not None and target.peer not in node.links:
            if is_reached and self._network.can_connect(node.number, target.number):
                dial_ns = 2 * DIAL_ROUND_TRIPS * self._network.latency_ns(node.number, target.number)
            else:
                is_reached = False
        if target is None or not is_reached:
            kernel.at(min(kernel.now + DIAL_TIMEOUT_NS, limit), self._answer, node, session, ask.request_id, None)
            return
        size = kad_bytes(ask.message)
        if not self._network.send_once(
            node.number, target.number, size, dial_ns, self._question, node, target, ask, limit, session
        ):
            kernel.at(limit, self._answer, node, session, ask.request_id, None)

    def _question(self, node: Node, target: Node, ask: Ask, limit: int, session: int) -> None:
        answer: KadMessage | None = None
        self._trace(self._kernel.now, target.number, "ask", node.number.to_bytes(4, "little"))
        if target.kad is not None:
            if node.peer not in target.links and self._world.is_server(node):
                self._world.know(target, node)  # it was dialled, and identify told what the other serves
            for effect in target.kad.receive(node.peer, ask.message, now=self._world.now_of(target)):
                if type(effect) is kad.Send:
                    answer = effect.message
            self.reschedule(target)
        if answer is None and ask.message.kind is Kind.ADD_PROVIDER:
            answer = KadMessage(kind=ask.message.kind, key=ask.message.key)  # it has none: it was delivered
        if answer is None or not self._network.send_once(
            target.number,
            node.number,
            kad_bytes(answer),
            0,
            self._answer,
            node,
            session,
            ask.request_id,
            answer,
        ):
            self._kernel.at(limit, self._answer, node, session, ask.request_id, None)

    def _answer(self, node: Node, session: int, request_id: int, answer: KadMessage | None) -> None:
        machine = node.kad
        if machine is None or node.session != session:
            return
        now = self._world.now_of(node)
        self._trace(self._kernel.now, node.number, "answer", (0 if answer is None else 1).to_bytes(1, "little"))
        for handler in self._on_answer:
            handler(node, request_id, answer, True)
        if answer is None:
            self.perform(node, machine.failed(request_id, now=now))
        else:
            self.perform(node, machine.answered(request_id, answer, now=now))
        for handler in self._on_answer:
            handler(node, request_id, answer, False)

    def reschedule(self, node: Node) -> None:
        assert node.kad is not None
        at = max(self._kernel.now, node.kad.deadline() - node.clock_offset)
        if node.kad_at is None or at < node.kad_at:
            node.kad_at = at
            self._kernel.at(at, self._wake, node, node.session, at)

    def _wake(self, node: Node, session: int, at: int) -> None:
        machine = node.kad
        if machine is None or node.session != session or node.kad_at != at:
            return
        node.kad_at = None
        now = self._world.now_of(node)
        if now >= machine.deadline():
            self._trace(self._kernel.now, node.number, "tick")
            self.perform(node, machine.on_time(now=now))
        else:
            self.reschedule(node)
