"""Rules of trust that need a whole market: K4, S8, S9, H2, and that nothing but ciphertext leaves the client."""

from __future__ import annotations

import logging

import msgspec
import pytest
import trio
from trio.testing import MockClock

from cocoon.adapters.network import PeerStream
from cocoon.attest import statement as statements
from cocoon.attest.policy import TrustPolicy
from cocoon.errors import AttestationError, BindingMismatch, CocoonError, TrustRefused
from cocoon.node import evidence as node_evidence
from cocoon.types import Network, TrustLevel, ton
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import ask, open_market

SPEND = ton("1")
TEXT = "the quick brown fox jumps over the lazy dog"


def policy(level):
    return TrustPolicy(level=level, network=Network.DEVNET)


def run(scenario):
    trio.run(scenario, clock=MockClock(autojump_threshold=0))


async def chat(client, body):
    async with client.generate("chat.completions", body, spend_max_nano=SPEND) as reply:
        return "".join([delta.text async for delta in reply]), reply


def test_failover_never_below_policy():
    """S9: a client that asks for an enclave gets no answer from open providers, however many there are."""

    async def scenario():
        async with open_market() as market:
            providers = [await market.add_provider(name) for name in ("a", "b", "c")]
            client = await market.add_client(trust_minimum=TrustLevel.CPU_CONFIDENTIAL, offers_wait_s=2.0)
            with pytest.raises(TrustRefused):
                await chat(client, ask("my secret"))
            assert all(not provider.engine.seen for provider in providers)

    run(scenario)


def test_lax_cache_strict_request_refused():
    """S8: a session that was opened under a lax policy does not serve a strict request; facts are judged afresh."""

    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("a")
            client = await market.add_client()
            await chat(client, ask())
            [listed] = client._listed(provider.role.model.digest)
            _, level = await client.pool.trusted_link(listed.offer, policy=policy(TrustLevel.OPEN))
            assert level is TrustLevel.OPEN
            for level in (TrustLevel.SIMULATED, TrustLevel.CPU_CONFIDENTIAL, TrustLevel.CONFIDENTIAL):
                with pytest.raises(TrustRefused):
                    await client.pool.trusted_link(listed.offer, policy=policy(level))

    run(scenario)


def _lying(monkeypatch, **changes):
    """Every provider's statement has these fields changed, and is properly signed."""
    honest = node_evidence.encode_statement

    def lie(statement):
        return honest(msgspec.structs.replace(statement, **changes))

    monkeypatch.setattr(node_evidence, "encode_statement", lie)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nonce", bytes(32)),
        ("peer", bytes(31) + b"\1"),
        ("operator", bytes(31) + b"\2"),
        ("payout", bytes(31) + b"\3"),
        ("network", int(Network.MAINNET)),
        ("models", [bytes(31) + b"\4"]),
        ("version", 2),
    ],
)
def test_a_statement_that_disagrees_with_its_offer_is_refused_and_nothing_is_sent(monkeypatch, field, value):
    """K4: the mismatch is the operator's fault, and the prompt has not left."""

    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("liar")
            client = await market.add_client(attempts_max=1)
            with pytest.raises(BindingMismatch) as caught:
                await chat(client, ask("my secret"))
            assert "operator" in caught.value.diagnostics()
            assert not provider.engine.seen

    _lying(monkeypatch, **{field: value})
    run(scenario)


@pytest.mark.parametrize("mode", [statements.MODE_SIMULATED, statements.MODE_TDX, statements.MODE_TDX_GPU, 77])
def test_a_statement_that_claims_hardware_without_evidence_is_refused(monkeypatch, mode):
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("liar")
            client = await market.add_client(attempts_max=1)
            with pytest.raises(AttestationError):
                await chat(client, ask("my secret"))
            assert not provider.engine.seen

    _lying(monkeypatch, mode=mode)
    run(scenario)


def test_a_statement_signed_by_another_operator_or_peer_is_refused(monkeypatch):
    """A relay or a front that swaps the sealing key cannot sign for P or O."""

    async def scenario(swap):
        async with open_market() as market:
            provider = await market.add_provider("front")
            client = await market.add_client(attempts_max=1)
            maker = provider.role._serving.evidence
            honest = maker.evidence

            async def front(*, nonce, sealing_key):
                signed = await honest(nonce=nonce, sealing_key=sealing_key)
                return swap(signed, await honest(nonce=nonce, sealing_key=bytes(31) + b"\7"))

            monkeypatch.setattr(maker, "evidence", front)
            with pytest.raises(CocoonError) as caught:
                await chat(client, ask("my secret"))
            assert "signature" in str(caught.value) or "handshake" in str(caught.value)
            assert not provider.engine.seen

    def with_other_statement(signed, other):
        return node_evidence.SignedStatement(
            statement=other.statement,
            operator_signature=signed.operator_signature,
            peer_signature=signed.peer_signature,
            hardware=b"",
        )

    def with_swapped_signatures(signed, other):
        return node_evidence.SignedStatement(
            statement=signed.statement,
            operator_signature=signed.peer_signature,
            peer_signature=signed.operator_signature,
            hardware=b"",
        )

    for swap in (with_other_statement, with_swapped_signatures):
        run(lambda swap=swap: scenario(swap))


def test_neither_frames_nor_logs_nor_reprs_contain_prompt_or_answer(monkeypatch, caplog):
    """What a wire-tapper behind Noise would see, and what operators keep in their logs."""
    frames: list[bytes] = []
    send = PeerStream.send

    async def tapped(self, frame):
        frames.append(bytes(frame))
        await send(self, frame)

    monkeypatch.setattr(PeerStream, "send", tapped)
    seen: list[str] = []

    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("a", ScriptedEngine("xyzzyanswer " * 20))
            client = await market.add_client()
            async with client.generate("chat.completions", ask("plughquestion"), spend_max_nano=SPEND) as reply:
                async for delta in reply:
                    seen.append(delta.text)
                    seen_repr = repr((delta, reply, client, provider.engine.seen))
                    assert "plugh" not in seen_repr
                    assert "xyzzy" not in seen_repr

    with caplog.at_level(logging.DEBUG):
        run(scenario)
    assert "xyzzyanswer" in "".join(seen)
    assert len(frames) > 10
    wire = b"".join(frames)
    assert b"plugh" not in wire
    assert b"xyzzy" not in wire
    assert "plugh" not in caplog.text
    assert "xyzzy" not in caplog.text


def test_every_sealed_request_has_a_padded_length_that_hides_its_own(monkeypatch):
    """S5: prompts of 5 and of 500 letters look alike on the wire."""
    sizes: list[int] = []
    send = PeerStream.send

    async def tapped(self, frame):
        sizes.append(len(frame))
        await send(self, frame)

    async def scenario():
        async with open_market() as market:
            await market.add_provider("a")
            client = await market.add_client()
            await chat(client, ask())
            lengths = []
            for words in ("short", "long " * 100):
                sizes.clear()
                monkeypatch.setattr(PeerStream, "send", tapped)
                await chat(client, ask(words))
                monkeypatch.setattr(PeerStream, "send", send)
                lengths.append(max(sizes))
            assert lengths[0] == lengths[1]

    run(scenario)
