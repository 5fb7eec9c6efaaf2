"""The fast level on the meshes of a recorded run: what differs then is propagation alone.

Connections, meshes, sessions, publications and heartbeats are the recording's; jitter, loss, queues, gossip to peers
outside the mesh and what is asked for are the fast level's own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.fast import state
from sim.fast.building import flows_of, gossipers, rules_of
from sim.fast.gossip import BIN_NS, GossipModel
from sim.fast.script import script_of
from sim.fast.state import Rows, new_rows
from sim.scenario import Scenario
from sim.xval.recorder import Recording


def rows_of(recording: Recording, *, has_scores: bool, has_idontwant: bool) -> Rows:
    """Empty rows, with room for everybody that a node is ever connected with."""
    room = np.ones(recording.nodes, np.int64)
    for operation in recording.operations:
        if operation.kind == state.CONNECT:
            room[operation.a] += 1
            room[operation.b] += 1
    rows = new_rows(room, has_scores=has_scores, has_idontwant=has_idontwant)
    rows.nodes[:, state.ALIVE] = recording.alive
    rows.nodes[:, state.PHASE] = recording.phases
    return rows


def replay(recording: Recording, scenario: Scenario, *, seed: int) -> GossipModel:
    """Run the recording to its end."""
    assert scenario.gossip is not None
    rules = replace(
        rules_of(scenario, scenario.gossip, tick_ns=recording.tick_ns, seed=seed), is_maintained=False, has_scores=False
    )
    groups = [(group.count, group.link) for _, group in gossipers(scenario)]
    model = GossipModel(
        rules=rules,
        rows=rows_of(recording, has_scores=rules.has_scores, has_idontwant=rules.has_idontwant),
        script=script_of(recording.operations),
        slots=max(1, recording.published),
        tick_ns=recording.tick_ns,
        seed=seed,
        flows=flows_of(groups, tick_ns=recording.tick_ns) if rules.has_bandwidth else None,
    )
    model.run_until(scenario.run.until_s)
    return model


def delays_ms(model: GossipModel) -> NDArray[np.float64]:
    """Of first deliveries to nodes that were up at the publishing, to a tenth of a millisecond."""
    counts = model.delays(timely=True)
    steps = np.flatnonzero(counts)
    found: NDArray[np.float64] = np.repeat((steps + 0.5) * (BIN_NS / 1e6), counts[steps])
    return found
