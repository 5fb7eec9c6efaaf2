"""Under attack a node lives, its memory stays bounded, and honest peers hardly notice.

The victim runs in a process of its own, between two honest peers that gossip through it and one that talks to it. The
short form goes through all attacks once, side by side in small groups. The long form (`-m long`) goes on for half an
hour with other seeds, resumable (`long_form.py`).
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

import p2p
from p2p.testing.contract.tools import accept_all, key_of, settings
from tests.fuzz.hostile_attacks import ATTACKS, Enemy
from tests.fuzz.hostile_victim import ECHO, FRAME_MAX, TOPIC
from tests.fuzz.long_form import LongForm

ROOT = Path(__file__).parents[2]
ATTACK_S = 6.0
MESSAGES_PER_S = 10
TAIL_S = 5.0  # for what is still on its way when an attack ends
DELIVERED_MIN = 0.99
GROWTH_BYTES_MAX = 64 << 20  # what an attack, or all of them for half an hour, may leave behind in the victim


@dataclass(slots=True)
class Victim:
    process: trio.Process
    peer: str = ""
    addresses: list[str] = field(default_factory=list)
    rest: bytes = b""

    async def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self.rest:
            data = await self.process.stdout.receive_some(65536)
            assert data, "the victim is dead"
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        return found

    async def numbers(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"numbers\n")
        with trio.fail_after(20):
            return await self.line()


@asynccontextmanager
async def open_victim() -> AsyncIterator[Victim]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.fuzz.hostile_victim"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    victim = Victim(process)
    try:
        with trio.fail_after(30):
            ready = await victim.line()
        victim.peer, victim.addresses = ready["ready"], ready["addresses"]
        yield victim
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.aclose()
            await process.stdout.aclose()


@dataclass(slots=True)
class Honest:
    """Gossip from one to the other through the victim, and an echo with the victim, all the time."""

    speaker: p2p.Node
    listener: p2p.Node
    victim: Victim
    sent: set[bytes] = field(default_factory=set)
    heard: set[bytes] = field(default_factory=set)
    echoes: int = 0
    echo_failures: int = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for task in (self._speak, self._listen, self._talk):
                nursery.start_soon(task)

    async def _speak(self) -> None:
        await self.speaker.subscribe(TOPIC, accept_all)
        number = 0
        while True:
            data = b"honest %d" % number
            await self.speaker.publish(TOPIC, data)
            if number >= 2 * MESSAGES_PER_S:  # the mesh forms
                self.sent.add(data)
            number += 1
            await trio.sleep(1 / MESSAGES_PER_S)

    async def _listen(self) -> None:
        async for message in await self.listener.subscribe(TOPIC, accept_all):
            self.heard.add(message.data)

    async def _talk(self) -> None:
        while True:
            try:
                with trio.fail_after(5):
                    async with await self.speaker.open_stream(
                        self.victim.peer, ECHO, addresses=self.victim.addresses, frame_bytes_max=FRAME_MAX
                    ) as stream:
                        await stream.send(b"hello")
                        assert await stream.receive() == b"hello"
                        self.echoes += 1
            except (p2p.P2PError, trio.TooSlowError):
                self.echo_failures += 1
            await trio.sleep(0.1)


@asynccontextmanager
async def honest_peers(victim: Victim) -> AsyncIterator[Honest]:
    """The two know the victim, and not each other, so all gossip goes through it."""
    known = settings(bootstrap_addresses=tuple(victim.addresses))
    apart = p2p.NodeSettings(listen=(), allow_private_addresses=True, bootstrap=known.bootstrap)
    async with p2p.open_node(apart, key=key_of("speaker")) as speaker, p2p.open_node(apart, key=key_of("ear")) as ear:
        for node in (speaker, ear):
            await node.wait_connected(timeout_s=10)
        async with trio.open_nursery() as nursery:
            honest = Honest(speaker, ear, victim)
            nursery.start_soon(honest.run)
            with trio.fail_after(20):
                while len(honest.sent) < MESSAGES_PER_S or not honest.heard:
                    await trio.sleep(0.1)
            yield honest
            nursery.cancel_scope.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Suffered:
    messages: int
    lost: int
    echoes: int
    echoes_failed: int
    held_bytes: int
    grown_mib: int
    resident_mib: int


async def suffer(
    victim: Victim, honest: Honest, attacks: Sequence[Callable[[Enemy], Awaitable[None]]], seed: int, duration_s: float
) -> Suffered:
    """The attacks at once for a while. Asserts what must hold; prints and returns figures."""
    names = ", ".join(attack.__name__ for attack in attacks)
    before = await victim.numbers()
    honest.sent.clear()
    honest.echoes = honest.echo_failures = 0
    enemies = [Enemy(victim.addresses[0], random.Random(f"{seed}/{attack.__name__}")) for attack in attacks]
    with trio.move_on_after(duration_s):
        async with trio.open_nursery() as nursery:
            for attack, enemy in zip(attacks, enemies, strict=True):
                nursery.start_soon(attack, enemy)
    sent = set(honest.sent)
    with trio.move_on_after(TAIL_S):
        while not sent <= honest.heard:
            await trio.sleep(0.1)
    after = await victim.numbers()
    delivered = len(sent & honest.heard) / len(sent)
    grown = after["held_bytes"] - before["held_bytes"]
    line = (
        f"{names}: acts {[enemy.acts for enemy in enemies]}, delivered {delivered:.1%} of {len(sent)}, "
        f"echoes {honest.echoes} ({honest.echo_failures} failed), memory {grown / (1 << 20):+.0f} MiB "
        f"to {after['held_bytes'] >> 20} MiB, resident {after['resident_bytes'] >> 20} MiB"
    )
    assert all(enemy.acts for enemy in enemies), f"an attack did not happen: {line}"
    assert delivered >= DELIVERED_MIN, line
    assert grown < GROWTH_BYTES_MAX, line
    assert honest.echoes >= 5, line
    assert honest.echo_failures <= honest.echoes // 10, line
    assert {honest.speaker.peer, honest.listener.peer} <= set(after["peers"]), line
    print(line)
    return Suffered(
        messages=len(sent),
        lost=len(sent - honest.heard),
        echoes=honest.echoes,
        echoes_failed=honest.echo_failures,
        held_bytes=after["held_bytes"],
        grown_mib=grown >> 20,
        resident_mib=after["resident_bytes"] >> 20,
    )


def in_groups(size: int) -> list[list[Callable[[Enemy], Awaitable[None]]]]:
    return [ATTACKS[first : first + size] for first in range(0, len(ATTACKS), size)]


@pytest.mark.slow
def test_every_attack_once_leaves_the_node_serving_its_honest_peers() -> None:
    async def main() -> None:
        with trio.fail_after(150):
            async with open_victim() as victim, honest_peers(victim) as honest:
                for group in in_groups(4):
                    await suffer(victim, honest, group, seed=1, duration_s=ATTACK_S)

    trio.run(main)


@pytest.mark.long
def test_half_an_hour_of_attacks() -> None:
    form = LongForm("hostile libp2p peer")

    async def main() -> None:
        async with open_victim() as victim, honest_peers(victim) as honest:
            fresh = (await victim.numbers())["held_bytes"]
            while form.is_due:
                with form.round() as number:
                    chosen = random.Random(number).sample(ATTACKS, 3)
                    it = await suffer(victim, honest, chosen, seed=number, duration_s=10.0)
                    assert it.held_bytes - fresh < GROWTH_BYTES_MAX, "a little of every attack stays"
                    form.note(held_mib=it.held_bytes >> 20, grown_mib=it.grown_mib, resident_mib=it.resident_mib)
                    form.count(messages=it.messages, lost=it.lost, echoes=it.echoes, echoes_failed=it.echoes_failed)

    trio.run(main)
    print(form)
