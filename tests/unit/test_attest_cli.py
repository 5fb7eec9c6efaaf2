"""`cocoon verify` as a person or a script meets it: exit codes, one JSON object, reasons instead of tracebacks."""

import argparse
import io
import json
from pathlib import Path

import pytest

from cocoon.attest.evidence import SavedEvidence, encode_bundle, encode_saved
from cocoon.cli import verify as command
from cocoon.cli.console import Console
from cocoon.errors import ConfigError
from cocoon.types import Network
from tests.fakes import attestation as world

ROOT = Path(__file__).parent.parent / "vectors" / "attestation"
VECTORS = {v["id"]: v for v in json.loads((ROOT / "vectors.json").read_text())}


def cocoon_verify(*words, as_json=True):
    """(exit code, the JSON object or the text)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    command.add_arguments(parser)
    out = io.StringIO()
    console = Console(json_output=as_json, out=out, err=io.StringIO())
    code = command.run(parser.parse_args([str(word) for word in words]), console)
    return code, json.loads(out.getvalue()) if as_json else out.getvalue()


def words_for(vector):
    at = ("--at", vector.get("at"))
    match vector["kind"]:
        case "tdx":
            return ("tdx", "--quote", ROOT / vector["quote"], "--collateral", ROOT / vector["collateral"], *at)
        case "gpu":
            report, chain = ROOT / vector["report"], ROOT / vector["chain"]
            return ("gpu", "--report", report, "--chain", chain, "--nonce", vector["nonce"], *at)
        case "rim":
            return ("rim", ROOT / vector["files"][0], *at)
        case "rtmr":
            return ("eventlog", ROOT / vector["files"][0], "--quote", ROOT / vector["files"][2], *at)


@pytest.mark.parametrize("name", [v["id"] for v in VECTORS.values() if v["kind"] != "gpu-roots"])
def test_every_real_vector_gives_its_verdict_and_exit_code(name):
    vector = VECTORS[name]
    code, answer = cocoon_verify(*words_for(vector))
    assert answer["verdict"] == vector["verdict"], answer["message"]
    assert code == (0 if vector["verdict"] == "accepted" else 3)
    if vector["verdict"] == "accepted":
        assert answer["reason"] is None
        assert all(check["passed"] for check in answer["checks"])
    else:
        assert vector["because"].split()[0] in answer["reason"]
        assert [check["passed"] for check in answer["checks"]].count(False) == 1


def test_a_part_lists_its_measurements_and_what_it_leaves_open():
    _, tdx = cocoon_verify(*words_for(VECTORS["uptodate-v4-dcapqvl"]))
    assert tdx["claims"]["mrtd"].startswith("91eb2b44")
    assert tdx["claims"]["tcb_status"] == "UpToDate"
    assert "eventlog.replay" in tdx["not_checked"]
    _, gpu = cocoon_verify(*words_for(VECTORS["h100-550.90.07"]))
    assert gpu["claims"]["driver_rim_id"] == "NV_GPU_DRIVER_GH100_550.90.07"
    assert {"gpu.ocsp", "gpu.measurements-driver"} <= set(gpu["not_checked"])
    _, log = cocoon_verify(*words_for(VECTORS["rtmr-gcp-cos113"]))
    assert log["claims"]["events"] == 43


def test_a_log_that_is_not_the_quotes_is_refused():
    log = ROOT / VECTORS["rtmr-gcp-cos113"]["files"][0]
    code, answer = cocoon_verify(*words_for(VECTORS["uptodate-v4-dcapqvl"]), "--event-log", log)
    assert (code, answer["reason"]) == (3, "eventlog.rtmr0")


def test_a_time_may_be_written_in_words_and_must_have_a_zone():
    vector = VECTORS["rim-vbios-1010_0200_882_96005E0001"]
    assert cocoon_verify("rim", ROOT / vector["files"][0], "--at", "2024-06-01T00:00:00Z")[0] == 0
    with pytest.raises(ConfigError):
        cocoon_verify("rim", ROOT / vector["files"][0], "--at", "2024-06-01T00:00:00")
    with pytest.raises(ConfigError):
        cocoon_verify("rim", ROOT / vector["files"][0], "--at", "yesterday")


def test_a_hex_dump_of_a_quote_is_read_as_the_quote(tmp_path):
    vector = VECTORS["uptodate-v4-dcapqvl"]
    dump = tmp_path / "quote.hex"
    dump.write_text((ROOT / vector["quote"]).read_bytes().hex() + "\n")
    collateral = ROOT / vector["collateral"]
    assert cocoon_verify("tdx", "--quote", dump, "--collateral", collateral, "--at", vector["at"])[0] == 0


@pytest.mark.parametrize("junk", [b"", b"\0", b"{", b"[" * 100_000, b"<" * 1000, b"\xff" * 9000, b"a" * 3_000_000])
def test_junk_is_a_refusal_with_a_reason_in_every_form(tmp_path, junk):
    file = tmp_path / "junk"
    file.write_bytes(junk)
    collateral = ROOT / "tdx/collateral-B0C06F-2025-06.json"
    quote = ROOT / "tdx/uptodate-v4-dcapqvl.quote.bin"
    chain = ROOT / "gpu/h100-550.90.07.chain.pem"
    report = ROOT / "gpu/h100-550.90.07.report.bin"
    for words in (
        ("tdx", "--quote", file, "--collateral", collateral),
        ("tdx", "--quote", quote, "--collateral", file),
        ("tdx", "--quote", quote, "--collateral", collateral, "--event-log", file),
        ("gpu", "--report", file, "--chain", chain),
        ("gpu", "--report", report, "--chain", file),
        ("gpu", "--report", report, "--chain", chain, "--rim", file),
        ("gpu", "--report", report, "--chain", chain, "--crl", file),
        ("gpu", "--report", report, "--chain", chain, "--ocsp", file),
        ("rim", file),
        ("eventlog", file),
        ("eventlog", file, "--quote", file),
        (file,),
    ):
        code, answer = cocoon_verify(*words, "--at", 1_750_416_000)
        assert code == 3
        assert answer["verdict"] == "refused"
        assert "." in answer["reason"]
        assert answer["checks"][-1]["passed"] is False


@pytest.mark.parametrize(
    "words",
    [
        ("tdx",),
        ("tdx", "--quote", "x"),
        ("gpu", "--report", "x"),
        ("rim",),
        ("eventlog",),
        ("no-such-file",),
        ("rim", "no-such-file"),
        ("rim", str(ROOT / "SOURCES.md"), "--quote", "x"),  # an option that would be left unread
        ("tdx", "--quote", "x", "--collateral", "y", "--policy", "z"),
        ("gpu", "--report", "x", "--chain", "y", "--nonce", "12"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error_not_a_verdict(words):
    with pytest.raises(ConfigError):
        cocoon_verify(*words)


def saved(tmp_path, sent=None, **fields):
    sent = world.evidence_of() if sent is None else sent
    record = SavedEvidence(
        **{
            "network": int(Network.DEVNET),
            "nonce": world.NONCE,
            "peer": world.PEER.verify_key.encode(),
            "operator": world.OPERATOR.verify_key.encode(),
            "model": world.MODEL,
            "payout": world.PAYOUT,
            "statement": sent.statement,
            "operator_signature": sent.operator_signature,
            "peer_signature": sent.peer_signature,
            "hardware": encode_bundle(sent.bundle) if sent.bundle else b"",
            "saved_s": world.NOW_S,
            **fields,
        }
    )
    path = tmp_path / "session.evidence"
    path.write_bytes(encode_saved(record))
    return path


def test_a_saved_session_is_verified_whole_and_its_level_shown(tmp_path):
    code, answer = cocoon_verify(saved(tmp_path), "--at", world.NOW_S + 60)
    assert code == 0, answer["message"]
    assert answer["claims"]["level"] == "simulated"
    assert any("proves nothing" in line for line in answer["claims"]["policy"])


def test_a_saved_session_is_printed_check_by_check(tmp_path):
    code, text = cocoon_verify(saved(tmp_path), "--at", world.NOW_S, as_json=False)
    assert code == 0
    assert "gpu.signature" in text
    assert text.rstrip().endswith("accepted")
    code, text = cocoon_verify(saved(tmp_path, nonce=bytes(32)), "--at", world.NOW_S, as_json=False)
    assert code == 3
    assert "refused: statement.mismatch" in text


@pytest.mark.parametrize(
    ("change", "at", "reason"),
    [
        ({}, 10**9, "tdx.future"),
        ({}, world.NOW_S + 40 * 86400, "expired"),
        ({"peer": bytes(32)}, world.NOW_S, "statement.mismatch"),
        ({"network": int(Network.MAINNET)}, world.NOW_S, "statement.mismatch"),
        ({"network": 7}, world.NOW_S, "evidence.file"),
        ({"hardware": b""}, world.NOW_S, "evidence.missing"),
        ({"hardware": b"\x80"}, world.NOW_S, "evidence.format"),
    ],
)
def test_a_saved_session_with_something_wrong_is_refused(tmp_path, change, at, reason):
    code, answer = cocoon_verify(saved(tmp_path, **change), "--at", at)
    assert code == 3
    assert reason.split(".")[-1] in answer["reason"]


def test_a_policy_file_judges_a_saved_session(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('level = "confidential"\n')
    code, answer = cocoon_verify(saved(tmp_path), "--at", world.NOW_S, "--policy", policy)
    assert (code, answer["reason"]) == (3, "level.too-weak")
    policy.write_text('level = "simulated"\n')
    code, answer = cocoon_verify(saved(tmp_path), "--at", world.NOW_S, "--policy", policy)
    assert (code, answer["reason"]) == (3, "image.none-accepted")
    policy.write_text('level = "simulated"\nlvel = 1\n')
    with pytest.raises(ConfigError):
        cocoon_verify(saved(tmp_path), "--at", world.NOW_S, "--policy", policy)
