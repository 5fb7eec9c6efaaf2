"""Every rule of a policy at its edge: what just passes, what just fails, and that tightening forgets none of them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from cocoon.adapters.tee.software import SOFTWARE_IMAGE, software_release
from cocoon.attest import policy as policies
from cocoon.attest.images import ImagePolicy
from cocoon.attest.judging import AcceptNothing, AnyOf
from cocoon.attest.policy import AgePolicy, GpuPolicy, GuestPolicy, MinimumLevel, PpidPolicy, TcbPolicy, TrustPolicy
from cocoon.attest.release import MODELS_LISTED
from cocoon.attest.trail import Trail
from cocoon.errors import AttestationError, TrustRefused
from cocoon.types import SECOND_NS, Network, TrustLevel
from tests.fakes.attestation import DAY_S, MODEL, NOW, NOW_S, facts_of, policy

FACTS = facts_of()
RELEASE = software_release()
ROOT = bytes([9]) * 32


def refusal(judge, facts=FACTS, *, now=NOW):
    """The reason, and that it stands in the trail with its text; None when accepted."""
    trail = Trail()
    error: AttestationError | None = None
    try:
        judge.judge(facts, now=now, trail=trail)
    except AttestationError as raised:
        error = raised
    if error is None:
        return None
    last = trail.checks[-1]
    assert (last.name, last.passed, last.detail) == (error.reason, False, str(error))
    return error.reason


def aged(**issued):
    """Facts whose collateral was issued so many seconds ago."""
    collateral = FACTS.quote.collateral
    bent = {name: replace(getattr(collateral, name), issued_s=NOW_S - age_s) for name, age_s in issued.items()}
    return replace(FACTS, quote=replace(FACTS.quote, collateral=replace(collateral, **bent)))


def gpu_facts(**changes):
    return replace(FACTS, gpus=(replace(FACTS.gpus[0], **changes),))


def quote_facts(**changes):
    return replace(FACTS, quote=replace(FACTS.quote, **changes))


# --- ages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity", "pck_crl"])
def test_collateral_of_exactly_its_highest_age_passes_and_a_second_more_does_not(name):
    reason = f"collateral.{name.replace('_', '-')}-too-old"
    assert refusal(AgePolicy(), aged(**{name: 14 * DAY_S})) is None
    assert refusal(AgePolicy(), aged(**{name: 14 * DAY_S + 1})) == reason
    assert refusal(AgePolicy(**{f"{name}_s": 60}), aged(**{name: 61})) == reason


@pytest.mark.parametrize(
    ("name", "most", "reason"),
    [("crl_root", 90 * DAY_S, "gpu.crl-too-old"), ("crl_identity", 90 * DAY_S, "gpu.crl-too-old"),
     ("ocsp", 2 * DAY_S, "gpu.ocsp-too-old")],
)  # fmt: skip
def test_nvidias_lists_have_their_own_highest_ages(name, most, reason):
    def old(age_s):
        return gpu_facts(**{name: replace(getattr(FACTS.gpus[0], name), issued_s=NOW_S - age_s)})

    assert refusal(AgePolicy(), old(most)) is None
    assert refusal(AgePolicy(), old(most + 1)) == reason


def test_what_has_expired_since_it_was_verified_is_refused():
    assert refusal(AgePolicy(), quote_facts(expires_s=NOW_S)) is None
    assert refusal(AgePolicy(), quote_facts(expires_s=NOW_S - 1)) == "collateral.expired"
    assert refusal(AgePolicy(), gpu_facts(rim_expires_s=NOW_S)) is None
    assert refusal(AgePolicy(), gpu_facts(rim_expires_s=NOW_S - 1)) == "gpu.expired"


def test_a_part_of_a_second_makes_nothing_older():
    late = NOW + SECOND_NS - 1
    assert refusal(AgePolicy(), aged(tcb_info=14 * DAY_S), now=late) is None
    assert refusal(AgePolicy(), quote_facts(expires_s=NOW_S), now=late) is None


def test_facts_serve_until_they_expire_and_not_in_that_moment():
    assert refusal(policy(), now=FACTS.expires_ns - 1) is None
    assert refusal(policy(), now=FACTS.expires_ns) == "facts.expired"
    assert refusal(policy(), now=FACTS.verified_ns - 1) == "facts.expired"


# --- platform ---------------------------------------------------------------------------------------------


def test_advisories_count_only_on_a_platform_that_is_not_up_to_date():
    named = {"advisories": ("INTEL-SA-1",)}
    lax = TcbPolicy(statuses=frozenset(("UpToDate", "SWHardeningNeeded")))
    tolerant = replace(lax, advisories_tolerated=frozenset(("INTEL-SA-1",)))
    assert refusal(lax, quote_facts(tcb_status="UpToDate", **named)) is None
    assert refusal(lax, quote_facts(tcb_status="SWHardeningNeeded", **named)) == "tdx.tcb-advisories"
    assert refusal(tolerant, quote_facts(tcb_status="SWHardeningNeeded", **named)) is None
    assert refusal(TcbPolicy(), quote_facts(tcb_status="SWHardeningNeeded")) == "tdx.tcb-status"


def test_the_lowest_tcb_evaluation_follows_the_calendar():
    since_s, number = policies.TCB_EVALUATIONS[0]
    _, before = policies.TCB_EVALUATIONS[1]
    assert before < number
    at, just_before = since_s * SECOND_NS, since_s * SECOND_NS - 1
    assert refusal(TcbPolicy(), quote_facts(tcb_evaluation_number=number), now=at) is None
    assert refusal(TcbPolicy(), quote_facts(tcb_evaluation_number=number - 1), now=at) == "tdx.tcb-evaluation"
    assert refusal(TcbPolicy(), quote_facts(tcb_evaluation_number=before), now=just_before) is None
    assert refusal(TcbPolicy(), quote_facts(tcb_evaluation_number=0), now=0) is None
    own = TcbPolicy(evaluation_number_min=7)
    assert refusal(own, quote_facts(tcb_evaluation_number=7), now=at) is None
    assert refusal(own, quote_facts(tcb_evaluation_number=6), now=0) == "tdx.tcb-evaluation"


@pytest.mark.parametrize(
    "judge", [TcbPolicy(), GuestPolicy(), AgePolicy(), PpidPolicy(), ImagePolicy(releases=(RELEASE,))]
)
def test_without_a_quote_each_rule_refuses_by_name(judge):
    assert refusal(judge, replace(FACTS, quote=None)) == "policy.no-quote"


# --- images -----------------------------------------------------------------------------------------------


def before(*events):
    """Facts whose RTMR3 held these (name, payload) events before Cocoon's own."""
    own = FACTS.runtime
    return replace(FACTS, runtime=(*(replace(own[0], name=name, payload=data) for name, data in events), *own))


