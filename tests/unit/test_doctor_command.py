"""`cocoon doctor` as an operator meets it: a line for every check, a fix for every lack, and an exit code."""

from __future__ import annotations

import io
import json

import pytest

from cocoon.adapters.tee.doctor import Finding
from cocoon.cli import doctor, main
from cocoon.cli.console import Console

GOOD = Finding(name="quote", passed=True, detail="a quote of 5006 bytes")
BAD = Finding(name="gpu-cc-mode", passed=False, detail="NVIDIA H100 is in DevTools mode", fix="Set it to CC mode.")


def shown(*findings, as_json=False):
    out = io.StringIO()
    console = Console(json_output=as_json, out=out, err=io.StringIO())
    return doctor.show("tdx+gpu", findings, console), out.getvalue()


def test_every_check_has_a_mark_and_every_lack_its_fix():
    code, text = shown(GOOD, BAD)
    assert code == 1
    assert "✔ quote generation" in text
    assert "✘ GPU confidential mode" in text
    assert "→ Set it to CC mode." in text
    assert "1 of 2 are lacking" in text


def test_a_machine_that_lacks_nothing_is_told_how_to_serve():
    code, text = shown(GOOD)
    assert code == 0
    assert "cocoon serve MODEL --tee tdx+gpu" in text


def test_programs_get_one_object():
    code, text = shown(GOOD, BAD, as_json=True)
    told = json.loads(text)
    assert code == 1
    assert told["ready"] is False
    assert told["checks"][1] == {
        "name": "gpu-cc-mode", "passed": False, "detail": BAD.detail, "fix": BAD.fix,
    }  # fmt: skip


@pytest.mark.parametrize(("words", "gpu"), [(["--tee", "tdx"], False), (["--tee", "tdx+gpu"], True), ([], True)])
def test_what_is_examined_is_what_the_machine_is_to_prove(monkeypatch, tmp_path, capsys, words, gpu):
    asked = []

    def findings_of(*, with_gpu):
        asked.append(with_gpu)
        return (GOOD,)

    monkeypatch.setattr(doctor, "findings_of", findings_of)
    assert main(["doctor", "--home", str(tmp_path), "--json", *words]) == 0
    assert asked == [gpu]
    assert json.loads(capsys.readouterr().out)["ready"] is True


def test_an_ordinary_machine_is_told_what_it_lacks_without_a_traceback(monkeypatch, tmp_path, capsys):
    """This very machine has no TDX device; services are out of reach."""
    from cocoon.adapters.tee import collateral
    from cocoon.errors import Unavailable

    def unreachable(url, body, content_type):
        raise Unavailable("the service did not answer", advice="Check the guest's network.")

    monkeypatch.setattr(collateral, "urllib_http", unreachable)
    assert main(["doctor", "--home", str(tmp_path), "--tee", "tdx", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["name"] for check in checks] == ["td-device", "quote", "event-logs", "intel-collateral", "clock"]
    assert not any(check["passed"] for check in checks)
    assert all(check["fix"] for check in checks)


def test_every_check_has_a_title():
    import inspect
    import re

    from cocoon.adapters.tee import doctor as examining

    assert set(re.findall(r'_finding\("([a-z-]+)"', inspect.getsource(examining))) == set(doctor.TITLES)
