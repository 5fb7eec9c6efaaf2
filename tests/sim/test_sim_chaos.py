"""Chaos over the real machines: every law holds, for as long as there is time; and planted mutants break one each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cocoon.market.table import OfferTable
from cocoon.pay.budget import Attempt
from cocoon.pay.effects import Emit, Persist, VoucherAccepted
from cocoon.pay.ledger import Ledger
from cocoon.pay.payee import Payee
from cocoon.pay.payer import Payer
from cocoon.serve.client_session import ClientSession
from cocoon.serve.events import RequestCancelled
from cocoon.serve.provider_session import ProviderSession
from sim.chaos import Rates, Story, run_stories, tell
from sim.chaos.run import commit, is_slow, main, rates_for, report
from sim.levels.machines import run_level
from sim.out import NullSink
from sim.scenario import ChaosSpec, ClientAgent, GossipSpec, MarketSpec, NodeGroup, RunSpec, Scenario
from tests.conftest import HowFar

ROOT = Path(__file__).resolve().parents[2]
CI_SECONDS = float(os.environ.get("COCOON_CHAOS_S", "60"))
LONG_SECONDS = float(os.environ.get("COCOON_CHAOS_LONG_S", str(6 * 3_600)))
FIRST_SEED = int(os.environ.get("COCOON_CHAOS_SEED", "1"))
REACHED = ROOT / "build" / "chaos-reached.json"  # where the long form goes on
STORIES_LONG = 50_000


@pytest.mark.slow
def test_every_law_holds_whatever_strikes(how_far: HowFar) -> None:
    found = run_stories(first_seed=FIRST_SEED, seconds=CI_SECONDS)
    how_far(f"chaos, {found.words()}", found.stories, STORIES_LONG, "stories")
    assert not found.failures, "\n".join(report(told) for told in found.failures)
    assert found.stories >= 5
    assert found.done > 0.25 * found.requests  # some are of accounts that ran dry
    assert {"crash", "partition", "clock", "disk", "chain", "reorg", "loss"} <= set(found.faults)


@pytest.mark.long
def test_every_law_holds_for_hours() -> None:
    """Goes on where it was stopped."""
    first = json.loads(REACHED.read_text())["next_seed"] if REACHED.exists() else 100_000
    found = run_stories(first_seed=first, seconds=LONG_SECONDS, say=lambda text: print(text, flush=True))
    REACHED.parent.mkdir(exist_ok=True)
    REACHED.write_text(json.dumps({"next_seed": found.next_seed}))
    print(found.words())
    assert not found.failures


def test_a_seed_tells_the_same_story_again_in_another_process() -> None:
    told = tell(3, rates_for(3))
    assert told.faults
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "sim.chaos", "--seed", "3", "--only"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert told.trace in done.stdout


@pytest.mark.parametrize("seed", [39, 2014])
def test_what_chaos_found_before_stays_mended(seed: int) -> None:
    """39, 2014: small write-offs halved a client's window until it was refused (tests/unit/test_pay_write_offs.py)."""
    told = tell(seed, rates_for(seed), is_slow=is_slow(seed))
    assert not told.violations, report(told)


def test_a_failure_names_its_seed_and_commit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Payee, "deadline", lambda self: 0)
    assert main(["--seed", "5", "--only", "--log"]) == 1
    said = capsys.readouterr().out
    assert f"seed 5 at commit {commit()}" in said
    assert "python -m sim.chaos --seed 5 --only --log" in said


def test_a_scenario_may_have_chaos_of_its_own() -> None:
    scenario = Scenario(
        name="chaotic",
        run=RunSpec(until_s=60),
        nodes={
            "plain": NodeGroup(count=6, roles=("gossip",)),
            "sellers": NodeGroup(count=2, roles=("gossip", "provider")),
            "buyers": NodeGroup(count=3, roles=("gossip", "client")),
        },
        gossip=GossipSpec(dials=4, publishers=2),
        market=MarketSpec(clients={"buyers": ClientAgent(rate_per_s=0.2, value_nano=(1_000_000, 1_000_000))}),
        chaos=ChaosSpec(
            crash_per_s=0.2,
            lose_last_write=0.5,
            partition_per_s=0.05,
            clock_jump_per_s=0.1,
            clock_jump_s=10.0,
            chain_outage_per_s=0.05,
        ),
    )
    summary = run_level(scenario, seed=2, sink=NullSink(), progress=lambda share, note: None).summary
    assert {"clock", "partition", "chain"} <= set(summary["chaos"])
    assert summary["chaos"].get("crash", 0) + summary["chaos"].get("lying crash", 0) > 3
    assert summary["market"]["done"] > 5


# --- mutants ---------------------------------------------------------------------------------------------