def images(**changes):
    return ImagePolicy(releases=(replace(RELEASE, **changes),))


def test_events_before_cocoons_own_are_exactly_those_of_the_release_in_their_order():
    base = images(rtmr3_before=(("base/kernel", b"k"), ("base/instance", None)))
    assert refusal(base, before(("base/kernel", b"k"), ("base/instance", b"anything"))) is None
    for events in (
        (),
        (("base/kernel", b"k"),),
        (("base/kernel", b"x"), ("base/instance", b"")),
        (("base/other", b"k"), ("base/instance", b"")),
        (("base/instance", b""), ("base/kernel", b"k")),
        (("base/kernel", b"k"), ("base/instance", b""), ("base/more", b"")),
    ):
        assert refusal(base, before(*events)) == "image.rtmr3", events
    assert refusal(images(), before(("base/kernel", b"k"))) == "image.rtmr3"


def test_a_foreign_event_among_cocoons_own_is_refused():
    base = images(rtmr3_before=(("base/kernel", b"k"),))
    own = FACTS.runtime
    among = (own[0], replace(own[0], name="base/kernel", payload=b"k"), *own[1:])
    assert refusal(base, replace(FACTS, runtime=among)) == "image.rtmr3"


def test_listed_weights_need_exactly_their_root():
    """A model whose dm-verity root is not the release's could be other weights under the same name."""

    def measured(root):
        runtime = tuple(
            replace(event, payload=MODEL + root) if event.name == "cocoon/model" else event for event in FACTS.runtime
        )
        return replace(FACTS, runtime=runtime)

    listed = images(models=MODELS_LISTED, model_roots=((MODEL, ROOT),))
    assert refusal(listed, measured(ROOT)) is None
    assert refusal(listed, measured(bytes(32))) == "image.model-root"
    assert refusal(listed, measured(b"")) == "image.model-root"
    assert refusal(images(models=MODELS_LISTED), measured(ROOT)) == "image.model-root"
    assert refusal(images(models=MODELS_LISTED, model_roots=((bytes(32), ROOT),)), measured(ROOT)) == "image.model-root"
    assert refusal(images(models=MODELS_LISTED, model_roots=((MODEL, b""),)), measured(b"")) == "image.model-root"


