"""A network that has nothing but QUIC: a node, a provider and a client as commands; a question is answered over it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.world import World

pytestmark = pytest.mark.slow

LISTEN = "/ip4/127.0.0.1/udp/0/quic-v1"


def test_a_question_is_answered_over_quic_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    home = {name: ["--home", str(tmp_path / name)] for name in ("node", "provider", "client")}
    with world.service("node", "--listen", LISTEN, *home["node"]) as node:
        (bootstrap,) = node.ready["addresses"]
        assert "/quic-v1/p2p/" in bootstrap
        provider = ["serve", "cocoon-tiny", "--listen", LISTEN, "--bootstrap", bootstrap, "--threads", "1"]
        with world.service(*provider, *home["provider"]):
            peers = world.run("peers", "--json", "--bootstrap", bootstrap, *home["client"])
            assert peers.returncode == 0, peers.stderr
            assert all("/udp/" in peer["address"] for peer in json.loads(peers.stdout)["peers"])
            words = ["--trust", "open", "--bootstrap", bootstrap, "--max-tokens", "16", "What is Cocoon?"]
            asked = world.run("chat", "--json", *home["client"], *words)
            assert asked.returncode == 0, asked.stderr
            assert json.loads(asked.stdout.splitlines()[-1])
    assert world.wait_no_survivors(10) == []
