"""What a process says of itself: on its socket, to Prometheus, and to a person."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from cocoon.cli import main
from cocoon.cli.status import duration, lines_of, schema
from cocoon.cli.top import Curves
from cocoon.errors import StoreError, Unavailable
from cocoon.status import Status, control
from cocoon.status.facts import (
    EarnedFacts,
    EvidenceFacts,
    ModelFacts,
    OfferFacts,
    PeerFacts,
    ReachFacts,
    ServingFacts,
    SpendingFacts,
)
from cocoon.status.metrics import exposition
from cocoon.status.reading import peer_facts, runway_h
from cocoon.types import SECOND_NS

SERVING = ServingFacts(
    slots=4,
    running=1,
    queued=2,
    sessions_open=3,
    sessions=9,
    requests=20,
    refused=3,
    failed=2,
    cancelled=1,
    prompt_tokens=1000,
    completion_tokens=2000,
    first_token_p50_ms=120.0,
    first_token_p95_ms=300.0,
    tokens_per_s_p50=55.0,
    service_p50_ms=900.0,
)
PROVIDER = Status(
    role="provider",
    version="0.1.0",
    network="devnet",
    peer="12D3KooWProvider",
    pid=4711,
    uptime_s=3_700.0,
    reach=ReachFacts(reach="directly", reason="3 of 3 got through", peers_asked=3, peers_reached=3),
    peers=PeerFacts(connections=5, inbound=3, outbound=2, networks={"10.0.0.0/24": 5}, bytes_sent=10),
    models=(ModelFacts(name='tiny"\n', offers=2, price_output_min_nano=1, price_output_max_nano=2),),
    offer=OfferFacts(
        model="tiny",
        model_digest="ab",
        price_input_nano=10**9,
        price_output_nano=2 * 10**9,
        rank=2,
        of=3,
        seq=1,
        expires_in_s=60.0,
    ),
    serving=SERVING,
    earned=EarnedFacts(
        vouchers=4, paid_nano=5 * 10**8, claimed_nano=10**8, refused=0, today_nano=1, week_nano=2, month_nano=3
    ),
    evidence=EvidenceFacts(kind="none", age_s=None),
    idle_because="its price is number 2 of 3: 1 others are cheaper",
)
GATEWAY = Status(
    role="gateway",
    version="0.1.0",
    network="devnet",
    peer="12D3KooWGateway",
    pid=os.getpid(),
    uptime_s=5.0,
    reach=ReachFacts(reach="not", reason="a client"),
    peers=PeerFacts(),
    spending=SpendingFacts(
        requests_running=1,
        requests=3,
        failed=1,
        completion_tokens=77,
        first_token_p50_ms=10.0,
        first_token_p95_ms=20.0,
        spent_today_nano=10**8,
        reserved_nano=0,
        day_max_nano=10**9,
        account_left_nano=4 * 10**9,
        runway_h=7.5,
    ),
)


async def _answer(what: str) -> dict[str, Any]:
    return msgspec.to_builtins(GATEWAY) if what == "status" else {"error": "unknown"}


def test_a_process_answers_on_its_socket_and_is_gone_afterwards(tmp_path: Path) -> None:
    async def body() -> None:
        async with control.open_control(tmp_path, "gateway", _answer) as path:
            assert path is not None
            assert path.parent.stat().st_mode & 0o777 == 0o700
            (one,) = control.running(tmp_path)
            assert (one.role, one.pid) == ("gateway", os.getpid())
            assert msgspec.convert(await control.ask(one.path, "status"), Status) == GATEWAY
            assert await control.ask(one.path, "else") == {"error": "unknown"}
        assert control.running(tmp_path) == ()

    trio.run(body)


@pytest.mark.parametrize(
    "question", [b"", b"\n", b"nonsense\n", b"[1]\n", b'{"what": 5}\n', b"[" * 900 + b"\n", b"x" * 5_000]
)
def test_nonsense_on_the_socket_harms_nobody(tmp_path: Path, question: bytes) -> None:
    async def body() -> None:
        with trio.fail_after(5):
            async with control.open_control(tmp_path, "node", _answer) as path:
                assert path is not None
                async with await trio.open_unix_socket(str(path)) as stream:
                    await stream.send_all(question)
                    await stream.send_eof()
                    answer = await stream.receive_some()
                assert json.loads(answer) == {"error": "not a question"}
                assert (await control.ask(path, "status"))["role"] == "gateway"

    trio.run(body)


@pytest.mark.parametrize("fault", [StoreError("the disk is gone"), ValueError("no number"), float("nan")])
def test_a_status_that_cannot_be_read_ends_neither_the_process_nor_the_next_question(
    tmp_path: Path, fault: object
) -> None:
    asked = 0

    async def broken_once(what: str) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked > 1:
            return await _answer(what)
        if isinstance(fault, Exception):
            raise fault
        return {"uptime_s": fault}

    async def body() -> None:
        with trio.fail_after(5):
            async with control.open_control(tmp_path, "node", broken_once) as path:
                assert path is not None
                said = await control.ask(path, "status")
                assert list(said) == ["error"]
                assert "disk" not in said["error"]
                assert (await control.ask(path, "status"))["role"] == "gateway"

    trio.run(body)


def test_a_folder_that_others_may_enter_is_closed_before_the_socket_is_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)

    async def body() -> None:
        async with control.open_control(tmp_path, "node", _answer) as path:
            assert path is not None
            assert path.parent.stat().st_mode & 0o777 == 0o700

    trio.run(body)


def test_the_socket_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / f"provider-{int(dead.stdout)}.sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    (folder / "notes.txt").write_text("mine")
    (folder / "x-y.sock").write_text("not a number")
    assert control.running(tmp_path) == ()
    assert sorted(one.name for one in folder.iterdir()) == ["notes.txt", "x-y.sock"]


def test_a_process_that_does_not_answer_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f"node-{os.getpid()}.sock").write_text("no socket at all")

    async def ask() -> None:
        with pytest.raises(Unavailable):
            await control.ask(folder / f"node-{os.getpid()}.sock", "status")

    trio.run(ask)
    assert main(["status", "--home", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["silent"] == [f"node-{os.getpid()}"]


def test_a_home_whose_path_is_too_long_has_no_socket_and_still_runs(tmp_path: Path) -> None:
    async def body() -> None:
        async with control.open_control(tmp_path / ("x" * 100), "node", _answer) as path:
            assert path is None

    trio.run(body)


def test_nothing_running_is_said_with_what_to_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--home", str(tmp_path)]) == 1
    assert "cocoon serve" in capsys.readouterr().err


# --- prometheus --------------------------------------------------------------------------------------------


def parsed(text: str) -> dict[str, float]:
    assert text.endswith("\n")
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds, "samples of one name stand together"
            kinds[name] = kind
        elif not line.startswith("#"):
            key, _, value = line.rpartition(" ")
            assert key not in found
            found[key] = float(value)
            name = key.partition("{")[0]
            assert name in kinds
            assert name.endswith("_total") == (kinds[name] == "counter")
    return found


def test_prometheus_gets_every_number_once() -> None:
    found = parsed(exposition(PROVIDER))
    assert found['cocoon_requests_total{outcome="completed"}'] == 11
    assert found['cocoon_requests_total{outcome="failed"}'] == 2
    assert found["cocoon_offer_rank"] == 2
    assert found['cocoon_price_ton{of="output"}'] == 2
    assert found["cocoon_earned_ton_total"] == 0.5
    assert found['cocoon_reachable{how="directly"}'] == 1
    assert found['cocoon_reachable{how="not"}'] == 0
    assert found['cocoon_first_token_seconds{quantile="0.95"}'] == 0.3
    assert found['cocoon_market_offers{model="tiny\\"\\n"}'] == 2
    gateway = parsed(exposition(GATEWAY))
    assert gateway["cocoon_account_runway_hours"] == 7.5
    assert gateway['cocoon_gateway_requests_total{outcome="completed"}'] == 1


# --- people ------------------------------------------------------------------------------------------------


def test_a_person_reads_what_matters() -> None:
    shown = "\n".join(lines_of(PROVIDER))
    for words in ("provider on devnet", "up 1 h 1 min", "number 2 of 3", "1 of 4 busy, 2 waiting", "idle", "directly"):
        assert words in shown
    shown = "\n".join(lines_of(GATEWAY))
    assert "0.1 of 1 TON today" in shown
    assert "4 TON left, 7.5 h at this pace" in shown


@pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (65, "1 min"), (3_660, "1 h 1 min"), (90_000, "1 d 1 h")])
def test_times_are_short(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_json_of_status_follows_its_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = schema()
    assert set(described["properties"]) == {"home", "processes", "silent"}
    fields = described["$defs"]["Status"]["properties"]
    assert set(fields) == set(msgspec.to_builtins(PROVIDER))


def test_a_curve_shows_the_pace_not_the_sum() -> None:
    curves = Curves()
    for total in (100, 100, 180, 190):
        curves.add(
            [msgspec.structs.replace(PROVIDER, serving=msgspec.structs.replace(SERVING, completion_tokens=total))]
        )
    assert curves.of(PROVIDER.pid).endswith("  █▁  80 at most".lstrip())


def test_top_writes_json_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--home", str(tmp_path), "--json", "--count", "2", "--every", "0.1"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"processes": [], "silent": []}] * 2
    assert main(["top", "--home", str(tmp_path), "--every", "0"]) != 0


# --- reading -----------------------------------------------------------------------------------------------


def test_the_runway_is_the_pace_of_the_last_hour() -> None:
    now = 10 * 3_600 * SECOND_NS
    spent = [(now - 2 * 3_600 * SECOND_NS, 10**9), (now - 60 * SECOND_NS, 10**8), (now, 10**8)]
    assert runway_h(spent, 10**9, now=now, started_ns=0) == pytest.approx(5.0)
    assert runway_h(spent, None, now=now, started_ns=0) is None
    assert runway_h([], 10**9, now=now, started_ns=0) is None


def test_peers_are_counted_by_the_network_they_come_from() -> None:
    from cocoon.ports import Connection
    from cocoon.types import PeerId

    def one(address: str, outbound: bool) -> Connection:
        return Connection(peer=PeerId("p"), address=address, outbound=outbound, opened_ns=0, agent="")

    inbound = ("/ip4/10.1.2.9/tcp/1", "/ip6/2001:db8:1:2::1/tcp/1", "/x")
    facts = peer_facts([one("/ip4/10.1.2.3/tcp/1", True), *(one(address, False) for address in inbound)], [], None)
    assert facts.networks == {"10.1.2.0/24": 2, "2001:db8:1::/48": 1}
    assert (facts.inbound, facts.outbound) == (3, 1)
