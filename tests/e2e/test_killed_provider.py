"""Providers killed with -9: before the first token another answers; later the user gets a clear error, and the gateway
and the next request live.

A provider is first stopped (SIGSTOP), so that the moment of its death is known, and then killed.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cocoon import Client, ton, trust
from cocoon.errors import StreamBroken
from tests.e2e.world import World

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "What is Cocoon?"}]
STORY = [{"role": "user", "content": "Tell me a story."}]
ENDLESS = {"max_tokens": 1500, "logit_bias": {"0": -100, "1": -100, "2": -100, "3": -100}}  # the special tokens: no end
ATTEMPTS = 12  # until a request has picked a provider that is about to die; the cheapest is picked most often


def post(ready: dict[str, Any], body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{ready['base_url']}/chat/completions",
        data=json.dumps({"model": "cocoon-tiny", "temperature": 0, **body}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {ready['api_key']}"},
    )
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=90)


def ask(ready: dict[str, Any]) -> dict[str, Any]:
    with post(ready, {"messages": QUESTION}) as response:
        answer: dict[str, Any] = json.load(response)
    assert "peer-to-peer" in answer["choices"][0]["message"]["content"]
    return answer["x_cocoon"]


def test_a_provider_killed_before_its_first_token_costs_the_user_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.service("demo", "--no-money", "--port", "0") as demo:
        pids = {provider["peer"]: provider["pid"] for provider in demo.ready["providers"]}
        victim = ask(demo.ready)["provider"]  # a session with it is open now
        os.kill(pids[victim], signal.SIGSTOP)
        failed_over = None
        for _ in range(ATTEMPTS):
            killer = threading.Timer(1.0, os.kill, (pids[victim], signal.SIGKILL))
            killer.start()
            started_at = time.monotonic()
            answer = ask(demo.ready)
            killer.cancel()
            assert answer["provider"] != victim
            if answer["attempts"]:
                failed_over = answer
                break
            assert time.monotonic() - started_at < 1.0, "nobody was tried in vain, and yet it waited"
        assert failed_over is not None, "the stopped provider was never chosen"
        assert victim[-6:] in failed_over["attempts"][0] or victim in failed_over["attempts"][0]
        with_kill = [ask(demo.ready)["provider"] for _ in range(3)]
        assert victim not in with_kill


def test_a_provider_killed_midway_gives_a_clear_error_and_the_gateway_lives(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.service("demo", "--no-money", "--port", "0", "--providers", "1", "--open") as demo:
        (provider,) = demo.ready["providers"]
        pid = provider["pid"]
        with post(demo.ready, {"messages": STORY, "stream": True, **ENDLESS}) as response:
            events = _events_until_stopped(response, pid)
        assert len(events) > 1
        error = events[-1]["error"]
        assert error["code"] == "stream_broken"
        assert provider["peer"] in error["message"]
        assert "Ask again" in error["message"] + str(error)
        assert demo.process.poll() is None

        bootstrap = demo.ready["bootstrap"]
        with world.service("serve", "cocoon-tiny", "--bootstrap", bootstrap, "--home", str(tmp_path / "p2")) as another:
            assert _ask_until_answered(demo.ready) == another.ready["peer"]


def test_an_embedded_client_gets_a_typed_error_midway(tmp_path: Path) -> None:
    world = World(tmp_path)
    with (
        world.service("demo", "--no-money", "--port", "0", "--providers", "1") as demo,
        Client.open(bootstrap=[demo.ready["bootstrap"]], trust=trust.Open()) as cocoon,
    ):
        reply = cocoon.chat(model="cocoon-tiny", messages=STORY, spend_max=ton("1"), **ENDLESS)
        next(reply)
        os.kill(demo.ready["providers"][0]["pid"], signal.SIGKILL)
        with pytest.raises(StreamBroken) as broken:
            reply.finish()
        assert broken.value.retryable
        assert "Ask again" in broken.value.advice
        assert reply.text


def _events_until_stopped(response: Any, pid: int) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for line in response:
        if not line.startswith(b"data: ") or b"[DONE]" in line:
            continue
        if not events:
            os.kill(pid, signal.SIGSTOP)
            threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
        events.append(json.loads(line[6:]))
    return events


def _ask_until_answered(ready: dict[str, Any]) -> str:
    until = time.monotonic() + 60
    while True:
        try:
            return str(ask(ready)["provider"])
        except OSError:  # 503 while the new provider's offer is on its way
            assert time.monotonic() < until
            time.sleep(0.5)
