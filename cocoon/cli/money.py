"""What the money commands share: the wallet and its passphrase, the chain, and consent before anything leaves.

Rules: nothing is spent without a "y" on a terminal or `--yes`; mainnet needs `--unaudited-mainnet` as well; a
passphrase comes from a file, the environment or the terminal, never from an argument; words and keys are never logged.
What was decided is on disk before the chain is told (`cocoon.adapters.ton.journal`, `kept`), so every command can be
killed and run again.

Not here: the commands (`wallet`, `account`, `stake`, `claims`, `earnings`), how money looks (`money_views`).
"""

from __future__ import annotations

import argparse
import getpass
import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from ..api import paying
from ..errors import ConfigError, Unavailable
from ..ports.chain import Chain, ChainTransaction, Head, Transfer
from ..types import Nano, Network, Secret, ton
from .console import Console
from .options import PASSPHRASE_VARIABLE, Setup, add_chain, add_common, add_passphrase, setup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..adapters.ton.sending import ChainWallet
    from ..adapters.ton.wallet import WalletKey

SECRET_BYTES_MAX: Final = 1_024  # of a passphrase; the wallet file has its own bounds
WATCH_EVERY_S: Final = 2.0  # between two lines of progress


def add_money(parser: argparse.ArgumentParser, *, spends: bool) -> None:
    """Arguments of a money command."""
    if spends:
        parser.add_argument("--yes", action="store_true", help="do not ask before spending")
        add_passphrase(parser)
    add_chain(parser)
    add_common(parser)


