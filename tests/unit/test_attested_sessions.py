"""Sessions with evidence, over the memory network: software machines, the real verifier, the real policy."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import trio
from trio.testing import MockClock

from cocoon.adapters.store_memory import MemoryStore
from cocoon.adapters.tee.software import SoftwareEnclave, software_anchors, software_release
from cocoon.attest.evidence import decode_saved, encode_saved
from cocoon.attest.images import ImagePolicy
from cocoon.attest.parts import check_saved
from cocoon.attest.policy import TrustPolicy
from cocoon.errors import (
    AttestationError,
    BindingMismatch,
    NoProvider,
    StaleEvidence,
    TrustRefused,
    UnknownMeasurement,
)
from cocoon.types import SECOND_NS, Network, TrustLevel, ton
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import MODEL, SeededEntropy, ask, open_market

SPEND = ton("1")
TEXT = "the quick brown fox jumps over the lazy dog"
ANCHORS = software_anchors(Network.DEVNET)
POLICY = TrustPolicy(
    level=TrustLevel.SIMULATED, network=Network.DEVNET, images=ImagePolicy(releases=(software_release(),))
)


def run(scenario):
    trio.run(scenario, clock=MockClock(autojump_threshold=0))


def machine(market, **changes) -> SoftwareEnclave:
    return SoftwareEnclave(**{"models": [MODEL.digest], "clock_s": lambda: market.clock.now() // SECOND_NS, **changes})


async def add_client(market, **changes):
    return await market.add_client(**{"policy": POLICY, "software_anchors": ANCHORS, **changes})


async def chat(client, body=None):
    async with client.generate("chat.completions", body or ask("my secret"), spend_max_nano=SPEND) as reply:
        return "".join([delta.text async for delta in reply]), reply


@pytest.mark.parametrize("with_gpu", [True, False])
def test_a_prompt_leaves_only_after_the_whole_evidence_has_been_verified(with_gpu):
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=machine(market, with_gpu=with_gpu))
            text, reply = await chat(await add_client(market))
            assert text == TEXT
            assert reply.trust is TrustLevel.SIMULATED
            assert len(provider.engine.seen) == 1

    run(scenario)


def test_open_providers_are_passed_over_for_one_with_evidence():
    async def scenario():
        async with open_market() as market:
            cheap = await market.add_provider("open")
            dear = await market.add_provider("enclave", enclave=machine(market), output_nano=ton("5"))
            _, reply = await chat(await add_client(market))
            assert reply.provider == dear.network.peer
            assert not cheap.engine.seen

    run(scenario)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"image": hashlib.sha256(b"another image").digest()}, UnknownMeasurement),
        ({"models": [hashlib.sha256(b"a smaller model").digest()]}, AttestationError),
    ],
)
def test_a_machine_that_runs_something_else_never_sees_the_prompt(changes, error):
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("liar", enclave=machine(market, **changes))
            with pytest.raises(error):
                await chat(await add_client(market, attempts_max=1))
            assert not provider.engine.seen

    run(scenario)


def test_simulated_evidence_is_refused_by_a_client_without_its_anchors():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=machine(market))
            with pytest.raises(AttestationError):
                await chat(await add_client(market, software_anchors=None, attempts_max=1))
            assert not provider.engine.seen

    run(scenario)


def test_simulated_evidence_does_not_reach_a_level_that_asks_for_hardware():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=machine(market))
            for level in (TrustLevel.CPU_CONFIDENTIAL, TrustLevel.CONFIDENTIAL):
                strict = dataclasses.replace(POLICY, level=level)
                with pytest.raises(TrustRefused):
                    await chat(await add_client(market, name=level.value, policy=strict, attempts_max=1))
            assert not provider.engine.seen

    run(scenario)


def test_an_empty_list_of_images_accepts_nothing():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=machine(market))
            empty = dataclasses.replace(POLICY, images=ImagePolicy())
            with pytest.raises(UnknownMeasurement):
                await chat(await add_client(market, policy=empty, attempts_max=1))
            assert not provider.engine.seen

    run(scenario)


class Swapping(SoftwareEnclave):
    """An enclave whose evidence changes after the first session was verified."""

    swap = None

    async def bundle(self, *, report_data, gpus):
        honest = await super().bundle(report_data=report_data, gpus=gpus)
        return self.swap(honest) if self.swap is not None else honest


@pytest.mark.parametrize("part", ["quote", "gpu"])
def test_evidence_swapped_after_the_first_verification_is_caught_before_the_next_prompt(part):
    """The session says Hello again after ten minutes; whatever changed meanwhile is found then."""

    async def scenario():
        async with open_market() as market:
            enclave = Swapping(models=[MODEL.digest], clock_s=lambda: market.clock.now() // SECOND_NS)
            provider = await market.add_provider("turncoat", enclave=enclave)
            client = await add_client(market, attempts_max=1)
            await chat(client)
            other = machine(market, name="another-machine")

            def swap(honest):
                if part == "quote":
                    return dataclasses.replace(honest, quote=other.quote(other.fields(bytes(64))))
                gpu = dataclasses.replace(honest.gpus[0], report=honest.gpus[0].report[:-1] + b"\0")
                return dataclasses.replace(honest, gpus=(gpu,))

            enclave.swap = swap
            await trio.sleep(620)
            with pytest.raises((AttestationError, BindingMismatch)):
                await chat(client)
            assert len(provider.engine.seen) == 1

    run(scenario)


def test_a_session_stays_trusted_over_an_hour_of_renewals():
    async def scenario():
        async with open_market() as market:
            await market.add_provider("enclave", ScriptedEngine(), enclave=machine(market))
            client = await add_client(market)
            for _ in range(13):
                text, reply = await chat(client)
                assert text == TEXT
                assert reply.trust is TrustLevel.SIMULATED
                await trio.sleep(299)

    run(scenario)


def test_static_parts_of_the_evidence_cross_the_wire_once():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=machine(market))
            fetched = []
            client = await add_client(market)
            fetch = client._judge._fetcher._read

            async def counted(source, digest, into, bytes_max):
                fetched.append(digest)
                await fetch(source, digest, into, bytes_max)

            client._judge._fetcher._read = counted
            await chat(client)
            first = len(fetched)
            assert first >= 5  # collateral, two logs, RIMs, revocation lists
            client.pool._links[provider.network.peer].end()
            await trio.sleep(1)
            await chat(client)
            assert len(fetched) == first

    run(scenario)


def test_older_collateral_than_ever_seen_is_refused_also_after_a_restart():
    """The ratchet is persisted: a client that restarts does not accept what it had left behind."""

    async def scenario():
        async with open_market() as market:
            store = MemoryStore(clock=market.clock, entropy=SeededEntropy("store"))
            await market.add_provider("fresh", enclave=machine(market))
            await chat(await add_client(market, store=store))
            assert await store.ratchet()
            stale = machine(market, clock_s=lambda: market.clock.now() // SECOND_NS - 5 * 24 * 3600)
            async with open_market() as elsewhere:
                await elsewhere.add_provider("stale", enclave=stale)
                with pytest.raises(StaleEvidence):
                    await chat(await add_client(elsewhere, store=store, attempts_max=1))

    run(scenario)


def test_evidence_fetched_live_can_be_checked_offline_and_nothing_was_sealed_to_it():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=machine(market))
            client = await add_client(market)
            saved = await client.examine(provider.network.peer[-8:], wait_s=5)
            again = decode_saved(encode_saved(saved))
            verdict = check_saved(
                encode_saved(again),
                now=market.clock.now(),
                policy_for=lambda network, level: POLICY,
                software=software_anchors,
            )
            assert verdict.accepted, verdict.as_json()
            assert not provider.engine.seen
            assert provider.role.record.running == 0

    run(scenario)


def test_asking_for_the_evidence_of_an_unknown_provider_says_so():
    async def scenario():
        async with open_market() as market:
            client = await add_client(market)
            with pytest.raises(NoProvider, match="no offer"):
                await client.examine("12D3KooWnobody", wait_s=2)

    run(scenario)
