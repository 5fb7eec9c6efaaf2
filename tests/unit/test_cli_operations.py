"""`cocoon config`, `cocoon service` and `cocoon completion`: files of the user's, never left half written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cocoon.cli import COMMANDS, main
from cocoon.cli.service import ROLES, unit_text, verify
from cocoon.config import Config, parse_config
from cocoon.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "editor.py"
    program.write_text(script)
    monkeypatch.setenv("EDITOR", f"{sys.executable} {program}")
    monkeypatch.delenv("VISUAL", raising=False)


def test_what_config_shows_can_be_kept_as_a_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "config.toml").write_text(
        'network = "testnet"\n[provider]\nslots = 9\n[peer]\nbootstrap = ["/ip4/1.2.3.4/tcp/1"]\n'
    )
    assert main(["config", "show", "--home", str(home)]) == 0
    shown = capsys.readouterr().out
    again = parse_config(shown)
    assert again == parse_config((home / "config.toml").read_text())
    assert (again.network, again.provider.slots) == ("testnet", 9)
    assert "# price_input_ton" in shown


def test_without_a_file_the_defaults_are_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--home", str(home), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["exists"] is False
    assert said["config"]["gateway"]["port"] == 8642
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [("slots = 4", "unknown key"), ("[gateway]\nport = 700000", "port"), ("a = = 1", "TOML"), ("\xff", "UTF-8")],
)
def test_a_wrong_file_is_named_with_its_key(
    home: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    (home / "config.toml").write_bytes(text.encode("latin-1"))
    assert main(["config", "check", "--home", str(home)]) == ConfigError("x").exit_code
    assert says in capsys.readouterr().err
    assert main(["config", "check", str(home / "nothing.toml")]) != 0


def test_an_edit_is_kept_when_it_is_right(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    editor(tmp_path, monkeypatch, "import sys; open(sys.argv[1], 'a').write('\\n[x]\\n'.replace('[x]', ''))")
    assert main(["config", "edit", "--home", str(home)]) == 0
    assert parse_config((home / "config.toml").read_text()) == Config()
    editor(tmp_path, monkeypatch, "import sys; open(sys.argv[1], 'w').write('[provider]\\nslots = 7\\n')")
    assert main(["config", "edit", "--home", str(home)]) == 0
    assert parse_config((home / "config.toml").read_text()).provider.slots == 7
    assert [one.name for one in home.iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    "script",
    [
        "import sys; open(sys.argv[1], 'w').write('[provider]\\nslotz = 7\\n')",
        "import sys; open(sys.argv[1], 'w').write('[provider]\\nslots = 7\\n'); sys.exit(1)",
        "import os, sys; os.unlink(sys.argv[1])",
    ],
    ids=["wrong", "editor failed", "file removed"],
)
def test_an_edit_that_is_not_right_changes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    (home / "config.toml").write_text("[provider]\nslots = 3\n")
    editor(tmp_path, monkeypatch, script)
    assert main(["config", "edit", "--home", str(home)]) != 0
    assert (home / "config.toml").read_text() == "[provider]\nslots = 3\n"
    assert [one.name for one in home.iterdir()] == ["config.toml"]


def test_an_editor_that_is_not_there_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VISUAL", "no-such-editor-here")
    assert main(["config", "edit", "--home", str(home)]) != 0
    assert "no-such-editor-here" in capsys.readouterr().err


@pytest.mark.parametrize("said", ["vi 'half", "   "])
def test_an_editor_that_is_no_command_is_said(home: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("VISUAL", said)
    monkeypatch.setenv("EDITOR", "false")
    assert main(["config", "edit", "--home", str(home)]) == ConfigError("x").exit_code
    assert not (home / "config.toml").exists()


def test_an_edit_keeps_the_files_mode_and_goes_through_a_link(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "dotfiles.toml"
    kept.write_text("[provider]\nslots = 3\n")
    kept.chmod(0o600)
    (home / "config.toml").symlink_to(kept)
    editor(tmp_path, monkeypatch, "import sys; open(sys.argv[1], 'w').write('[provider]\\nslots = 7\\n')")
    assert main(["config", "edit", "--home", str(home)]) == 0
    assert (home / "config.toml").is_symlink()
    assert "slots = 7" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("where", ["nowhere/config.toml", "latin.toml", "huge.toml"])
def test_a_file_that_cannot_be_edited_is_said_in_a_sentence(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# \xff\n")
    (tmp_path / "huge.toml").write_text("# x\n" * 1_000_000)
    editor(tmp_path, monkeypatch, "pass")
    path = tmp_path / where
    assert main(["config", "edit", str(path), "--home", str(home)]) == ConfigError("x").exit_code
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("user_name", [None, "root"])
@pytest.mark.parametrize("devices", [False, True])
def test_systemd_finds_nothing_wrong_with_a_unit(
    tmp_path: Path, role: str, user_name: str | None, devices: bool
) -> None:
    unit = unit_text(
        role, home=tmp_path, command=[sys.executable, "-m", "cocoon", role], user_name=user_name, devices=devices
    )
    assert f"ReadWritePaths={tmp_path}" in unit
    assert "NoNewPrivileges=yes" in unit
    assert ("PrivateDevices=no" in unit) is devices
    findings = verify(unit, f"cocoon-{role}.service")
    if findings is None:
        pytest.skip("there is no systemd-analyze here")
    assert findings == []


def test_the_checker_would_find_a_wrong_unit(tmp_path: Path) -> None:
    unit = unit_text("node", home=tmp_path, command=["/no/such/program"], user_name=None, devices=False)
    findings = verify(unit.replace("NoNewPrivileges=yes", "NoSuchThing=yes"), "cocoon-node.service")
    if findings is None:
        pytest.skip("there is no systemd-analyze here")
    assert findings


def test_a_service_is_installed_shown_and_removed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    path = tmp_path / "xdg/systemd/user/cocoon-node.service"
    assert main(["service", "install", "node", "--home", str(home)]) == 0
    said = capsys.readouterr()
    assert str(path) in said.out
    assert "systemctl --user daemon-reload" in said.err
    assert f"Environment=COCOON_HOME={home}" in path.read_text()
    assert main(["service", "remove", "node"]) == 0
    assert not path.exists()
    assert main(["service", "remove", "node"]) != 0


def test_a_path_that_a_unit_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot use the path"):
        unit_text("node", home=tmp_path / "my home", command=["x"], user_name=None, devices=False)


@pytest.mark.parametrize("name", ["a\rb", "a\x00b", "a\x0bb"])
def test_a_control_character_in_a_path_cannot_write_into_a_unit(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot use the path"):
        unit_text("node", home=tmp_path / name, command=["x"], user_name=None, devices=False)


def test_a_dollar_in_the_homes_path_stays_one(tmp_path: Path) -> None:
    """systemd replaces `$` in commands only."""
    unit = unit_text("node", home=tmp_path / "a$b", command=["/x", "a$b"], user_name=None, devices=False)
    assert f"Environment=COCOON_HOME={tmp_path}/a$b\n" in unit
    assert f"ReadWritePaths={tmp_path}/a$b\n" in unit
    assert "ExecStart=/x a$$b\n" in unit


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "exit-with-parent" not in script


def test_bash_completes_commands_options_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        line = f"COMP_WORDS=(cocoon {' '.join(words)}); COMP_CWORD={len(words)}; _cocoon; echo ${{COMPREPLY[@]}}"
        done = subprocess.run([bash, "-c", script + line], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.split()

    assert completed("serv") == ["serve", "service"]
    assert completed("serve", "--pri") == ["--price-in", "--price-out"]
    assert completed("service", "ins") == ["install"]
