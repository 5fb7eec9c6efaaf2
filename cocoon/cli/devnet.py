"""`cocoon devnet`: a local TON chain on the real virtual machine, for development and tests.

It prints the standard configuration file that any TON client can start from, and a faucet wallet. Its coins are worth
nothing. With `--control`, standard input takes one command a line: `block`, `advance SECONDS`, `mint ADDRESS TON`,
`faults SERVER JSON`, `fork` (a liar's server: its answer holds a configuration with an honest server beside it).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .console import Console
from .options import add_common, setup

if TYPE_CHECKING:
    from ..adapters.devnet.devnet import Devnet, DevnetSettings

CONTROL_LINE_MAX: Final = 4_096  # characters
BLOCK_TIME_MIN_S: Final = 0.05
FAULTS: Final = ("delay_s", "drop_connections", "silent", "error_code", "only", "stale_at", "lie")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon devnet`."""
    add_common(parser)
    parser.add_argument("--port", type=int, default=0, metavar="N", help="the first liteserver's port (default: any)")
    parser.add_argument("--servers", type=int, default=2, metavar="N", help="liteservers (default: 2)")
    parser.add_argument("--block-time", type=float, default=1.0, metavar="S", help="seconds a block (default: 1)")
    parser.add_argument("--on-demand", action="store_true", help="a block with each message instead")
    parser.add_argument(
        "--prices", choices=("2026-06", "2025-12"), default="2026-06", help="mainnet's gas prices as of then"
    )
    parser.add_argument("--state", metavar="FILE", help="keep the chain in this file, and go on from it")
    parser.add_argument("--packages", metavar="DIR", help="where the npm packages are kept (default: HOME/devnet/npm)")
    parser.add_argument("--control", action="store_true", help="take commands on standard input")


def run(args: argparse.Namespace, console: Console) -> int:
    """Until Ctrl-C."""
    from ..errors import ConfigError
    from ..types import Network

    if args.control:
        args.exit_with_parent = False  # both read standard input; its end ends the commands, and us
    prepared = setup(args)
    if args.network not in (None, Network.DEVNET.label):
        raise ConfigError("a devnet is a devnet", advice="Leave out --network.")
    if not 0 <= args.port <= 65_535 or not 1 <= args.servers <= 6 or not args.block_time >= BLOCK_TIME_MIN_S:
        raise ConfigError(
            f"a port is at most 65535, there are 1 to 6 servers, and a block takes at least {BLOCK_TIME_MIN_S} s"
        )
    from ..adapters.devnet.devnet import DevnetSettings
    from .running import run_program

    settings = DevnetSettings(
        block_time_s=None if args.on_demand else args.block_time,
        prices=args.prices,
        port=args.port,
        servers=args.servers,
        state_path=None if args.state is None else Path(args.state),
    )
    home = prepared.home.create().path
    packages = home / "devnet" / "npm" if args.packages is None else Path(args.packages)
    return run_program(lambda: _serve(settings, home, packages, console, takes_commands=args.control), is_service=True)


async def _serve(
    settings: DevnetSettings, home: Path, packages: Path, console: Console, *, takes_commands: bool
) -> int:
    import trio

    from ..adapters.devnet.devnet import open_devnet
    from ..errors import ConfigError

    try:
        async with open_devnet(settings, cache=packages, progress=console.progress) as devnet:
            _show(devnet, home, console)
            if takes_commands:
                await _take_commands(devnet, console)
            else:
                await trio.sleep_forever()
    except* OSError as errors:
        reason = next((error for error in errors.exceptions if isinstance(error, OSError)), None)
        text = "" if reason is None else f": {reason.strerror}"
        raise ConfigError(f"the devnet cannot listen on port {settings.port}{text}") from errors
    return 0


