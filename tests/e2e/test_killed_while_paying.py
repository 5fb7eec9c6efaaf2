"""kill -9 of provider, client, gateway or devnet at every step of a paid stream, each in a process of its own.

After each death and after the recovery: no voucher that was acknowledged is lost, none left before it was on disk, no
slot was signed twice, and due and paid differ by at most the stated window. Ten points here; `-m long` sweeps every
step of each role, and with `COCOON_LONG_STATE` goes on where it was stopped.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from cocoon.adapters.chain import open_chain
from cocoon.adapters.clock import SystemClock, entropy
from cocoon.adapters.store import SqliteStore
from cocoon.adapters.ton import operations
from cocoon.adapters.ton.global_config import parse_global_config
from cocoon.adapters.ton.mnemonic import parse_words, seed_of
from cocoon.adapters.ton.sending import ChainWallet
from cocoon.adapters.ton.wallet import WalletKey
from cocoon.ports import VoucherSide
from cocoon.ports.chain import Transfer
from cocoon.types import NANO_PER_TON, Network
from tests.conftest import HowFar
from tests.e2e.paying_peer import API_KEY, PRICE, TOKENS, VOUCHER_KEY, account_of_point, operator_wallet
from tests.fakes.devnet import PACKAGES, need_node
from tests.fakes.little_market import MODEL
from tests.fuzz.long_form import LongForm

pytestmark = pytest.mark.slow

PATIENCE_S = 180.0
CALM = 6  # looks in a row, 0.2 s apart
STEPS_MAX = 400  # of a stream of a hundred tokens; the sweep ends with the first step that is not reached
TOKEN = PRICE // 10**6
DEVNET_KILLS = 2  # in one story
AT_ONCE = 2  # points side by side: most of their time they wait for one another
POINTS_AT_ONCE = 40  # accounts that one wallet message opens
SHORT = (
    ("provider", 6), ("provider", 21), ("provider", 34), ("provider", 47),
    ("client", 2), ("client", 9), ("client", 16),
    ("gateway", 11),
)  # fmt: skip


class Process:
    """A child that answers in JSON lines."""

    def __init__(self, log: Path, *words: str) -> None:
        self.log = log
        self._errors = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            cwd=Path(__file__).resolve().parents[2],
        )

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """The next line; None when it died."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        return json.loads(line) if line else None

    @property
    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def wait_dead(self, timeout_s: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self.is_dead

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout, self._errors):
            assert end is not None
            with suppress(BrokenPipeError):
                end.close()


class World:
    """One devnet for a whole sweep."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.home = folder / "devnet-home"
        (self.home / "devnet").mkdir(parents=True)
        (self.home / "devnet" / "npm").symlink_to(PACKAGES)
        self.port = 0
        self.devnet = self._start_devnet()
        ready = self.devnet.answer()
        assert ready is not None
        self.config = folder / "config.json"
        self.config.write_text(json.dumps(ready["config"]))
        self.port = ready["config"]["liteservers"][0]["port"]
        self.faucet = WalletKey(seed_of(parse_words(ready["faucet"]["words"])), Network.DEVNET)
        self._opened = 0

    def start(self, log: str, *words: str) -> Process:
        process = Process(self.folder / log, *words)
        self._stack.callback(process.kill)
        return process

    def _start_devnet(self) -> Process:
        return self.start(
            "devnet.log", "cocoon", "devnet", "--json", "--home", str(self.home), "--state", str(self.folder / "state"),
            "--block-time", "0.5", "--servers", "1", "--port", str(self.port),
        )  # fmt: skip

    def restart_devnet(self) -> None:
        self.devnet.kill()
        self.devnet = self._start_devnet()
        assert self.devnet.answer() is not None

    def open_accounts(self, upto: int) -> None:
        """Accounts and operators' wallets for the next points, in one message."""
        if upto <= self._opened:
            return
        points = range(self._opened, max(upto, self._opened + 1))
        self._opened = points[-1] + 1

        async def send() -> None:
            transfers = []
            for point in points:
                _, opening = operations.open_account(
                    self.faucet.account,
                    point,
                    voucher_key=VOUCHER_KEY,
                    deposit_nano=2 * NANO_PER_TON,
                    bond_nano=NANO_PER_TON,
                )
                funds = Transfer(to=operator_wallet(point).account, amount_nano=NANO_PER_TON, bounce=False)
                transfers += [opening, funds]
            config = parse_global_config(self.config.read_text())
            async with open_chain(config, network=Network.DEVNET, trust_level=0, now=SystemClock().now) as chain:
                await ChainWallet(self.faucet, chain).send(tuple(transfers))

        trio.run(send)

    def claimed_nano(self, point: int) -> int:
        """By this point's operator, as the chain proves it."""

        async def read() -> int:
            config = parse_global_config(self.config.read_text())
            async with open_chain(config, network=Network.DEVNET, trust_level=0, now=SystemClock().now) as chain:
                state = await chain.spending_account(account_of_point(self.faucet.account, point))
            assert state is not None
            entry = state.entries.get(operator_wallet(point).account)
            return 0 if entry is None else entry.claimed_nano

        return trio.run(read)


