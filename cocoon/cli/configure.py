"""`cocoon config check|show|edit`: what the configuration says, whether it is right, and a safe way to change it."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from ..config import CONFIG_BYTES_MAX, CONFIG_FILE, Config, Home, parse_config
from ..errors import ConfigError
from .console import Console

EDITORS: Final = ("VISUAL", "EDITOR")
EDITOR: Final = "vi"

HEAD: Final = """\
# Cocoon's configuration. What is not said here has the value that stands in the comment.
# `cocoon config check` says what is wrong; options on the command line go over this file.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon config`."""
    parser.add_argument(
        "what",
        choices=("check", "show", "edit"),
        help="check: say what is wrong; show: every setting, defaults as comments; edit: open it in $EDITOR, and keep "
        "it only if it is right",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help=f"another file (default: HOME/{CONFIG_FILE})")
    parser.add_argument("--home", metavar="DIR", help="where keys, models and the database live")


def run(args: argparse.Namespace, console: Console) -> int:
    """0 when the configuration is right."""
    home = Home.locate(args.home)
    path = Path(args.file) if args.file else home.path / CONFIG_FILE
    if args.what == "edit":
        return _edit(path, home, console)
    config, is_there = _read(path, must_exist=bool(args.file))
    if args.what == "check":
        console.data({"file": str(path), "exists": is_there, "ok": True})
        console.line(f"{path}: right" if is_there else f"{path} does not exist; the defaults hold")
        return 0
    return _show(config, path, is_there, console)


def _read(path: Path, *, must_exist: bool) -> tuple[Config, bool]:
    try:
        with path.open("rb") as opened:
            data = opened.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"there is no file {path}") from None
        return Config(), False
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {CONFIG_BYTES_MAX} bytes")
    try:
        return parse_config(data.decode(), source=str(path)), True
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error


def _show(config: Config, path: Path, is_there: bool, console: Console) -> int:
    tree: dict[str, Any] = msgspec.to_builtins(config)
    plain: dict[str, Any] = msgspec.to_builtins(Config())
    console.data({"file": str(path), "exists": is_there, "config": tree})
    console.say(f"{path}" if is_there else f"{path} does not exist; these are the defaults")
    console.text(render(tree, plain))
    return 0


def render(tree: dict[str, Any], plain: dict[str, Any]) -> str:
    """A configuration as TOML. What is at its default is a comment, so that the text can be kept as a file."""
    lines: list[str] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            lines += ["", f"[{name}]", *(_line(key, one, plain[name][key]) for key, one in value.items())]
        else:
            lines.append(_line(name, value, plain[name]))
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any, default: Any) -> str:
    if value is None:
        return f"# {key} is not set"
    written = msgspec.json.encode(value).decode()  # strings, numbers, flags and lists of them are TOML as they are
    return f"# {key} = {written}" if value == default else f"{key} = {written}"


def _edit(path: Path, home: Home, console: Console) -> int:
    """Edit a copy; it replaces the file only when it is right, so that a running node never reads half a change."""
    home.create()
    path = path.resolve()  # behind a link the file itself is changed
    plain: dict[str, Any] = msgspec.to_builtins(Config())
    before = _text(path) if path.exists() else HEAD + render(plain, plain)
    command = _editor()
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".edit-") as folder:
            draft = Path(folder) / path.name
            draft.write_text(before)
            _edit_until_right(command, draft, console)
            if _text(draft) == before and path.exists():
                console.say("nothing was changed")
            else:
                draft.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o600)
                draft.replace(path)
                console.say(f"kept in {path}; restart what runs to use it")
    except OSError as error:
        raise ConfigError(f"cannot change {path}: {error.strerror}") from error
    console.data({"file": str(path), "ok": True})
    return 0


def _text(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            data = opened.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise ConfigError(f"{path} is larger than {CONFIG_BYTES_MAX} bytes")
        return data.decode()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error


def _editor() -> list[str]:
    """The user's own editor, by the user's own environment."""
    said = next((os.environ[name] for name in EDITORS if os.environ.get(name, "").strip()), EDITOR)
    try:
        return shlex.split(said)
    except ValueError as error:
        raise ConfigError(f"$EDITOR cannot be read as a command: {error}", advice="Set $EDITOR.") from error


def _edit_until_right(command: list[str], draft: Path, console: Console) -> None:
    while True:
        try:
            status = subprocess.run([*command, str(draft)], check=False).returncode  # noqa: S603 as `_editor` says
        except OSError as error:
            raise ConfigError(
                f"cannot start the editor {command[0]!r}: {error.strerror}", advice="Set $EDITOR."
            ) from error
        if status != 0:
            raise ConfigError(f"the editor ended with status {status}; nothing was changed")
        try:
            _read(draft, must_exist=True)
            return
        except ConfigError as error:
            console.explain_briefly(error)
            if not (console.is_terminal and _again()):
                raise ConfigError("the new text is not right; nothing was changed") from error


def _again() -> bool:
    try:
        return input("Edit again? [Y/n] ").strip().lower() not in ("n", "no")
    except EOFError:
        return False
