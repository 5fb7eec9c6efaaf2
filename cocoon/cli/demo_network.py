"""The demo's network: starts the processes and the gateway, asks or waits, and clears up.

The directory of a demo that was killed outright (`kill -9`) stays behind once; the next demo finds its lock free and
removes it. The processes of such a demo end by themselves (`cocoon.cli.children`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

import trio

from ..adapters.clock import SystemClock, entropy
from ..adapters.keyfile import load_or_create_seed
from ..adapters.network import peer_of_seed, warm_up
from ..adapters.store import SqliteStore
from ..api.opening import open_role
from ..api.terms import OPEN_TIMEOUT_S, open_terms
from ..client.interface import ClientRole, OfferView
from ..config import Home
from ..errors import NoProvider
from ..trust import TrustPolicy
from ..types import Secret, TrustLevel, format_ton
from .ask import ask_gateway
from .children import Child, ChildGroup, children
from .console import Console
from .demo_money import DemoMoney, open_demo_money
from .keys import new_api_key
from .options import Setup, chosen_trust
from .paying import opened_account
from .stacks import check_port_free, open_api, warning_of
from .views import brief_peer
from .watching import explained, shown

PREFIX: Final = "cocoon-demo-"
LOCK_FILE: Final = "lock"
OFFERS_TIMEOUT_S: Final = 20.0  # gossip brings them within two seconds once the providers are up
OFFERS_POLL_S: Final = 0.1
PRICES_TON: Final = (("0.05", "0.20"), ("0.08", "0.32"), ("0.12", "0.48"))  # input, output; further ones cost more


async def run_demo(
    prepared: Setup,
    console: Console,
    *,
    providers: int,
    model: str,
    api_key: str | None,
    question: str | None,
    keep_home: bool,
    with_money: bool,
) -> None:
    """The whole demo. `question` asks once; otherwise it runs until it is cancelled."""
    started_at = time.monotonic()
    key = Secret((api_key or new_api_key()).encode())
    await check_port_free(prepared.config)
    trust = chosen_trust(prepared.config)
    console.notice(warning_of(trust))
    console.say(f"{model} is a TEST MODEL: two megabytes, a few made-up facts." if model == "cocoon-tiny" else model)
    with demo_directory(prepared.home if keep_home else None) as folder:
        async with children(folder) as group, AsyncExitStack() as stack:
            network = _Network(group, folder, console, prepared, providers, model)
            money: DemoMoney | None = None
            async with trio.open_nursery() as nursery:  # side by side: it is imports that take the time
                nursery.start_soon(network.start_node)
                nursery.start_soon(trio.to_thread.run_sync, warm_up)
                if with_money:
                    packages = prepared.home.path / "devnet" / "npm"  # they outlive the demo
                    money = await stack.enter_async_context(
                        open_demo_money(group, folder, packages, console, providers=providers)
                    )
                if money is not None:
                    nursery.start_soon(money.fund, console)
                nursery.start_soon(network.start_providers, [] if money is None else money.serve_words())
            terms = open_terms(
                bootstrap=(network.bootstrap,), trust=trust, network="devnet", timeout_s=OPEN_TIMEOUT_S, home=folder
            )
            clock, payment, store = SystemClock(), None, None
            if money is not None:
                client = money.client(prepared.config)
                payment = await stack.enter_async_context(opened_account(client, console))
                path = client.home.database_path
                store = await stack.enter_async_context(await SqliteStore.open(path, clock=clock, entropy=entropy))
            role = await stack.enter_async_context(open_role(terms, store=store, payment=payment))
            home = Home(path=folder)
            gateway, status = await stack.enter_async_context(open_api(role, prepared.config, home, key, clock))
            why = explained(status.record, prepared.config)
            await stack.enter_async_context(shown(home, "gateway", status, console, why=why))
            offers = await _all_offers(role, providers)
            console.progress(f"ready after {time.monotonic() - started_at:.1f} s")
            if question is not None:
                await _ask_once(console, gateway.base_url, key, question, model=model, offers=offers, money=money)
                return
            running = network.running
            _say_what_to_try(
                console, gateway.base_url, key, network.bootstrap, model, offers, running, trust, money, home=folder
            )
            console.data(
                {
                    "event": "ready",
                    "role": "demo",
                    "base_url": gateway.base_url,
                    "api_key": key.reveal().decode(),
                    "bootstrap": network.bootstrap,
                    "model": model,
                    "trust": trust.level.value,
                    "providers": [
                        {"peer": child.ready["peer"], "pid": child.pid, "name": child.name} for child in running
                    ],
                    "money": None if money is None else money.to_object(),
                }
            )
            async with trio.open_nursery() as nursery:
                for child in running:
                    nursery.start_soon(_report_end, child, console)
                if money is not None:
                    nursery.start_soon(money.watch, console)


class _Network:
    """The node and the providers, started side by side: the node's address is known before it runs."""

    def __init__(
        self, group: ChildGroup, folder: Path, console: Console, prepared: Setup, providers: int, model: str
    ) -> None:
        self._group, self._folder, self._console = group, folder, console
        self._prepared, self._count, self._model = prepared, providers, model
        self._node_home = Home(path=folder / "node").create()
        seed = load_or_create_seed(self._node_home.peer_key_path, entropy=entropy)
        self._listen = f"/ip4/127.0.0.1/tcp/{_free_port()}"
        self.bootstrap = f"{self._listen}/p2p/{peer_of_seed(seed)}"
        self.running: list[Child] = []
        self._common = ["--network", prepared.config.network, "--log-level", prepared.log_level]

    async def start_node(self) -> None:
        """Until it is ready."""
        self._console.progress(f"starting a bootstrap node and {self._count} providers …")
        words = ["node", "--home", str(self._node_home.path), "--listen", self._listen, *self._common]
        await self._group.start("node", words)
        self._console.progress("the bootstrap node is up")

    async def start_providers(self, extra: list[str]) -> None:
        """Until all are ready."""
        async with trio.open_nursery() as nursery:
            for number in range(self._count):
                nursery.start_soon(self._start_provider, number, extra)
        self.running.sort(key=lambda child: child.name)

    async def _start_provider(self, number: int, extra: list[str]) -> None:
        price_in, price_out = _prices(number)
        name = f"provider-{number + 1}"
        words = ["serve", self._model, "--bootstrap", self.bootstrap, "--home", str(self._folder / name)]
        words += [*self._common, "--price-in", price_in, "--price-out", price_out, "--threads", "1", *extra]
        words += ["--tee", "none" if self._prepared.config.client.trust == TrustLevel.OPEN.value else "simulated"]
        child = await self._group.start(name, words)
        self.running.append(child)
        self._console.progress(
            f"{name} is up: {brief_peer(child.ready['peer'])}, {price_in} / {price_out} TON per M tokens"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _all_offers(role: ClientRole, providers: int) -> tuple[OfferView, ...]:
    offers: tuple[OfferView, ...] = ()
    with trio.move_on_after(OFFERS_TIMEOUT_S):
        while len({offer.provider for offer in offers}) < providers:
            offers = await role.offers(wait_s=OFFERS_POLL_S)
            await trio.sleep(OFFERS_POLL_S)
    if not offers:
        raise NoProvider(
            f"the providers run, but none of their offers arrived within {OFFERS_TIMEOUT_S:.0f} s",
            advice="Run it again with --log-level info.",
        )
    return offers


async def _ask_once(
    console: Console,
    base_url: str,
    key: Secret,
    question: str,
    *,
    model: str,
    offers: tuple[OfferView, ...],
    money: DemoMoney | None,
) -> None:
    answered = await ask_gateway(base_url, key, model=model, question=question, on_text=console.text)
    console.line("")
    extra = answered.extra
    receipt = extra.get("receipt") or {}
    settled = None if money is None else await money.settle(console, due_nano=int(receipt.get("due_nano") or 0))
    console.data(
        {
            "answer": answered.text,
            "model": answered.model,
            "provider": extra.get("provider"),
            "offer": extra.get("offer"),
            "usage": answered.usage,
            "receipt": extra.get("receipt"),
            "ttft_ms": round(answered.first_token_ms, 1),
            "providers_seen": len({offer.provider for offer in offers}),
            "trust": extra.get("trust"),
            "money": settled,
        }
    )
    console.progress(
        f"{brief_peer(str(extra.get('provider')))} · {answered.usage.get('completion_tokens')} tokens · "
        f"{answered.first_token_ms:.0f} ms to the first token · receipt "
        f"{'verified' if receipt.get('verified') else 'NOT verified'}"
    )


def _say_what_to_try(
    console: Console,
    base_url: str,
    key: Secret,
    bootstrap: str,
    model: str,
    offers: tuple[OfferView, ...],
    running: list[Child],
    trust: TrustPolicy,
    money: DemoMoney | None,
    *,
    home: Path,
) -> None:
    secret = key.reveal().decode()
    cheapest = offers[0]
    victim = next((child for child in running if child.ready["peer"] == cheapest.provider), running[0])
    console.line(f"\nbase URL   {base_url}\nAPI key    {secret}\nbootstrap  {bootstrap}\n")
    console.line("1. Ask with curl:\n")
    console.line(f"   curl {base_url}/chat/completions -H 'Authorization: Bearer {secret}' \\")
    console.line("        -H 'Content-Type: application/json' \\")
    console.line(
        f'        -d \'{{"model": "{model}", "temperature": 0, '
        '"messages": [{"role": "user", "content": "What is Cocoon?"}]}\'\n'
    )
    console.line("2. Ask with the OpenAI SDK:\n")
    console.line(f'   from openai import OpenAI; client = OpenAI(base_url="{base_url}", api_key="{secret}")')
    console.line(
        f'   print(client.chat.completions.create(model="{model}", temperature=0, '
        'messages=[{"role": "user", "content": "What is Cocoon?"}]))\n'
    )
    console.line(
        f"3. Kill the cheapest provider ({format_ton(cheapest.prices.output_nano)} TON out), also while it answers:"
    )
    console.line("   another one goes on.\n")
    console.line(f"   kill -9 {victim.pid}\n")
    console.line("4. See who served you and why, and what runs:\n")
    console.line(f"   cocoon why last --home {home}")
    console.line(f"   cocoon top --home {home}\n")
    own_home = "" if money is None else f" --home {money.chat.home.path}"
    console.line(f"Or talk: cocoon chat --trust {trust.level.value} --bootstrap {bootstrap}{own_home}\n")
    if money is not None:
        console.line("5. Look at the money (of the devnet: its coins are worth nothing):\n")
        console.line(f"   export COCOON_HOME={money.chat.home.path}   # programs of your own pay from this account\n")
        for command in money.commands():
            console.line(f"   {command}")
        console.line("")
    console.notice(warning_of(trust))
    console.say("Ctrl-C ends the demo and leaves nothing behind.")


async def _report_end(child: Child, console: Console) -> None:
    code = await child.process.wait()
    console.say(f"{child.name} ({brief_peer(child.ready['peer'])}) has ended, exit code {code}")
    console.data({"event": "provider_ended", "name": child.name, "peer": child.ready["peer"], "exit_code": code})
    await trio.sleep_forever()  # the demo goes on with the others


def _prices(number: int) -> tuple[str, str]:
    if number < len(PRICES_TON):
        return PRICES_TON[number]
    return f"0.{12 + number}", f"0.{48 + 2 * number}"


@contextmanager
def demo_directory(home: Home | None) -> Iterator[Path]:
    """The demo's directory, locked while it is in use. A home that was asked for is kept."""
    if home is not None:
        yield home.create().path
        return
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with (folder / LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.getuid():
                continue
            with (folder / LOCK_FILE).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while that demo runs
                shutil.rmtree(folder, ignore_errors=True)