def _show(devnet: Devnet, home: Path, console: Console) -> None:
    from ..adapters.devnet.devnet import FAUCET_NANO
    from ..adapters.ton.cells import friendly
    from ..types import format_ton

    config = devnet.global_config()
    file = home / "devnet" / "global.config.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config, indent=2) + "\n")
    address = friendly(devnet.faucet.account, is_bounceable=False, is_test=True)
    balance_nano = devnet.blocks.ledger.balance_nano(devnet.faucet.account)
    console.data(
        {
            "event": "ready",
            "config": config,
            "config_path": str(file),
            "network": int(devnet.settings.network),
            "faucet": {
                "address": address,
                "account": devnet.faucet.account.hex(),
                "words": " ".join(devnet.words),
                "balance_nano": balance_nano,
            },
        }
    )
    console.line(json.dumps(config, indent=2))
    console.notice("The devnet is up. Its coins are worth nothing; Ctrl-C ends it.")
    console.say(f"configuration   {file}")
    console.say(f"faucet          {address} ({format_ton(balance_nano)} of {format_ton(FAUCET_NANO)} TON)")
    console.say(f"faucet's words  {' '.join(devnet.words)}")


async def _take_commands(devnet: Devnet, console: Console) -> None:
    import trio

    while line := await trio.to_thread.run_sync(  # type: ignore[call-arg]  # libp2p's older types
        sys.stdin.readline, CONTROL_LINE_MAX, abandon_on_cancel=True
    ):
        words = line.split(maxsplit=2)
        if words:
            answer = await _command(devnet, words)
            console.data(answer)
            console.line(json.dumps(answer))


async def _command(devnet: Devnet, words: list[str]) -> dict[str, Any]:
    """One command's answer; a wrong one changes nothing."""
    from ..errors import CocoonError, ConfigError
    from ..types import ton

    try:
        match words:
            case ["block"]:
                await devnet.close_block()
            case ["advance", seconds] if seconds.isdigit() and len(seconds) < 10:
                await devnet.advance(int(seconds))
            case ["mint", address, amount]:
                await devnet.mint(_account(address), ton(amount))
            case ["faults", index, text] if index.isdigit() and int(index) < len(devnet.servers):
                _set_faults(devnet, int(index), text)
            case ["fork"]:
                return await _fork(devnet)
            case _:
                raise ConfigError("fork | block | advance SECONDS | mint ADDRESS TON | faults SERVER JSON")
    except CocoonError as error:
        return {"error": {"code": error.code, "message": str(error)}}
    last = devnet.blocks.last
    return {"event": words[0], "seqno": last.master.seqno, "time_s": last.now_s}


async def _fork(devnet: Devnet) -> dict[str, Any]:
    """A server with a chain of its own, and a configuration that names it beside an honest one."""
    await devnet.fork()
    await devnet.close_block()  # from here on the two contradict one another
    config = devnet.global_config()
    servers = config["liteservers"]
    return {"event": "fork", "config": {**config, "liteservers": [servers[0], servers[-1]]}}


def _account(text: str) -> bytes:
    from pytoniq_core import Address

    from ..errors import ConfigError

    try:
        address = Address(text)
    except Exception as error:  # the address parser raises whatever it trips over
        raise ConfigError("not a TON address") from error
    if address.wc != 0:
        raise ConfigError("only the basechain is here")
    return bytes(address.hash_part)


def _set_faults(devnet: Devnet, index: int, text: str) -> None:
    from ..adapters.devnet.faults import Lie
    from ..errors import ConfigError

    try:
        wanted = json.loads(text)
        assert isinstance(wanted, dict) and set(wanted) <= set(FAULTS)
        if wanted.get("lie") is not None:
            wanted["lie"] = Lie(wanted["lie"])
        if "only" in wanted:
            wanted["only"] = frozenset(map(str, wanted["only"]))
    except (ValueError, AssertionError, TypeError, RecursionError) as error:
        raise ConfigError(f"faults are a JSON object of {', '.join(FAULTS)}") from error
    faults = devnet.servers[index].queries.faults
    for name, value in wanted.items():
        setattr(faults, name, value)
