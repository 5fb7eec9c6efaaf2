"""What a provider with an enclave does when many ask at once, and what a client does when rules or machines change."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import trio
from trio.testing import MockClock

from cocoon.adapters.tee.software import SOFTWARE_IMAGE, SoftwareEnclave, software_anchors, software_release
from cocoon.api.opening import follow_policy
from cocoon.attest.images import ImagePolicy
from cocoon.attest.judging import AcceptNothing
from cocoon.attest.policy import PpidPolicy, TrustPolicy
from cocoon.attest.verifier import Verifier
from cocoon.blobs import BLOB_PROTOCOL, BlobFetcher, BlobShelf
from cocoon.client.link import HANDSHAKE_TIMEOUT_S
from cocoon.errors import (
    AttestationError,
    BindingMismatch,
    CocoonError,
    ConfigError,
    EvidenceMalformed,
    LocalProtocolError,
    Refused,
    StaleEvidence,
    TrustRefused,
    Unavailable,
)
from cocoon.node.evidence import EvidenceMaker
from cocoon.ports import PeerAddresses
from cocoon.serve.events import RequestRefused
from cocoon.serve.reasons import Reason
from cocoon.types import SECOND_NS, Network, Secret, TrustLevel, ton
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import MODEL, ask, open_market

SPEND = ton("1")
ANCHORS = software_anchors(Network.DEVNET)
POLICY = TrustPolicy(
    level=TrustLevel.SIMULATED, network=Network.DEVNET, images=ImagePolicy(releases=(software_release(),))
)


def run(scenario):
    trio.run(scenario, clock=MockClock(autojump_threshold=0))


class SlowEnclave(SoftwareEnclave):
    """A quote takes 50 ms, as on a real machine, and can be made to fail or to change."""

    quotes = 0
    fails = False
    swap = None

    async def bundle(self, *, report_data, gpus):
        self.quotes += 1
        await trio.sleep(0.05)
        if self.fails:
            raise Unavailable("the quote device failed")
        honest = await super().bundle(report_data=report_data, gpus=gpus)
        return honest if self.swap is None else self.swap(honest)


def slow_machine(market, **changes) -> SlowEnclave:
    return SlowEnclave(**{"models": [MODEL.digest], "clock_s": lambda: market.clock.now() // SECOND_NS, **changes})


async def add_client(market, **changes):
    return await market.add_client(**{"policy": POLICY, "software_anchors": ANCHORS, **changes})


async def chat(client, body=None):
    async with client.generate("chat.completions", body or ask("my secret"), spend_max_nano=SPEND) as reply:
        return "".join([delta.text async for delta in reply]), reply


def maker_of(provider) -> EvidenceMaker:
    return provider.role._serving.evidence


def nonce(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


# --- many at once -----------------------------------------------------------------------------------------


def test_clients_that_come_together_share_a_quote_and_each_verifies_its_own_nonce():
    async def scenario():
        async with open_market() as market:
            enclave = slow_machine(market)
            provider = await market.add_provider("enclave", ScriptedEngine(), enclave=enclave)
            clients = [await add_client(market, name=f"client-{number}") for number in range(12)]
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(chat, client)
            assert len(provider.engine.seen) == 12
            assert enclave.quotes <= 3
            facts = [client.pool._links[provider.network.peer].facts for client in clients]
            assert len({one.digest for one in facts}) == enclave.quotes  # one statement per quote

    run(scenario)


def test_three_hundred_hellos_at_once_cost_two_quotes_at_most():
    async def scenario():
        async with open_market() as market:
            enclave = slow_machine(market)
            maker = maker_of(await market.add_provider("enclave", enclave=enclave))
            answers = []

            async def hello(number):
                answers.append(await maker.evidence(nonce=nonce(number), sealing_key=bytes(32)))

            async with trio.open_nursery() as nursery:
                for number in range(300):
                    nursery.start_soon(hello, number)
            assert len(answers) == 300
            assert enclave.quotes <= 2  # whoever came first, and everyone who waited meanwhile
            assert len({answer.hardware for answer in answers}) == 300
            assert not maker._asked

    run(scenario)


def test_hellos_for_different_sealing_keys_never_share_a_statement():
    async def scenario():
        async with open_market() as market:
            maker = maker_of(await market.add_provider("enclave", enclave=slow_machine(market)))
            statements = {}

            async def hello(number):
                key = bytes([number % 2]) * 32
                answer = await maker.evidence(nonce=nonce(number), sealing_key=key)
                statements.setdefault(answer.statement, set()).add(key)

            async with trio.open_nursery() as nursery:
                for number in range(9):
                    nursery.start_soon(hello, number)
            assert all(len(keys) == 1 for keys in statements.values())

    run(scenario)


def test_a_client_that_leaves_while_working_for_others_does_not_take_their_answer_with_it():
    async def scenario():
        async with open_market() as market:
            maker = maker_of(await market.add_provider("enclave", enclave=slow_machine(market)))
            answers = []

            async def hello(number, scope):
                with scope:
                    answers.append(await maker.evidence(nonce=nonce(number), sealing_key=bytes(32)))

            first = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hello, 0, first)
                await trio.sleep(0.01)
                for number in range(1, 5):
                    nursery.start_soon(hello, number, trio.CancelScope())
                await trio.sleep(0.01)
                first.cancel()
            assert len(answers) == 4
            assert not maker._asked

    run(scenario)


def test_a_device_that_fails_fails_all_who_waited_at_once():
    async def scenario():
        async with open_market() as market:
            enclave = slow_machine(market)
            maker = maker_of(await market.add_provider("enclave", enclave=enclave))
            enclave.fails = True
            failed = []

            async def hello(number):
                try:
                    await maker.evidence(nonce=nonce(number), sealing_key=bytes(32))
                except Unavailable as error:
                    failed.append(str(error))

            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(hello, number)
            assert failed == ["the quote device failed"] * 100
            assert enclave.quotes <= 2
            enclave.fails = False
            assert (await maker.evidence(nonce=nonce(0), sealing_key=bytes(32))).hardware

    run(scenario)


# --- something changes after the first verification -------------------------------------------------------


def _swap_key(provider, enclave):
    keys = provider.role._keys
    keys._keys[:] = [dataclasses.replace(keys._keys[0], private=Secret(bytes(31) + b"\7"), public=bytes(31) + b"\7")]
    honest = enclave.swap

    def other_quote(bundle):  # the new key is not one that the enclave vouches for
        return dataclasses.replace(bundle, quote=enclave.quote(enclave.fields(bytes(64))))

    enclave.swap = honest or other_quote


def _swap_image(provider, enclave):
    enclave.image = hashlib.sha256(b"another image").digest()


def _swap_model(provider, enclave):
    enclave.models = [hashlib.sha256(b"a smaller model").digest()]


def _swap_gpu(provider, enclave):
    other = enclave.nvidia.device("another card")

    def foreign(bundle):
        report = enclave.nvidia.report(other, bytes(32))
        gpu = dataclasses.replace(bundle.gpus[0], report=report, chain=other.chain)
        return dataclasses.replace(bundle, gpus=(gpu,))

    enclave.swap = foreign


@pytest.mark.parametrize("swap", [_swap_key, _swap_image, _swap_model, _swap_gpu])
@pytest.mark.parametrize("reconnects", [True, False])
def test_what_is_swapped_after_verification_is_caught_before_the_next_prompt_leaves(swap, reconnects):
    """On a new connection at once; on the same one when the facts run out, and no prompt is sealed to a new key."""

    async def scenario():
        async with open_market() as market:
            enclave = slow_machine(market)
            provider = await market.add_provider("turncoat", enclave=enclave)
            client = await add_client(market, attempts_max=1)
            await chat(client)
            swap(provider, enclave)
            if reconnects:
                client.pool._links[provider.network.peer].end()
                await trio.sleep(1)
            else:
                await trio.sleep(620)
            with pytest.raises(AttestationError):
                await chat(client)
            assert len(provider.engine.seen) == 1

    run(scenario)


def test_a_key_that_vanishes_at_once_gets_no_prompt_that_anybody_could_open():
    """Before the ten minutes are over the prompt is sealed to the verified key; who lost it must prove the next."""

    async def scenario():
        async with open_market() as market:
            enclave = slow_machine(market)
            provider = await market.add_provider("turncoat", enclave=enclave)
            client = await add_client(market, attempts_max=1)
            await chat(client)
            _swap_key(provider, enclave)
            with pytest.raises((AttestationError, Refused)):
                await chat(client)
            assert len(provider.engine.seen) == 1

    run(scenario)


def test_a_refusal_for_a_key_of_an_earlier_session_does_not_undo_the_trust_in_the_present_one():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=slow_machine(market))
            client = await add_client(market)
            await chat(client)
            link = client.pool._links[provider.network.peer]
            late = RequestRefused(id=99, reason=Reason.STALE_KEY.value, retry_after_ms=0, error=Refused("stale_key"))
            link._on_event(late)
            before = trio.current_time()
            await chat(client)
            assert trio.current_time() - before < 5

    run(scenario)


def test_evidence_that_runs_out_before_the_next_hello_is_renewed_by_a_new_session():
    """Collateral may end sooner than the ten minutes; the session that rests on it takes no more prompts."""

    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", ScriptedEngine(), enclave=slow_machine(market))
            client = await add_client(market)
            await chat(client)
            link = client.pool._links[provider.network.peer]
            link.facts = dataclasses.replace(link.facts, expires_ns=market.clock.now() + SECOND_NS)
            await trio.sleep(2)
            [listed] = client._listed(MODEL.digest)
            with pytest.raises(StaleEvidence, match="has run out"):
                await client.pool.trusted_link(listed.offer, policy=POLICY)
            fresh, _ = await client.pool.trusted_link(listed.offer, policy=POLICY)
            assert fresh is not link

    run(scenario)


# --- rules of the session ---------------------------------------------------------------------------------


def _other_offer(offer, **changes):
    return dataclasses.replace(offer, offer=_replaced(offer.offer, **changes))


def _replaced(struct, **changes):
    import msgspec

    return msgspec.structs.replace(struct, **changes)


@pytest.mark.parametrize(
    "changes",
    [{"image": bytes(31) + b"\1"}, {"operator": bytes(31) + b"\1"}, {"peer": bytes(31) + b"\1"}, {"model": bytes(32)}],
)
def test_a_session_serves_no_offer_that_its_statement_does_not_stand_behind(changes):
    """K4: the session was opened for one offer; every further one is held against the same statement."""

    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=slow_machine(market))
            client = await add_client(market)
            await chat(client)
            facts = client.pool._links[provider.network.peer].facts
            [listed] = client._listed(MODEL.digest)
            assert client._judge.judge(facts, listed.offer, POLICY) is TrustLevel.SIMULATED
            with pytest.raises(BindingMismatch) as caught:
                client._judge.judge(facts, _other_offer(listed.offer, **changes), POLICY)
            assert "operator" in caught.value.diagnostics()

    run(scenario)


def test_parts_that_come_too_slowly_end_the_session_and_not_the_client():
    async def scenario():
        async with open_market() as market:
            slow = await market.add_provider("slow", enclave=slow_machine(market))
            other = await market.add_provider("other", enclave=slow_machine(market), output_nano=ton("5"))
            client = await add_client(market)
            fetch = client._judge._fetcher.fetch

            async def drip(source, digest, *, bytes_max):
                if source.peer == slow.network.peer:
                    await trio.sleep(29)  # each part stays below its own limit
                return await fetch(source, digest, bytes_max=bytes_max)

            client._judge._fetcher.fetch = drip
            await client.look_up(MODEL.digest)
            await trio.sleep(5)
            [listed] = [each for each in client._listed(MODEL.digest) if each.offer.provider == slow.network.peer]
            began = trio.current_time()
            with pytest.raises(Unavailable, match="did not"):
                await client.pool.trusted_link(listed.offer, policy=POLICY)
            assert trio.current_time() - began < 2 * HANDSHAKE_TIMEOUT_S
            await trio.sleep(10)
            assert not client.pool._links[slow.network.peer].is_usable
            _, reply = await chat(client)
            assert reply.provider == other.network.peer
            assert not slow.engine.seen

    run(scenario)


def test_a_fault_in_a_parser_refuses_that_provider_and_the_client_lives_on(monkeypatch):
    verify = Verifier.verify

    async def scenario():
        async with open_market() as market:
            broken = await market.add_provider("broken", enclave=slow_machine(market))
            other = await market.add_provider("other", enclave=slow_machine(market), output_nano=ton("5"))

            def fault(self, evidence, expected, **rest):
                if expected.peer == broken.network.peer_key:
                    raise RecursionError("too deep")
                return verify(self, evidence, expected, **rest)

            monkeypatch.setattr(Verifier, "verify", fault)
            client = await add_client(market)
            _, reply = await chat(client)
            assert reply.provider == other.network.peer
            assert not broken.engine.seen
            await client.look_up(MODEL.digest)
            await trio.sleep(5)
            [listed] = [each for each in client._listed(MODEL.digest) if each.offer.provider == broken.network.peer]
            with pytest.raises(EvidenceMalformed, match="broke on this evidence"):
                await client.pool.trusted_link(listed.offer, policy=POLICY)
            await chat(client)

    run(scenario)


# --- a changed policy -------------------------------------------------------------------------------------


def test_a_changed_policy_closes_sessions_and_holds_from_the_next_prompt_on():
    """S8: a machine that is put on the deny list gets nothing more, although its facts would still hold."""

    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=slow_machine(market))
            client = await add_client(market, attempts_max=1)
            await chat(client)
            link = client.pool._links[provider.network.peer]
            denied = dataclasses.replace(POLICY, ppid=PpidPolicy(deny=frozenset((link.facts.quote.ppid,))))
            client.change_policy(denied)
            await trio.sleep(0.1)
            assert not link.is_usable
            with pytest.raises(TrustRefused, match="deny list"):
                await chat(client)
            assert len(provider.engine.seen) == 1
            client.change_policy(POLICY)
            await trio.sleep(60)  # for the breaker
            await chat(client)

    run(scenario)


def test_a_request_that_began_under_the_old_policy_is_held_to_the_new_one_as_well():
    """S9 freezes a request's policy; a list that got longer since then must not be escaped by a retry."""

    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=slow_machine(market))
            client = await add_client(market)
            await chat(client)
            [listed] = client._listed(MODEL.digest)
            frozen = client.policy
            facts = client.pool._links[provider.network.peer].facts
            denied = dataclasses.replace(POLICY, ppid=PpidPolicy(deny=frozenset((facts.quote.ppid,))))
            client.change_policy(denied)
            with pytest.raises(TrustRefused, match="deny list"):
                await client.pool.trusted_link(listed.offer, policy=frozen)
            with pytest.raises(TrustRefused, match="deny list"):
                await client.pool.trusted_link(listed.offer, policy=dataclasses.replace(frozen))

    run(scenario)


