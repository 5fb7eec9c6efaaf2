"""A running demo, used in every way that a person would: SDKs, examples, chat, offers, peers, bad requests.

Everything runs against one demo, at log level `debug`; at the end its logs are searched for what was said.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_openai_sdk import clean_environment, sdk_command, why_not_installed
from tests.e2e.world import Service, World

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-e2e-51c7 What is Cocoon?"


class Demo:
    """The shared demo."""

    def __init__(self, world: World, service: Service) -> None:
        self.world = world
        self.service = service
        self.base_url: str = service.ready["base_url"]
        self.api_key: str = service.ready["api_key"]
        self.bootstrap: str = service.ready["bootstrap"]

    def run(self, command: str, *words: str, stdin: str = "", trust: bool = True) -> subprocess.CompletedProcess[str]:
        return self.world.run(
            command, *words, "--bootstrap", self.bootstrap, *(["--trust", "open"] if trust else []), stdin=stdin
        )

    def post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            f"{self.base_url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.api_key}"},
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    world = World(tmp_path_factory.mktemp("demo"))
    home = world.folder / "demo-home"
    with world.service("demo", "--no-money", "--port", "0", "--home", str(home), "--log-level", "debug") as service:
        yield Demo(world, service)
        said = CANARY.split(maxsplit=1)[0]
        logs = [service.log, *home.rglob("*.log")]
        assert len(logs) >= 5
        found = [str(log) for log in logs if said in log.read_text(errors="replace")]
    assert found == [], "a prompt reached a log"
    assert world.wait_no_survivors(10) == []


def test_the_demo_says_what_is_what(demo: Demo) -> None:
    ready = demo.service.ready
    assert ready["trust"] == "simulated"
    assert len({provider["peer"] for provider in ready["providers"]}) == 3
    told = demo.service.log.read_text()
    assert "trust level simulated" in told.lower()
    assert "TEST MODEL" in told


@pytest.mark.parametrize("version", ["2.*", "3.*"])
def test_the_real_sdk_works_against_the_whole_network(demo: Demo, version: str) -> None:
    reason = why_not_installed(version)
    if reason is not None:
        pytest.skip(f"openai {version} cannot be installed here: {reason}")
    script = ROOT / "tests" / "e2e" / "sdk_scripts" / "chat_sdk.py"
    environment = {**clean_environment(), "BASE_URL": demo.base_url, "API_KEY": demo.api_key, "MODEL": "cocoon-tiny"}
    ran = subprocess.run(
        [*sdk_command(version), str(script)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "FAILED" not in ran.stdout


@pytest.mark.parametrize("name", ["embed_blocking.py", "embed_trio.py", "embed_asyncio.py"])
def test_the_examples_do_what_they_say(demo: Demo, name: str) -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), demo.bootstrap],
        env=demo.world.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "receipt verified: True" in ran.stdout


def test_offers_lists_three_providers_cheapest_first(demo: Demo) -> None:
    ran = demo.run("offers", "cocoon-tiny", "--json", trust=False)
    assert ran.returncode == 0, ran.stderr
    offers = json.loads(ran.stdout)["offers"]
    assert len({offer["provider"] for offer in offers}) == 3
    prices = [offer["price_output_nano"] for offer in offers]
    assert prices == sorted(prices)
    assert len(set(prices)) == 3
    assert all(offer["trust_claimed"] == "simulated" and offer["age_s"] >= 0 for offer in offers)

    table = demo.run("offers", trust=False).stdout
    assert table.count("cocoon-tiny@") == 3
    assert "OUT TON/M" in table


def test_a_wrong_model_name_is_met_with_near_ones_everywhere(demo: Demo) -> None:
    ran = demo.run("offers", "cocoon-tny", "--json", trust=False)
    assert ran.returncode == 2
    assert "cocoon-tiny" in json.loads(ran.stdout)["error"]["advice"]

    ran = demo.run("chat", "--model", "cocoon-tny", "--json", CANARY)
    assert ran.returncode == 2
    error = json.loads(ran.stdout)["error"]
    assert error["code"] == "model_not_found"
    assert "cocoon-tiny" in error["advice"]

    status, answer = demo.post({"model": "cocoon-tny", "messages": [{"role": "user", "content": CANARY}]})
    assert status == 404
    assert answer["error"]["code"] == "model_not_found"
    assert "cocoon-tiny" in answer["error"]["message"]


def test_a_price_ceiling_that_is_too_low_names_the_cheapest(demo: Demo) -> None:
    ran = demo.run("chat", "--spend-max", "0", "--json", CANARY)
    assert ran.returncode == 4
    error = json.loads(ran.stdout)["error"]
    assert error["code"] == "price_too_high"
    assert "cheapest" in (error["message"] + error["advice"]).lower()


def test_peers_lists_the_bootstrap_node(demo: Demo) -> None:
    ran = demo.run("peers", "--json", "--wait", "1", trust=False)
    assert ran.returncode == 0, ran.stderr
    listed = json.loads(ran.stdout)["peers"]
    assert demo.bootstrap.rsplit("/", 1)[1] in {peer["peer"] for peer in listed}


def test_peers_says_why_another_was_not_reached(demo: Demo) -> None:
    dead = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWFvGidPcZnSbidKtPCfU1AjFALtVNXkjnXaWriRRosrkD"
    ran = demo.run("peers", "--json", "--wait", "1", "--bootstrap", dead, trust=False)
    assert ran.returncode == 0, ran.stderr
    (failure, *_) = json.loads(ran.stdout)["failures"]
    assert failure["peer"] == dead.rsplit("/", 1)[1]
    assert failure["reason"]


def test_chat_answers_a_pipe(demo: Demo) -> None:
    ran = demo.run("chat", stdin="What is Cocoon?\n")
    assert ran.returncode == 0, ran.stderr
    assert "peer-to-peer" in ran.stdout
    assert "joining" not in ran.stdout


def test_chat_streams_objects_with_json(demo: Demo) -> None:
    ran = demo.run("chat", "--json", "What is Cocoon?")
    assert ran.returncode == 0, ran.stderr
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    assert {event["event"] for event in events[:-1]} == {"text"}
    assert events[-1]["event"] == "answer"
    assert "".join(event["text"] for event in events[:-1]) == events[-1]["answer"]
    assert events[-1]["receipt"]["verified"] is True


def test_chat_in_a_terminal_remembers_and_ctrl_c_stops_one_answer_only(demo: Demo) -> None:
    terminal = Terminal(demo)
    try:
        terminal.expect("> ")
        terminal.write("What is Cocoon?\n")
        terminal.expect("peer-to-peer")
        terminal.expect("receipt verified")
        terminal.expect("> ")
        terminal.write("\x03")  # at the prompt: stops nothing, ends nothing
        terminal.expect("/quit ends")
        terminal.write("/new\n")
        terminal.expect("forgotten")
        terminal.expect("> ")
        terminal.write("Tell me a story.\n")
        terminal.expect("Once")
        terminal.write("\x03")  # in the middle of an answer, or just after it on a fast machine
        terminal.expect("/quit ends")
        terminal.expect("> ")
        terminal.write("What is a token?\n")
        terminal.expect("receipt verified")
        terminal.write("/quit\n")
        assert terminal.wait() == 0
    finally:
        terminal.close()


class Terminal:
    """`cocoon chat` on a pseudo-terminal."""

    def __init__(self, demo: Demo) -> None:
        self._primary, secondary = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cocoon", "chat", "--trust", "open", "--bootstrap", demo.bootstrap],
            env={**demo.world.environment(), "TERM": "dumb"},
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(secondary)
        self._seen = ""

    def write(self, text: str) -> None:
        os.write(self._primary, text.encode())

    def expect(self, text: str, timeout_s: float = 60.0) -> None:
        until = time.monotonic() + timeout_s
        while text not in self._seen:
            assert time.monotonic() < until, f"waited for {text!r}, saw {self._seen!r}"
            if not select.select([self._primary], [], [], 1.0)[0]:
                continue
            try:
                self._seen += os.read(self._primary, 4096).decode(errors="replace")
            except OSError:
                assert text in self._seen, f"ended before {text!r}: {self._seen!r}"
        self._seen = self._seen.split(text, 1)[1]

    def wait(self) -> int:
        return self._process.wait(30)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._primary)


def _take_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed there becomes SIGINT here


def test_many_prompts_were_said_and_served(demo: Demo) -> None:
    """Feeds the canary through every door once more; the fixture searches the logs afterwards."""
    body = {"model": "cocoon-tiny", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 8}
    status, answer = demo.post(body)
    assert status == 200
    assert answer["x_cocoon"]["receipt"]["verified"] is True
    assert demo.post({**body, "messages": [{"role": "nobody", "content": CANARY}]})[0] == 400
    assert demo.post({**body, "messages": [{"role": "user", "content": CANARY * 2000}]})[0] == 400
    assert demo.run("chat", "--max-tokens", "4", CANARY).returncode == 0