def add_output(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--debug` after the second word, too."""
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="machine-readable output")
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")


def desk(args: argparse.Namespace, console: Console, **changes: object) -> Desk:
    """The desk that a money command works at."""
    return Desk(prepared=setup(args, **changes), console=console, is_agreed=bool(getattr(args, "yes", False)))


def is_interactive() -> bool:
    """A person is there to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def amount(text: str) -> Nano:
    """More than nothing. Raises `ConfigError`."""
    value = ton(text)
    if value == 0:
        raise ConfigError("an amount of nothing", advice="Amounts are in TON, such as 0.5.")
    return value


@dataclass(slots=True, kw_only=True)
class Desk:
    """One command's home, network, console and consent."""

    prepared: Setup
    console: Console
    is_agreed: bool

    @property
    def network(self) -> Network:
        """The network that the command works on."""
        return self.prepared.config.network_id

    @property
    def wallet_path(self) -> Path:
        """The wallet's file."""
        return self.prepared.home.wallet_path(self.network)

    # --- consent -------------------------------------------------------------------------------------------

    def needs_consent(self) -> None:
        """Refuse at once what could not be agreed to later. Raises `ConfigError`."""
        check_mainnet(self.prepared)
        if not self.is_agreed and not is_interactive():
            raise ConfigError(
                "this spends coins, and there is no terminal to ask on", advice="Run it in a terminal, or add --yes."
            )

    async def agree(self, *lines: str) -> None:
        """Say what will happen, and go on only if it is wanted. Raises `ConfigError`."""
        if self.network is Network.MAINNET:
            self.console.notice(paying.UNAUDITED)
        for line in lines:
            self.console.say(line)
        if self.is_agreed:
            return
        self.console.notice(f"On {self.network.label}. Go on? [y/N]")
        answer = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)  # type: ignore[call-arg]
        if answer.strip().lower() not in ("y", "yes"):
            raise ConfigError("not agreed to", advice="Nothing was sent.")

    # --- the wallet ----------------------------------------------------------------------------------------

    def owner(self) -> bytes:
        """The wallet's account id, without a passphrase. Raises `ConfigError`."""
        from ..adapters.ton.wallet_file import read_wallet_head

        return read_wallet_head(self.wallet_path).account

    def unlock(self) -> WalletKey:
        """The wallet's key. Asks on the terminal, so call it before trio runs. Raises `ConfigError`."""
        from ..adapters.ton.wallet_file import open_wallet

        return open_wallet_with(self.prepared, open_wallet)

    def sender(self, key: WalletKey, chain: Chain) -> ChainWallet:
        """The wallet, which finishes what a killed command began and shows what it waits for."""
        from ..adapters.ton.journal import FileJournal
        from ..adapters.ton.sending import ChainWallet

        return ChainWallet(
            key, chain, journal=FileJournal(self.wallet_path), watch=self.watch(), tell=self.console.notice
        )

    def watch(self) -> Callable[[Head], None]:
        """Tells which block is waited for, now and then."""
        shown = [-WATCH_EVERY_S]

        def show(head: Head) -> None:
            if time.monotonic() - shown[0] >= WATCH_EVERY_S:
                shown[0] = time.monotonic()
                self.console.progress(f"waiting for block {head.seqno + 1} …")

        return show

    async def send(
        self,
        wallet: ChainWallet,
        chain: Chain,
        transfers: Sequence[Transfer],
        *,
        errors: Mapping[int, str],
        purpose: str = "",
    ) -> ChainTransaction:
        """Send to our contracts and see that they took it; the wallet's transaction.

        Raises what the contract, the wallet or the chain say.
        """
        from ..adapters.ton.outcome import send_and_see

        return await send_and_see(chain, wallet, tuple(transfers), errors=errors, purpose=purpose, watch=self.watch())

    # --- running -------------------------------------------------------------------------------------------

    def run(self, program: Callable[[Chain], Awaitable[None]]) -> int:
        """Run it with the chain; the exit code."""
        from .running import run_program

        async def main() -> None:
            async with opened_chain(self.prepared) as chain:
                try:
                    await program(chain)
                except Unavailable as error:
                    if self.network is Network.DEVNET and not error.advice:
                        error.advice = "Is `cocoon devnet` running, with the same --home? A new one is a new chain."
                    raise

        return run_program(main, is_service=False)


def check_mainnet(prepared: Setup) -> None:
    """Raises `ConfigError` on mainnet, unless it was asked for in so many words."""
    paying.check_mainnet(prepared.config)


# --- the chain -------------------------------------------------------------------------------------------


@asynccontextmanager
async def opened_chain(prepared: Setup) -> AsyncIterator[Chain]:
    """The chain that the configuration names. Raises `ConfigError`; nothing is connected yet."""
    async with paying.opened_chain(prepared.home, prepared.config) as chain:
        yield chain


# --- passphrases -----------------------------------------------------------------------------------------


def open_wallet_with(prepared: Setup, opened: Callable[..., WalletKey]) -> WalletKey:
    """The key of the home's wallet, with the passphrase from wherever it is. Raises `ConfigError`."""
    from ..adapters.ton.wallet_file import read_wallet_head

    path = prepared.home.wallet_path(prepared.config.network_id)
    read_wallet_head(path)  # says that there is no wallet before it asks for a passphrase
    return opened(path, passphrase=passphrase(prepared, "the wallet's passphrase: "))


def passphrase(prepared: Setup, question: str, *, is_new: bool = False) -> Secret:
    """From `--passphrase-file`, the environment, or the terminal. Raises `ConfigError`."""
    chosen = prepared.config.wallet.passphrase_path
    if chosen is not None:
        return Secret(_secret_file(Path(chosen).expanduser()))
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given:
        return Secret(os.fsencode(given))
    if not is_interactive():
        raise ConfigError(
            "the wallet's passphrase is needed, and there is no terminal to ask on",
            advice=f"Pass --passphrase-file FILE, or set {PASSPHRASE_VARIABLE}.",
        )
    typed = getpass.getpass(question)
    if is_new and getpass.getpass("the same again: ") != typed:
        raise ConfigError("the two passphrases differ", advice="Nothing was written; try again.")
    return Secret(typed.encode())


def _secret_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                raise ConfigError(f"{path} can be read by others", advice=f"Run: chmod 600 {path}")
            data = file.read(SECRET_BYTES_MAX + 2)
    except OSError as error:
        raise ConfigError(f"the passphrase file {path} cannot be read: {error.strerror}") from error
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if not line or len(line) > SECRET_BYTES_MAX:
        raise ConfigError(f"{path} does not hold a passphrase", advice="It has one line of 8 to 1,024 bytes.")
    return line