def test_a_policy_of_another_network_is_not_taken():
    async def scenario():
        async with open_market() as market:
            client = await add_client(market)
            with pytest.raises(LocalProtocolError):
                client.change_policy(TrustPolicy(level=TrustLevel.OPEN, network=Network.MAINNET))
            assert client.policy is POLICY

    run(scenario)


class Files:
    """Stands for policy files that somebody edits while a client runs."""

    def __init__(self) -> None:
        self.rules_now: TrustPolicy | CocoonError = POLICY

    def rules(self, network):
        if isinstance(self.rules_now, CocoonError):
            raise self.rules_now
        return self.rules_now


class Listening:
    """The part of a client that follows a policy."""

    def __init__(self) -> None:
        self.policy = POLICY
        self.changes = 0

    def change_policy(self, policy):
        self.policy = policy
        self.changes += 1


def test_edited_policy_files_are_obeyed_and_unreadable_ones_accept_nothing():
    async def scenario():
        files, role = Files(), Listening()

        async def settled():
            await trio.sleep(0.2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: follow_policy(role, files, every_s=0.01))
            await settled()
            assert role.changes == 0  # read again, and the same
            files.rules_now = dataclasses.replace(POLICY, ppid=PpidPolicy(allow=frozenset()))
            await settled()
            assert role.policy == files.rules_now
            assert role.changes == 1
            stricter, files.rules_now = files.rules_now, ConfigError("policy.toml is not TOML")
            await settled()
            assert role.changes == 2
            [nothing] = role.policy.extra
            assert isinstance(nothing, AcceptNothing)
            assert "not TOML" in nothing.explain()[0]
            files.rules_now = stricter
            await settled()
            assert role.policy == stricter
            nursery.cancel_scope.cancel()

    trio.run(scenario)


def test_rules_that_cannot_be_read_refuse_every_provider():
    async def scenario():
        async with open_market() as market:
            provider = await market.add_provider("enclave", enclave=slow_machine(market))
            client = await add_client(market, attempts_max=1)
            client.change_policy(POLICY.tightened(AcceptNothing(why="policy.toml is gone")))
            with pytest.raises(TrustRefused, match=r"policy\.toml is gone"):
                await chat(client)
            assert not provider.engine.seen

    run(scenario)


# --- parts ------------------------------------------------------------------------------------------------


def test_two_fetches_of_one_part_at_the_same_time_are_counted_once():
    async def scenario():
        async with open_market() as market:
            server, client = await market.network("server"), await market.network("client", listens=False)
            shelf, blob = BlobShelf(), SOFTWARE_IMAGE * 100
            shelf.put([blob])
            shelf.serve(server)
            fetcher = BlobFetcher(client)
            source = PeerAddresses(peer=server.peer, addresses=server.addresses())
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(
                        lambda: fetcher.fetch(source, hashlib.sha256(blob).digest(), bytes_max=len(blob))
                    )
            assert fetcher._kept_bytes == len(blob)
            assert BLOB_PROTOCOL == "/cocoon/blob/1"

    run(scenario)