class Point:
    """One provider and one client with an account and a network of their own."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.folder = world.folder / f"point-{number}"
        for name in ("provider", "client"):
            (self.folder / name).mkdir(parents=True)
        self.held_at_restart = 0
        self.due_before = 0
        self.lives = 0  # facts about what is due that belong to earlier lives of the provider
        home = str(self.folder / "node")
        self.node = world.start(
            f"point-{number}-node.log", "cocoon", "node", "--json", "--home", home, "--network", "devnet"
        )
        meeting = self.node.answer()
        assert meeting is not None
        self.bootstrap = meeting["addresses"][0]

    def start(self, role: str, *, kill: int = 0) -> Process:
        folder = self.folder / ("provider" if role == "provider" else "client")
        return self.world.start(
            f"point-{self.number}-{role}.log", "tests.e2e.paying_peer", role, str(folder),
            "--chain", str(self.world.config), "--bootstrap", self.bootstrap, "--point", str(self.number),
            "--owner", self.world.faucet.account.hex(), "--kill", str(kill),
        )  # fmt: skip

    def facts(self, party: str) -> list[dict[str, Any]]:
        file = self.folder / party / "facts"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def last(self, party: str, name: str) -> int:
        return max((fact[name] for fact in self.facts(party) if name in fact), default=0)

    def kept(self, party: str) -> int:
        """The voucher in its database."""
        side, folder = (VoucherSide.HELD, "provider") if party == "provider" else (VoucherSide.ISSUED, "client")
        owner = operator_wallet(self.number).account
        if party == "client":
            owner = account_of_point(self.world.faucet.account, self.number)

        async def read() -> int:
            file = self.folder / folder / "cocoon.sqlite"
            store = await SqliteStore.open(file, clock=SystemClock(), entropy=entropy)
            kept = await store.vouchers(side, network=int(Network.DEVNET), party=owner)
            await store.aclose()
            return kept[0].cumulative_nano if kept else 0

        return trio.run(read)

    def check(self) -> None:
        """What must hold at any moment, whoever just died."""
        held, issued = self.kept("provider"), self.kept("client")
        assert held >= self.last("provider", "acknowledged")
        assert issued >= self.last("client", "sent")
        assert held <= issued
        slots: dict[str, str] = {}
        for fact in self.facts("provider"):
            if "slot" in fact:
                assert slots.setdefault(fact["slot"], fact["digest"]) == fact["digest"]
        for fact in self.facts("provider"):
            if "due" in fact:
                assert fact["unpaid"] <= fact["window"]

    def provider_died(self) -> None:
        """Its next life begins with what was paid; what was due is forgotten."""
        dues = [fact["due"] for fact in self.facts("provider") if "due" in fact]
        self.held_at_restart = self.kept("provider")
        self.due_before = dues[-1] if dues else 0
        self.lives = len(dues)

    def settled(self) -> None:
        """Everything that arrived is paid for, and nothing else; at most a window is lost."""
        deadline = time.monotonic() + PATIENCE_S
        seen: list[tuple[int, int]] = []  # the last vouchers are still on their way: wait until nothing moves
        while time.monotonic() < deadline:
            seen.append((self.kept("client"), self.kept("provider")))
            if len(set(seen[-CALM:])) == 1 and len(seen) >= CALM and seen[-1][0] == seen[-1][1]:
                break
            time.sleep(0.2)
        issued, held = seen[-1]
        assert held == issued
        dues = [fact["due"] for fact in self.facts("provider") if "due" in fact]
        newest = dues[self.lives :]
        due = self.due_before + (newest[-1] if newest else self.held_at_restart) - self.held_at_restart
        window = max(fact["window"] for fact in self.facts("provider") if "window" in fact)
        assert held <= due
        assert due - held <= window * TOKEN


@contextmanager
def sweep(folder: Path) -> Iterator[World]:
    need_node()
    with ExitStack() as stack:
        yield World(folder, stack)


def ask_over_http(base_url: str) -> bool:
    """Whether the answer came whole."""
    request = urllib.request.Request(
        f"{base_url}/chat/completions",
        data=json.dumps(
            {
                "model": MODEL.name,
                "messages": [{"role": "user", "content": "say something"}],
                "max_tokens": TOKENS,
                "stream": True,
            }
        ).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY.decode()}"},
    )
    try:
        opened = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE_S)
        with opened as response:
            return b"data: [DONE]" in response.read()
    except (OSError, http.client.HTTPException):
        return False


def stream(consumer: Process, ready: dict[str, Any]) -> bool:
    """One paid answer; whether it came whole."""
    if "base_url" in ready:
        return ask_over_http(ready["base_url"])
    consumer.tell("ask")
    answer = consumer.answer()
    return answer is not None and answer["event"] == "done"


def ready_of(process: Process) -> dict[str, Any]:
    ready = process.answer()
    assert ready is not None, f"it ended: {process.log.read_text()[-2_000:]}"
    assert ready["event"] == "ready"
    return ready


def kill_at(world: World, number: int, victim: str, step: int) -> bool:
    """One point of the sweep; False when the stream ended before this step."""
    point = Point(world, number)
    consumer_role = "gateway" if victim == "gateway" else "client"
    provider = point.start("provider", kill=step if victim == "provider" else 0)
    consumer = point.start(consumer_role, kill=step if victim != "provider" else 0)
    ready_of(provider)
    ready = ready_of(consumer)
    doomed = provider if victim == "provider" else consumer
    deadline = time.monotonic() + PATIENCE_S
    while not (is_whole := stream(consumer, ready)) and not doomed.wait_dead(2.0):
        assert time.monotonic() < deadline, "there is no market"  # a meeting point takes a moment to know everybody
    is_reached = doomed.wait_dead(1.0 if is_whole else 0.0)
    point.check()
    if is_reached:
        doomed.kill()
        if victim == "provider":
            point.provider_died()
            provider = point.start("provider")
            ready_of(provider)
        else:
            consumer = point.start(consumer_role)
            ready = ready_of(consumer)
        deadline = time.monotonic() + PATIENCE_S
        while not stream(consumer, ready):
            assert time.monotonic() < deadline, "the market does not recover"
            time.sleep(0.5)
    point.settled()
    point.check()
    for process in (consumer, provider, point.node):
        process.kill()
    return is_reached


def test_a_kill_at_any_step_loses_no_voucher_and_at_most_the_window(tmp_path: Path, how_far: HowFar) -> None:
    with sweep(tmp_path) as world:
        world.open_accounts(len(SHORT) + 1)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            reached = [pool.submit(kill_at, world, number, *where) for number, where in enumerate(SHORT)]
            for where, one in zip(SHORT, reached, strict=True):
                assert one.result(), f"there is no step {where}"
        survives_the_devnet(world, len(SHORT))
    how_far("kill sweep", len(SHORT) + DEVNET_KILLS, 3 * 60, "steps")


def survives_the_devnet(world: World, number: int) -> None:
    """The chain dies in the stream, and again while it is claimed from: no stream notices, and the claims arrive."""
    point = Point(world, number)
    provider, consumer = point.start("provider"), point.start("client")
    ready_of(provider)
    ready = ready_of(consumer)
    assert stream(consumer, ready)
    consumer.tell("ask")
    world.devnet._process.send_signal(signal.SIGKILL)
    answer = consumer.answer()
    assert answer is not None
    assert answer["event"] == "done"
    world.restart_devnet()
    assert stream(consumer, ready)
    point.settled()
    point.check()
    provider.tell("claim")
    world.restart_devnet()
    held = point.kept("provider")
    deadline = time.monotonic() + PATIENCE_S
    while world.claimed_nano(number) != held:
        assert time.monotonic() < deadline, "the claims do not arrive"
        time.sleep(1)
        provider.tell("claim")
    for process in (consumer, provider, point.node):
        process.kill()


@pytest.mark.long
def test_a_kill_at_every_step_of_every_role_loses_no_voucher(tmp_path: Path) -> None:
    form = LongForm("kill sweep")
    with sweep(tmp_path) as world:
        number = 0
        for victim in ("provider", "client", "gateway"):
            for step in range(1, STEPS_MAX):
                world.open_accounts(number + POINTS_AT_ONCE if number % POINTS_AT_ONCE == 0 else number + 1)
                if form.sums.get(f"{victim} steps", 0) >= step or form.sums.get(f"{victim} ended", 0):
                    continue
                with form.round():
                    is_reached = kill_at(world, number, victim, step)
                    form.count(**{f"{victim} steps": 1})
                    if not is_reached:
                        form.count(**{f"{victim} ended": 1})
                number += 1
