"""A provider that was killed, and whose bootstrap peer has gone meanwhile, serves again: it knows others by itself."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoon.config import Home
from tests.e2e.world import World

pytestmark = pytest.mark.slow

REMEMBERED_TIMEOUT_S = 60.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    assert made.wait_no_survivors(10) == []


def remembered(home: Path) -> set[str]:
    database = Home(path=home).database_path
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return {peer for (peer,) in connection.execute("SELECT peer FROM peers")}


def test_a_provider_comes_back_after_its_bootstrap_peer_has_gone(world: World) -> None:
    listen = ("--listen", "/ip4/127.0.0.1/tcp/0")
    home = world.folder / "provider"
    serve = ("serve", "cocoon-tiny", "--home", str(home), *listen)
    with world.service("node", "--home", str(world.folder / "first"), *listen) as first:
        bootstrap = first.ready["addresses"][0]
        with world.service("node", "--home", str(world.folder / "other"), *listen, "--bootstrap", bootstrap) as other:
            with world.service(*serve, "--bootstrap", bootstrap) as provider:
                until = time.monotonic() + REMEMBERED_TIMEOUT_S
                while other.ready["peer"] not in remembered(home):
                    assert time.monotonic() < until, "the provider writes down nobody"
                    time.sleep(0.2)
                provider.stop(signal.SIGKILL)
            first.stop()
            with world.service(*serve, "--bootstrap", bootstrap) as provider:  # ready says that it is in the network
                shown = world.run("offers", "--bootstrap", other.ready["addresses"][0], "--json")
                assert provider.ready["peer"] in shown.stdout
