"""The command line before it touches a network: help, usage errors, JSON errors, exit codes, no tracebacks."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cocoon.cli import COMMANDS, main
from cocoon.cli.console import Console
from cocoon.errors import InvalidRequest, NoProvider, PriceTooHigh, TrustRefused

BOOTSTRAP = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWFvGidPcZnSbidKtPCfU1AjFALtVNXkjnXaWriRRosrkD"


def test_help_lists_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in COMMANDS)
    assert "3 trust refused" in shown


def test_help_takes_no_longer_than_a_blink() -> None:
    """In processor time, so that other programs on this machine do not decide; it waits for nothing."""
    best = min(_help_cpu_s() for _ in range(3))
    assert best < 0.3


def _help_cpu_s() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "cocoon", "--help"], capture_output=True, timeout=30, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_and_takes_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "--exit-with-parent" not in shown


def test_a_mistyped_command_is_met_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["srve"]) == 2
    assert "cocoon serve" in capsys.readouterr().err


def test_no_command_is_a_usage_error_that_shows_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "cocoon demo" in captured.err


BAD = [
    (["serve", "--slots", "0", "cocoon-tiny"], 2, "slots"),
    (["serve", "--slots", "many", "cocoon-tiny"], 2, "slots"),
    (["serve", "--price-in", "cheap", "cocoon-tiny"], 2, "price_input_ton"),
    (["serve"], 2, "no model"),
    (["gateway", "--bootstrap", BOOTSTRAP], 2, "no trust level"),
    (["gateway", "--bootstrap", BOOTSTRAP, "--trust", "total"], 2, "total"),
    (["gateway", "--trust", "open"], 2, "no bootstrap"),
    (["gateway", "--trust", "open", "--bootstrap", "example.org:4642"], 2, "/ip4/"),
    (["gateway", "--trust", "open", "--bootstrap", BOOTSTRAP, "--port", "99999"], 2, "99999"),
    (["gateway", "--trust", "open", "--bootstrap", BOOTSTRAP, "--spend-day-max", "1e9"], 2, "spend_day_max_ton"),
    (["chat", "--bootstrap", BOOTSTRAP], 2, "no trust level"),
    (["demo", "--providers", "0"], 2, "--providers"),
    (["demo", "--network", "mainnet"], 2, "network of its own"),
    (["offers"], 2, "no bootstrap"),
    (["peers", "--unheard-of"], 2, "--unheard-of"),
    (["node", "--network", "fakenet"], 2, "fakenet"),
]


@pytest.mark.parametrize(("words", "code", "told"), BAD, ids=[" ".join(words)[:60] for words, _, _ in BAD])
def test_bad_input_is_refused_with_a_reason_and_advice(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert "Traceback" not in captured.err
    assert "error: " in captured.err

    assert main([*words, "--json"]) == code
    error = json.loads(capsys.readouterr().out)["error"]
    assert told in error["message"] + error["advice"]


def test_a_config_with_a_slip_names_the_file_and_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text("[gateway]\nprot = 1\n")
    assert main(["gateway", "--home", str(tmp_path), "--trust", "open"]) == 2
    shown = capsys.readouterr().err
    assert str(tmp_path / "config.toml") in shown
    assert "gateway.port" in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoProvider("nobody"), 1),
        (InvalidRequest("bad"), 2),
        (TrustRefused("weak"), 3),
        (PriceTooHigh("dear"), 4),
        (KeyboardInterrupt(), 130),
        (RuntimeError("canary-private"), 1),
        (ExceptionGroup("group", [ExceptionGroup("inner", [ValueError("x"), TrustRefused("weak")])]), 3),
    ],
)
def test_errors_end_in_their_exit_code_and_a_foreign_ones_text_stays_inside(error: BaseException, code: int) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert Console(json_output=True, out=out, err=err).explain(error) == code
    assert "canary-private" not in out.getvalue() + err.getvalue()
    assert "Traceback" not in err.getvalue()


def test_json_goes_out_one_object_per_line_and_talk_stays_apart() -> None:
    out, err = io.StringIO(), io.StringIO()
    console = Console(json_output=True, out=out, err=err)
    console.say("hello")
    console.line("not for programs")
    console.data({"a": 1})
    console.data({"b": "ä"})
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [{"a": 1}, {"b": "ä"}]
    assert err.getvalue() == "hello\n"


def test_a_reader_that_leaves_is_no_crash() -> None:
    ran = subprocess.run(
        f"{sys.executable} -m cocoon --help | true", shell=True, capture_output=True, text=True, timeout=30, check=False
    )
    assert "Traceback" not in ran.stderr


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


HOSTILE = "a\x1b]52;c;ZXZpbA==\x07b\x9b2Jc\rd\tä\n"


def test_what_strangers_write_cannot_steer_the_terminal() -> None:
    out, err = _Terminal(), _Terminal()
    console = Console(json_output=False, out=out, err=err)
    console.text(HOSTILE)
    console.line(HOSTILE)
    console.say(HOSTILE)
    console.notice(HOSTILE)
    console.table(("NAME",), [[HOSTILE]])
    console.explain(NoProvider(HOSTILE, advice=HOSTILE))
    for shown in (out.getvalue(), err.getvalue()):
        plain = shown.replace("\x1b[1m", "").replace("\x1b[31m", "").replace("\x1b[0m", "")  # our own colours
        assert not set("\x1b\x07\x9b\r") & set(plain)
        assert "\tä\n" in plain


def test_what_goes_into_a_file_is_left_as_it_is() -> None:
    out = io.StringIO()
    Console(json_output=False, out=out, err=io.StringIO()).text(HOSTILE)
    assert out.getvalue() == HOSTILE


def test_json_output_is_json_also_where_a_figure_is_missing() -> None:
    out = io.StringIO()
    figures = {"ratio": float("nan"), "rows": [{"p50": float("inf"), "n": 1.5}], "pair": (1, float("-inf"))}
    Console(json_output=True, out=out, err=io.StringIO()).data(figures)
    shown = json.loads(out.getvalue(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert shown == {"ratio": None, "rows": [{"p50": None, "n": 1.5}], "pair": [1, None]}
