"""`cocoon why`: decisions as records that anybody can make again, and that a changed byte gives away."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cocoon.cli import main
from cocoon.cli.why import explain
from cocoon.errors import DecodeError
from cocoon.market.records import choice_record, decide_again, is_same
from cocoon.types import Network, ton
from tests.fakes.engine import ScriptedEngine
from tests.fakes.little_market import ask, open_market


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """Decisions of a client over a market in which one provider fails, through JSON and back."""

    async def scenario() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async with open_market() as market:
            await market.add_provider("broken", ScriptedEngine(fail_after=0))
            await market.add_provider("dear", output_nano=ton("0.5"))
            await market.add_provider("sound", output_nano=ton("0.1"))
            client = await market.add_client()
            for spend in [ton("1")] * 7 + [ton("0.0003")]:  # the last one leaves the dear one out
                async with client.generate("chat.completions", ask(), spend_max_nano=spend) as reply:
                    async for _ in reply:
                        pass
                assert reply.decisions
                found += [choice_record(one, network=Network.DEVNET) for one in reply.decisions]
        return found

    return [json.loads(json.dumps(one)) for one in trio.run(scenario, clock=MockClock(autojump_threshold=0))]


def test_every_decision_comes_out_the_same_again(records: list[dict[str, Any]]) -> None:
    assert len(records) >= 8
    for record in records:
        assert is_same(record)
        assert decide_again(record).as_record()["ranked"] == record["ranked"]


def test_a_changed_record_is_noticed(records: list[dict[str, Any]]) -> None:
    record = records[-1]
    for change in ("seed", "ranked", "observed", "spend"):
        other = copy.deepcopy(record)
        if change == "seed":
            seeds = [bytes([number]) * 32 for number in range(40)]
            assert any(not is_same({**other, "seed": seed.hex()}) for seed in seeds)
            continue
        if change == "ranked":
            other["ranked"] = other["ranked"][::-1]
        elif change == "observed":
            other["inputs"]["candidates"][0]["observed"]["failures"] += 50.0
        else:
            other["inputs"]["wish"]["spend_max_nano"] = 0
        assert not is_same(other), change


def test_an_offer_that_was_not_signed_like_this_is_refused(records: list[dict[str, Any]]) -> None:
    other = copy.deepcopy(records[0])
    offer = bytearray.fromhex(other["inputs"]["candidates"][0]["offer"])
    offer[len(offer) // 2] ^= 1
    other["inputs"]["candidates"][0]["offer"] = offer.hex()
    with pytest.raises(DecodeError):
        is_same(other)


@pytest.mark.parametrize("record", [{}, {"inputs": 5}, {"inputs": {"network": "x"}}, {"inputs": {"network": "devnet"}}])
def test_what_is_no_record_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        is_same(record)


def whole(records: list[dict[str, Any]]) -> dict[str, Any]:
    choice = {
        "provider": "12D3",
        "trust": "open",
        "first_token_ms": 12.0,
        "attempts": ["12D4: it failed"],
        "decisions": records[-2:],
    }
    return {"id": "chatcmpl-1", "model": "m", "status": "answered", "cost_nano": 7, "choices": [choice]}


def test_a_person_reads_who_was_weighed_and_who_was_out(records: list[dict[str, Any]]) -> None:
    shown = "\n".join(explain(whole(records)))
    for words in ("answered by 12D3 (open)", "tried before: 12D4", "decision 2", "→", "tokens/s"):
        assert words in shown


def test_a_saved_record_is_replayed_offline(
    tmp_path: Path, records: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "why.json"
    file.write_text(json.dumps(whole(records)))
    assert main(["why", "--replay", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] == 2
    changed = whole(records)
    changed["choices"][0]["decisions"] = [{**records[-1], "ranked": []}]
    file.write_text(json.dumps(changed))
    assert main(["why", "--replay", str(file)]) == 1
    file.write_text("{}")
    assert main(["why", "--replay", str(file)]) == 2
    assert main(["why", "--home", str(tmp_path)]) == 1
