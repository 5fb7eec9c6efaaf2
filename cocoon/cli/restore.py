"""`cocoon restore FILE`: a home out of a backup. It signs nothing twice, and says what it left out for that."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import Home
from .backup import add_backup_arguments, read_passphrase, report_object, show_skipped
from .console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon restore`."""
    add_backup_arguments(parser, "what `cocoon backup` wrote")


def run(args: argparse.Namespace, console: Console) -> int:
    """Open it into an empty home."""
    from ..adapters.backup import read_backup

    home, source = Home.locate(args.home), Path(args.file).absolute()
    passphrase = read_passphrase(args, console, twice=False)
    console.progress("checking …")
    report = read_backup(source, home, passphrase)
    console.data({"home": str(home.path), **report_object(report)})
    console.line(f"{home.path}: {len(report.kept)} files")
    show_skipped(report, console, "mind")
    console.say(
        "Do not run the old home and this one side by side: two providers with one payout address lose vouchers."
    )
    return 0
