"""`cocoon serve` in front of an inference server that runs already: a real one, llama.cpp's, over its HTTP port."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.world import World
from tests.fakes import llama_upstream

pytestmark = pytest.mark.slow
LISTEN = "/ip4/127.0.0.1/tcp/0"


def test_a_server_beside_the_provider_answers_the_network(tmp_path: Path) -> None:
    model = tmp_path / "tiny-folder"
    model.mkdir()
    llama_upstream.write_folder(model)
    (model / "model.safetensors").write_bytes(b"the weights are in the server")
    world = World(tmp_path)
    key_file = tmp_path / "server.key"
    with llama_upstream.running(slots=2, context_tokens=512) as (url, key):
        key_file.write_bytes(key.reveal())
        words = ("--upstream", url, "--upstream-key-file", str(key_file), "--context", "512", "--slots", "2")
        with (
            world.service("node", "--listen", LISTEN) as node,
            world.service("serve", str(model), "--listen", LISTEN, "--bootstrap", node.ready["addresses"][0], *words),
        ):
            said = world.run(
                "chat",
                "--bootstrap",
                node.ready["addresses"][0],
                "--trust",
                "open",
                "--temperature",
                "0",
                "--json",
                stdin="What is Cocoon?\n",
            )
    assert said.returncode == 0, said.stderr
    assert "peer-to-peer" in said.stdout
    assert key.reveal().decode() not in said.stdout + said.stderr
