"""The fast level gives the same numbers in every process, with numba and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json
from sim.fast import jit
from sim.fast.dht import run_lookups
from sim.fast.level import run_level
from sim.loading import load
from sim.out import NullSink

quiet = lambda share, note: None
found = {"numba": jit.HAS_NUMBA}
overrides = ["nodes.honest.count=40", "run.until_s=7", "gossip.dials=8", "gossip.rate_per_s=1",
             "gossip.publish_from_s=3", "gossip.publish_until_s=5", "net.loss=0.05", "gossip.message_bytes=3000",
             "gossip.protocol=v1.2", "nodes.honest.link.up_mbit_per_s=10", "nodes.honest.link.down_mbit_per_s=20",
             "nodes.honest.churn.model=weibull", "nodes.honest.churn.scale_s=40", "nodes.honest.churn.off_mean_s=5"]
for seed in (1, 2):
    result = run_level(load("gossip-v11", overrides=overrides), seed=seed, sink=NullSink(), progress=quiet)
    found[f"gossip {seed}"] = [result.trace_hash, result.events, result.checkpoints, result.summary]
lookups = run_lookups(60, 20, seed=3)
found["dht"] = [lookups.hops.tolist(), lookups.rpcs.tolist(), lookups.duration_ms.tolist()]
market = load("market-baseline", overrides=["run.until_s=40", "run.warmup_s=0"])
result = run_level(market, seed=4, sink=NullSink(), progress=quiet)
found["market"] = [result.trace_hash, result.summary]
print(json.dumps(found))
"""


def numbers(**environment: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_two_processes_and_plain_python_give_the_same_numbers() -> None:
    first = numbers(PYTHONHASHSEED="1")
    second = numbers(PYTHONHASHSEED="2")
    plain = numbers(PYTHONHASHSEED="3", SIM_WITHOUT_NUMBA="1")
    assert first.pop("numba") is second.pop("numba") is True
    assert plain.pop("numba") is False
    assert first["gossip 1"] != first["gossip 2"]
    assert first == second
    assert first == plain
