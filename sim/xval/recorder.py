"""What a run of level 1 did, as a script that the fast level can replay: who was up, connected and in whose mesh, when,
what was published, and when every node got it.

Watches through the run's observer and by standing in front of four methods; it changes nothing of what happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2p.gossip import Router
from sim.fast import state
from sim.fast.script import Operation
from sim.levels.machines import run_level
from sim.levels.node import Node
from sim.levels.world import Observer, World
from sim.result import LevelResult
from sim.scenario import Scenario


@dataclass(slots=True)
class Recording:
    """Ticks are from the start of the run. `delays_ms`: of first deliveries to nodes that were up when the message was
    published. Those that come up later catch up after seconds, by what their first neighbours announce: `late`."""

    tick_ns: int
    nodes: int = 0
    alive: list[bool] = field(default_factory=list)  # at the start
    phases: list[int] = field(default_factory=list)  # ticks, of each node's heartbeat
    operations: list[Operation] = field(default_factory=list)
    published: int = 0
    late: int = 0
    delays_ms: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


class _DelaySink:
    def __init__(self, up_since: dict[int, int]) -> None:
        self.delays: list[int] = []
        self.late = 0
        self._up_since = up_since  # node → ns, for those that came up during the run

    def wants(self, table: str) -> bool:
        return table == "deliveries"

    def row(self, table: str, **columns: Any) -> None:
        if self._up_since.get(columns["node"], 0) <= columns["t_ns"] - columns["delay_ns"]:
            self.delays.append(columns["delay_ns"])
        else:
            self.late += 1


class _Watcher(Observer):
    def __init__(self, recording: Recording, topic: str) -> None:
        self.recording = recording
        self._topic = topic
        self._world: World | None = None
        self.up_since: dict[int, int] = {}

    # --- the observer ------------------------------------------------------------------------------------

    def attached(self, world: World) -> None:
        self._world = world
        recording, period = self.recording, int(world.gossip_settings.heartbeat_s * 1e9)
        recording.nodes = len(world.nodes)
        recording.alive = [node.is_up for node in world.nodes]
        for node in world.nodes:
            first = 0 if node.router is None else node.router.state.next_heartbeat - world.kernel.start_ns
            recording.phases.append(first % period // recording.tick_ns)
            for peer in node.dialled:
                self._note_connection(node, world.node_of[peer])
            if node.router is not None:
                self._watch(node.number, node.router)
        self._stand_before(world)

    def node_up(self, number: int, router: Router | None) -> None:
        if self._world is not None:
            self._note(state.UP, number)
            self.up_since[number] = self._world.kernel.now
            if router is not None:
                self._watch(number, router)

    def node_down(self, number: int) -> None:
        if self._world is not None:
            self._note(state.DOWN, number)

    def published(self, t_ns: int, node: int, message: int, size: int) -> None:
        self._note(state.PUBLISH, node, self.recording.published, size)
        self.recording.published += 1

    # --- standing before methods ---------------------------------------------------------------------------

    def _stand_before(self, world: World) -> None:
        connect, disconnect = world.connect, world.disconnect

        def on_connect(dialler: Node, listener: Node) -> bool:
            done = connect(dialler, listener)
            if done:
                self._note_connection(dialler, listener)
            return done

        def on_disconnect(a: Node, b: Node) -> None:
            if b.peer in a.links:
                self._note(state.DISCONNECT, a.number, b.number)
            disconnect(a, b)

        world.connect = on_connect  # type: ignore[method-assign]
        world.disconnect = on_disconnect  # type: ignore[method-assign]

    def _watch(self, owner: int, router: Router) -> None:
        known = router.state
        known.join_mesh = partial(self._on_join, owner, known.join_mesh)  # type: ignore[method-assign]
        known.leave_mesh = partial(self._on_leave, owner, known.leave_mesh)  # type: ignore[method-assign]
        known.subscribed = partial(self._on_hello, owner, known.subscribed)  # type: ignore[method-assign]

    def _on_hello(self, owner: int, subscribed: Callable[..., bool], neighbour: Any, topic: str) -> bool:
        assert self._world is not None
        if topic == self._topic and topic not in neighbour.topics:
            self._note(state.HELLO, owner, self._world.number_of[neighbour.peer])
        return subscribed(neighbour, topic)

    def _on_join(self, owner: int, join: Callable[..., None], neighbour: Any, topic: str, *, now: int) -> None:
        assert self._world is not None
        if topic == self._topic:
            self._note(state.MESH_ON, owner, self._world.number_of[neighbour.peer])
        join(neighbour, topic, now=now)

    def _on_leave(self, owner: int, leave: Callable[..., None], neighbour: Any, topic: str) -> None:
        assert self._world is not None
        if topic == self._topic:
            self._note(state.MESH_OFF, owner, self._world.number_of[neighbour.peer])
        leave(neighbour, topic)

    # --- notes -------------------------------------------------------------------------------------------

    def _note(self, kind: int, a: int, b: int = 0, x: int = 0, y: int = 0) -> None:
        assert self._world is not None
        at = (self._world.kernel.now - self._world.kernel.start_ns) // self.recording.tick_ns
        self.recording.operations.append(Operation(at, kind, a, b, x, y))

    def _note_connection(self, dialler: Node, listener: Node) -> None:
        assert self._world is not None
        network, tick_ns = self._world.network, self.recording.tick_ns
        there = network.latency_ns(dialler.number, listener.number) // tick_ns
        back = network.latency_ns(listener.number, dialler.number) // tick_ns
        self._note(state.CONNECT, dialler.number, listener.number, there, back)


def record(scenario: Scenario, *, seed: int, tick_ns: int) -> tuple[Recording, LevelResult]:
    """Run level 1 and keep what it did. The scenario has gossip."""
    assert scenario.gossip is not None
    recording = Recording(tick_ns)
    watcher = _Watcher(recording, scenario.gossip.topic)
    sink = _DelaySink(watcher.up_since)
    result = run_level(
        scenario,
        seed=seed,
        sink=sink,
        progress=lambda share, note: None,
        observer=watcher,
    )
    recording.late = sink.late
    recording.delays_ms = np.array(sink.delays, np.float64) / 1e6
    return recording, result