def test_a_release_counts_from_its_first_second_to_its_last():
    dated = images(not_before_s=NOW_S, expires_s=NOW_S + 1)
    assert refusal(dated) is None
    assert refusal(dated, now=NOW + SECOND_NS - 1) is None
    assert refusal(dated, now=NOW - 1) == "release.not-yet-valid"
    assert refusal(dated, now=NOW + SECOND_NS) == "release.expired"


def test_an_image_that_no_release_names_is_refused_by_name():
    assert refusal(ImagePolicy()) == "image.none-accepted"
    other = replace(RELEASE, image=bytes(32))
    assert other.image != SOFTWARE_IMAGE
    reason = refusal(ImagePolicy(releases=(other,)))
    assert reason is not None
    assert reason.startswith("image.")


# --- composition ------------------------------------------------------------------------------------------


def test_alternatives_that_all_refuse_give_the_last_refusal_by_name():
    assert refusal(AnyOf(policies=(AcceptNothing(why="one"), PpidPolicy(allow=frozenset())))) == "ppid.unlisted"
    assert refusal(AnyOf(policies=(PpidPolicy(allow=frozenset()), AcceptNothing(why="one")))) == "policy.unreadable"
    assert refusal(AnyOf(policies=(AcceptNothing(why="one"), PpidPolicy()))) is None
    assert refusal(AnyOf(policies=())) == "policy.empty"


def test_tightening_keeps_every_rule_and_adds_to_them():
    """S8: a request that adds a demand must not lose one."""
    full = TrustPolicy(
        level=TrustLevel.SIMULATED,
        network=Network.DEVNET,
        tcb=TcbPolicy(evaluation_number_min=3),
        guest=GuestPolicy(mr_seam=frozenset()),
        ages=AgePolicy(tcb_info_s=5),
        images=ImagePolicy(releases=(RELEASE,)),
        ppid=PpidPolicy(deny=frozenset((b"x",))),
        gpu=GpuPolicy(drivers=frozenset()),
        extra=(AcceptNothing(why="first"),),
    )
    tight = full.tightened(AcceptNothing(why="second"))
    for field in fields(TrustPolicy):
        if field.name != "extra":
            assert getattr(tight, field.name) == getattr(full, field.name), field.name
    assert tight.extra == (AcceptNothing(why="first"), AcceptNothing(why="second"))


@pytest.mark.parametrize("asked", [None, *TrustLevel])
@pytest.mark.parametrize("own", list(TrustLevel))
def test_a_request_can_raise_the_level_and_never_lower_it(own, asked):
    tight = TrustPolicy(level=own, network=Network.DEVNET).tightened(level=asked)
    assert tight.level.rank == max(own.rank, asked.rank if asked else 0)


def test_simulated_facts_never_satisfy_a_policy_of_another_network():
    for network in (Network.MAINNET, Network.TESTNET):
        for level in (TrustLevel.OPEN, TrustLevel.SIMULATED):
            judge = MinimumLevel(level=level, network=network)
            with pytest.raises(TrustRefused):
                judge.judge(FACTS, now=NOW, trail=Trail())


# --- words ------------------------------------------------------------------------------------------------


def test_a_policy_says_what_its_rules_are_in_figures():
    text = " ".join(
        TrustPolicy(
            level=TrustLevel.CONFIDENTIAL,
            network=Network.MAINNET,
            tcb=TcbPolicy(evaluation_number_min=21, advisories_tolerated=frozenset(("INTEL-SA-2", "INTEL-SA-1"))),
            guest=GuestPolicy(mr_seam=frozenset((b"a", b"b"))),
            images=ImagePolicy(releases=(RELEASE,)),
            extra=(AcceptNothing(why="because"),),
        ).explain()
    )
    for words in (
        "Trust level confidential", "advisories tolerated: INTEL-SA-1, INTEL-SA-2", "TCB evaluation 21 or newer",
        "one of 2 pinned", "software TEE simulated", "because", "physical",
    ):  # fmt: skip
        assert words in text, words
    plain = " ".join(TrustPolicy(level=TrustLevel.CONFIDENTIAL, network=Network.MAINNET).explain())
    assert "advisories tolerated: none" in plain
    assert f"TCB evaluation {policies.TCB_EVALUATIONS[0][1]} or newer" in plain
    assert "any that Intel lists" in plain


def test_what_a_request_adds_is_judged_at_the_requests_own_time_and_the_judgement_names_its_facts():
    tight = policy().tightened(AgePolicy(tcb_info_s=120))
    assert tight.judge(FACTS, now=NOW).facts is FACTS
    assert refusal(tight, now=NOW + 60 * SECOND_NS) is None
    assert refusal(tight, now=NOW + 61 * SECOND_NS) == "collateral.tcb-info-too-old"
