"""The `cocoon` command: finds the subcommand, runs it, and turns every outcome into an exit code.

One file per command, imported only when it is asked for: `cocoon --help` must not pay for libp2p. A command module has

    def add_arguments(parser: argparse.ArgumentParser) -> None: ...
    def run(args: argparse.Namespace, console: Console) -> int: ...

and needs no error handling of its own: it raises `CocoonError`, and this file prints what happened and what to do.

Data goes to standard output, talk to standard error. Exit codes: 0 done, 1 failed, 2 usage, 3 trust refused, 4 funds,
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final, NoReturn

from .console import Console

EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: the module that holds it, and one line for the list."""

    module: str
    summary: str


COMMANDS: Final = {
    "demo": Command("demo", "a whole network on this machine: three providers and a gateway"),
    "chat": Command("chat", "talk to a model in the terminal"),
    "gateway": Command("gateway", "an OpenAI-compatible API on this machine, answered by the network"),
    "serve": Command("serve", "offer a model to the network"),
    "node": Command("node", "a plain peer: bootstrap, DHT, gossip and relay for others"),
    "offers": Command("offers", "what the network offers: models, prices, speed"),
    "peers": Command("peers", "who we are connected to, and why others could not be reached"),
    "status": Command("status", "what runs here, how others reach it, what it earns, and why it idles"),
    "top": Command("top", "the same, live"),
    "why": Command("why", "why a request went where it went, what it cost, and what failed on the way"),
    "wallet": Command("wallet", "the wallet that deposits, stakes and is paid: create, import, show, send"),
    "account": Command("account", "the spending account that pays providers: open, topup, status, withdraw"),
    "stake": Command("stake", "what an operator loses by lying: deposit, status, unbond, withdraw, rotate, slash"),
    "earnings": Command("earnings", "what this provider earned, by day, client or model"),
    "claims": Command("claims", "vouchers that this provider holds, and what the chain has paid of them"),
    "bench": Command("bench", "what the network adds to an engine, measured beside nginx and LiteLLM"),
    "devnet": Command("devnet", "a local TON chain on the real virtual machine, with a faucet"),
    "verify": Command("verify", "check saved evidence offline, and say which check failed"),
    "config": Command("configure", "check, show or edit the configuration"),
    "service": Command("service", "run it as a system service: a hardened systemd unit"),
    "backup": Command("backup", "this home in one sealed file"),
    "restore": Command("restore", "a home out of a backup, without signing anything twice"),
    "completion": Command("completion", "a script that completes commands and options in your shell"),
    "doctor": Command("doctor", "what this machine lacks to prove itself to clients, each with its fix"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Never raises an error of the program itself."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output has left (`cocoon offers | head`). Python would complain again while exiting.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(words: list[str]) -> int:
    if words and words[0] in ("-V", "--version"):
        from .. import __version__

        print(f"cocoon {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else EXIT_USAGE
    name = words[0]
    if name not in COMMANDS:
        return _unknown(name)
    return _run(name, words[1:])


def overview() -> str:
    """The page that `cocoon --help` prints."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return f"""\
usage: cocoon COMMAND [options]

A peer-to-peer market for confidential AI inference.

{lines}

Start with `cocoon demo`. `cocoon COMMAND --help` explains a command; every one takes --json.
Exit codes: 0 done, 1 failed, 2 usage, 3 trust refused, 4 funds."""


def _run(name: str, words: list[str]) -> int:
    parser = _Parser(prog=f"cocoon {name}", description=COMMANDS[name].summary.capitalize() + ".")
    parser.add_argument("--json", action="store_true", help="machine-readable output; streams: one object per line")
    parser.add_argument("--debug", action="store_true", help="show tracebacks, and every log event")
    console = Console(json_output="--json" in words)  # known before parsing, for usage errors
    debug = "--debug" in words
    try:
        module = import_module(f".{COMMANDS[name].module}", __name__)
        module.add_arguments(parser)
        args = parser.parse_args(words)
        return int(module.run(args, console))
    except SystemExit as error:  # argparse: --help, or a usage error that it has already explained
        return error.code if isinstance(error.code, int) else EXIT_USAGE
    except BrokenPipeError:
        raise  # no failure of the command: `main` knows what it means
    except BaseException as error:  # the outermost boundary of the program: every failure becomes one explanation
        if debug:
            import traceback

            traceback.print_exception(error)
        return console.explain(error)


class _Parser(argparse.ArgumentParser):
    """argparse, with the errors in our words and as JSON on demand."""

    def error(self, message: str) -> NoReturn:
        from ..errors import ConfigError

        raise ConfigError(message, advice=f"See `{self.prog} --help`.")


def _unknown(name: str) -> int:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"Did you mean `cocoon {near[0]}`?" if near else "See `cocoon --help`."
    print(f"cocoon: no such command: {name[:40]!r}\n{hint}", file=sys.stderr)
    return EXIT_USAGE
