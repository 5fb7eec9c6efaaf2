"""The spending account against a short Python model: random stories, no deviation, no coin lost or made."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from cocoon.adapters.devnet.tvm import Tvm
from cocoon.adapters.ton import contracts
from tests.conftest import HowFar
from tests.contracts.machine import machine_for

EXAMPLES_SHORT, EXAMPLES_LONG, STEPS = 60, 3_000, 25


def run(tvm: Tvm, examples: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine_for(tvm, contracts.contract_code("account")),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_stories_end_as_the_model_says(tvm: Tvm, how_far: HowFar) -> None:
    run(tvm, EXAMPLES_SHORT)
    how_far("account contract against its model", EXAMPLES_SHORT, EXAMPLES_LONG, "stories of 25 steps")


@pytest.mark.long
def test_many_random_stories_end_as_the_model_says(tvm: Tvm) -> None:
    run(tvm, EXAMPLES_LONG)
