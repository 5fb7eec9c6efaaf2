"""`cocoon backup FILE`: the home in one sealed file. It may run beside a node."""

from __future__ import annotations

import argparse
import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..config import Home
from ..errors import ConfigError
from ..types import Secret
from .console import Console

if TYPE_CHECKING:
    from ..adapters.backup import BackupReport

PASSPHRASE_BYTES_MAX: Final = 1_024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon backup`."""
    add_backup_arguments(parser, "where to write it; it must not exist")


def add_backup_arguments(parser: argparse.ArgumentParser, file_help: str) -> None:
    """What `backup` and `restore` share."""
    parser.add_argument("file", metavar="FILE", help=file_help)
    parser.add_argument(
        "--passphrase-file", metavar="FILE", help="holds the passphrase of the backup (default: the terminal)"
    )
    parser.add_argument("--home", metavar="DIR", help="where keys, models and the database live")


def run(args: argparse.Namespace, console: Console) -> int:
    """Write it."""
    from ..adapters.backup import write_backup

    home, target = Home.locate(args.home), Path(args.file).absolute()
    passphrase = read_passphrase(args, console, twice=True)
    console.progress("sealing …")
    report = write_backup(home, target, passphrase)
    console.data({"file": str(target), "bytes": target.stat().st_size, **report_object(report)})
    console.line(f"{target}: {target.stat().st_size:,} bytes, {len(report.kept)} files")
    show_skipped(report, console, "left out")
    console.say("Keep the passphrase apart from the file; without it the file opens for nobody.")
    return 0


def read_passphrase(args: argparse.Namespace, console: Console, *, twice: bool) -> Secret:
    """From the file that was named, or asked for. Raises `ConfigError`."""
    from .money import is_interactive

    if args.passphrase_file:
        try:
            with open(args.passphrase_file, "rb") as file:
                data = file.read(PASSPHRASE_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(f"cannot read {args.passphrase_file}: {error.strerror}") from error
        if len(data) > PASSPHRASE_BYTES_MAX:
            raise ConfigError(f"the passphrase in {args.passphrase_file} is longer than {PASSPHRASE_BYTES_MAX} bytes")
        return Secret(data.rstrip(b"\r\n"))
    if not is_interactive():
        raise ConfigError("there is no terminal to ask for the passphrase", advice="Pass --passphrase-file FILE.")
    first = getpass.getpass("Passphrase of the backup: ")
    if twice and getpass.getpass("Once more: ") != first:
        raise ConfigError("the two passphrases differ", advice="Nothing was written.")
    return Secret(first.encode())


def report_object(report: BackupReport) -> dict[str, object]:
    """For `--json`."""
    return {"kept": list(report.kept), "skipped": [{"name": name, "why": why} for name, why in report.skipped]}


def show_skipped(report: BackupReport, console: Console, word: str) -> None:
    """One line each."""
    for name, why in report.skipped:
        console.say(f"{word}: {name} – {why}")