def acknowledges_before_the_disk_has_it(patch: pytest.MonkeyPatch) -> None:
    real = Payee.receive_voucher

    def mutant(self: Payee, *args: Any, **kwargs: Any) -> Any:
        effects = real(self, *args, **kwargs)
        events = [
            Emit(event=VoucherAccepted(account=record.account, amount_nano=1, paid_nano=record.cumulative_nano))
            for effect in effects
            if isinstance(effect, Persist)
            for record in effect.records
        ]
        return (*effects, *events)

    patch.setattr(Payee, "receive_voucher", mutant)


def sends_before_the_disk_has_it(patch: pytest.MonkeyPatch) -> None:
    real = Payer._pay

    def mutant(self: Payer, ledger: Any, now: int) -> Any:
        effects = real(self, ledger, now)
        early = [
            sent
            for effect in effects
            if isinstance(effect, Persist)
            for sent in self.persisted(effect.records, now=now)
        ]
        return (*effects, *early)

    patch.setattr(Payer, "_pay", mutant)


def forgets_its_vouchers_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    real = Payee.__init__

    def mutant(self: Payee, **kwargs: Any) -> None:
        real(self, **{**kwargs, "restored": ()})

    patch.setattr(Payee, "__init__", mutant)


def counts_a_claim_again_with_every_proof(patch: pytest.MonkeyPatch) -> None:
    real = Ledger.prove

    def mutant(self: Ledger, standing: Any) -> int:
        real(self, standing)
        return int(standing.claimed_nano)

    patch.setattr(Ledger, "prove", mutant)


def signs_twice_what_it_received(patch: pytest.MonkeyPatch) -> None:
    real = Attempt.count

    def mutant(self: Attempt, **counts: int) -> tuple[int, int]:
        tokens, risen = real(self, **counts)
        return tokens, 2 * risen

    patch.setattr(Attempt, "count", mutant)


def lets_everything_out_unpaid(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "tokens_allowed", lambda self, request, wanted, *, now: wanted)


def keeps_the_first_offer_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OfferTable, "renew", lambda self, entry, offer, **kwargs: None)


def never_tells_the_engine_of_a_cancel(patch: pytest.MonkeyPatch) -> None:
    real = ProviderSession.receive

    def mutant(self: ProviderSession, *args: Any, **kwargs: Any) -> Any:
        effects = real(self, *args, **kwargs)
        return tuple(
            effect
            for effect in effects
            if not (isinstance(effect, Emit_) and isinstance(effect.event, RequestCancelled))
        )

    patch.setattr(ProviderSession, "receive", mutant)


def never_forgets_a_finished_request(patch: pytest.MonkeyPatch) -> None:
    real = ClientSession._finish

    def mutant(self: ClientSession, request: Any, event: Any, out: list[Any]) -> None:
        real(self, request, event, out)
        self._requests[request.id] = request

    patch.setattr(ClientSession, "_finish", mutant)


def asks_to_be_woken_again_and_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Payee, "deadline", lambda self: 0)


def falls_over_when_the_chain_is_away(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: Payee, account: bytes, *, now: int) -> Any:
        raise KeyError(account)

    patch.setattr(Payee, "account_unreachable", mutant)


from cocoon.serve.effects import Emit as Emit_  # noqa: E402 - the session's own, beside the payee's

MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    mutant.__name__: (mutant, law)
    for mutant, law in (
        (acknowledges_before_the_disk_has_it, "before it was on its disk"),
        (sends_before_the_disk_has_it, "leave that is not on its disk"),
        (forgets_its_vouchers_at_a_restart, "and remembers"),
        (counts_a_claim_again_with_every_proof, "was confirmed"),
        (signs_twice_what_it_received, "was signed for what costs"),
        (lets_everything_out_unpaid, "unpaid tokens out"),
        (keeps_the_first_offer_for_ever, "does not list the current offer"),
        (never_tells_the_engine_of_a_cancel, "computes for nobody"),
        (never_forgets_a_finished_request, "requests open"),
        (asks_to_be_woken_again_and_again, "again and again in one instant"),
        (falls_over_when_the_chain_is_away, "a node is dead: KeyError"),
    )
}
STORIES_MAX = 12  # a mutant that lives longer is not caught


@pytest.mark.parametrize("name", MUTANTS)
def test_the_laws_catch_a_planted_mutant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, law = MUTANTS[name]
    for seed in range(1, STORIES_MAX + 1):  # the unspoilt machines pass each of these
        rates = replace(Rates(), trap_share=0.02)
        with monkeypatch.context() as patch:
            plant(patch)
            told = Story(seed, rates).tell()
        if any(law in violation for violation in told.violations):
            return
    pytest.fail(f"{name} lived through {STORIES_MAX} stories")
