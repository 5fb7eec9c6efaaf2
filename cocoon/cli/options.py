"""Arguments that several commands share, and how they become a `Config`: command line over file over defaults."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Final

from ..config import Config, Home, override
from ..errors import ConfigError
from ..logs import LEVELS, configure
from ..trust import LABELS, TrustPolicy, from_label
from ..types import Network

PASSPHRASE_VARIABLE: Final = "COCOON_WALLET_PASSPHRASE"  # noqa: S105 - the name of a variable

SPENT_FILE: Final = "spent-today.json"  # what a day has cost, for the gateway and `chat` of one home


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What every networked command starts from."""

    home: Home
    config: Config
    log_level: str


def add_common(parser: argparse.ArgumentParser) -> None:
    """Home, network, logs."""
    parser.add_argument("--home", metavar="DIR", help="where keys, models and the database live")
    parser.add_argument(
        "--network", choices=[network.label for network in Network], help="which network (default: devnet)"
    )
    parser.add_argument("--log-level", choices=LEVELS, default="warning", help="default: warning")
    parser.add_argument("--exit-with-parent", action="store_true", help=argparse.SUPPRESS)


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    """The way into the network."""
    parser.add_argument(
        "--bootstrap",
        metavar="MULTIADDR",
        action="append",
        help="a peer to start from, such as /ip4/127.0.0.1/tcp/4642/p2p/12D3KooW…; repeatable",
    )


def add_listen(parser: argparse.ArgumentParser) -> None:
    """Where others reach us."""
    parser.add_argument("--listen", metavar="MULTIADDR", action="append", help="listen here; repeatable")
    parser.add_argument(
        "--announce", metavar="MULTIADDR", action="append", help="tell others this address instead; repeatable"
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """What providers must prove."""
    parser.add_argument(
        "--trust",
        metavar="LEVEL",
        help=f"what providers must prove, no default: {', '.join(LABELS)} (open: their operators can read the prompt)",
    )


def add_chain(parser: argparse.ArgumentParser) -> None:
    """How the TON chain is reached."""
    parser.add_argument(
        "--chain-config",
        metavar="FILE",
        help="TON's global configuration (default: HOME/NETWORK/global.config.json, which `cocoon devnet` writes)",
    )
    parser.add_argument(
        "--chain-trust",
        type=int,
        choices=(0, 1),
        help="1: two liteservers must agree (default); 0: every block is proven by validators' signatures",
    )


def add_account(parser: argparse.ArgumentParser) -> None:
    """What a client pays from."""
    parser.add_argument(
        "--no-account",
        action="store_const",
        const="none",
        dest="account",
        help="use free offers only (default: pay from this home's spending account, if there is one)",
    )
    parser.add_argument(
        "--unaudited-mainnet",
        action="store_true",
        default=None,
        help="use coins of value, although nothing here was audited",
    )


def add_passphrase(parser: argparse.ArgumentParser) -> None:
    """How the wallet is opened."""
    parser.add_argument(
        "--passphrase-file",
        metavar="FILE",
        help=f"holds the wallet's passphrase (default: ${PASSPHRASE_VARIABLE}, or the terminal)",
    )
    parser.add_argument(
        "--unaudited-mainnet",
        action="store_true",
        default=None,
        help="use coins of value, although nothing here was audited",
    )


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Prometheus."""
    parser.add_argument(
        "--metrics-port", type=int, metavar="N", help="serve /metrics for Prometheus on 127.0.0.1 (default: not)"
    )


def setup(args: argparse.Namespace, **changes: object) -> Setup:
    """Read the home's configuration and put the arguments, and `changes` (`section__key`), over it."""
    log_level = "debug" if args.debug else args.log_level
    configure(level=log_level)
    if args.exit_with_parent:
        from .running import exit_with_parent

        exit_with_parent()
    home = Home.locate(args.home)
    named = {
        "network": args.network,
        "peer.bootstrap": getattr(args, "bootstrap", None),
        "peer.listen": getattr(args, "listen", None),
        "peer.announce": getattr(args, "announce", None),
        "metrics.port": getattr(args, "metrics_port", None),
        "client.trust": getattr(args, "trust", None),
        "client.account": getattr(args, "account", None),
        "chain.config_path": getattr(args, "chain_config", None),
        "chain.trust_level": getattr(args, "chain_trust", None),
        "wallet.passphrase_path": getattr(args, "passphrase_file", None),
        "wallet.unaudited_mainnet": getattr(args, "unaudited_mainnet", None),
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return Setup(home=home, config=override(home.read_config(), named), log_level=log_level)


def chosen_trust(config: Config) -> TrustPolicy:
    """The client's policy. Raises `ConfigError` when none was chosen."""
    return from_label(config.client.trust)


def needed_bootstrap(config: Config) -> tuple[str, ...]:
    """The bootstrap addresses. Raises `ConfigError` when there is none."""
    if not config.peer.bootstrap:
        raise ConfigError(
            "no bootstrap address is known, so there is no way into the network",
            advice="Pass --bootstrap MULTIADDR (`cocoon demo` and `cocoon node` print theirs), or start a network of "
            "your own with `cocoon demo`.",
        )
    return config.peer.bootstrap
