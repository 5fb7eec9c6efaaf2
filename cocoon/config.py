"""Settings: TOML text in, frozen values out; and where a person's files live.

Rules: unknown keys are refused with the nearest known one; every number has its unit in its name; amounts of TON
are strings; secrets are given by path only, so that a configuration can be shown to anybody.

The command line goes over the file, the file over the defaults below. Nothing here reads the network, and only
`Home` touches the disk.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from .errors import ConfigError
from .types import Network, ton

CONFIG_FILE: Final = "config.toml"
CONFIG_BYTES_MAX: Final = 256 * 1024  # a configuration is a page; this stops reading a disk image by mistake
HOME_VARIABLE: Final = "COCOON_HOME"

GATEWAY_PORT: Final = 8642
PUBLIC_LISTEN: Final = "/ip4/0.0.0.0/tcp/4642"
ENGINES: Final = ("auto", "llama.cpp", "exllamav3", "exllamav2", "upstream")
LOOPBACK_LISTEN: Final = "/ip4/127.0.0.1/tcp/0"


class PeerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this peer meets others."""

    bootstrap: tuple[str, ...] = ()  # multiaddrs that end in /p2p/<peer>
    listen: tuple[str, ...] | None = None  # None: loopback on the devnet, PUBLIC_LISTEN elsewhere
    announce: tuple[str, ...] = ()  # what to tell others instead, behind NAT
    relay: bool = False  # relay for others, within limits


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client demands. `trust` has no default (`cocoon.trust`)."""

    trust: str | None = None
    account: str = "auto"  # auto: pay from this home's spending account, if there is one; none: free offers only


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The OpenAI-compatible API."""

    host: str = "127.0.0.1"
    port: int = GATEWAY_PORT
    api_key_path: str | None = None  # None: `gateway.key` in the home, made on first use with mode 0600
    spend_request_max_ton: str = "0.02"  # one request
    spend_day_max_ton: str = "1"  # all requests of one day together


class ProviderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a provider serves, and for how much. Prices are TON per million tokens."""

    model: str | None = None
    price_input_ton: str = "0"
    price_output_ton: str = "0"
    engine: str = "auto"  # llama.cpp, exllamav3, exllamav2, upstream; auto: by the model's form
    upstream_url: str | None = None  # an inference server on this machine
    upstream_model: str | None = None  # its name there, if the server has several
    upstream_key_path: str | None = None  # a file with the server's key
    slots: int = 4  # requests that decode at once
    context_tokens: int | None = None  # None: what the model was trained for
    threads: int | None = None  # None: the engine chooses
    region: str = ""
    tee: str = "none"  # none, simulated (devnet), tdx, tdx+gpu: what this machine can prove
    image: str | None = None  # hex digests of what a TDX guest measured into RTMR3
    config_digest: str | None = None
    payout: str | None = None  # who is paid: `wallet`, or an address; None: nobody, whatever the prices say
    stake: bool = False  # name this home's stake in offers


class ChainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the TON chain is reached and believed."""

    config_path: str | None = None  # a global configuration; None: see `Home.chain_config_path`
    trust_level: int = 1  # 0: validators' signatures from the init block on; 1: two servers agree


class WalletConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The wallet of this home."""

    passphrase_path: str | None = None  # a file of mode 0600; None: the environment, or the terminal
    unaudited_mainnet: bool = False  # spend coins of value although nothing here was audited


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prometheus's page of a provider or a node. A gateway has it on its own port."""

    host: str = "127.0.0.1"
    port: int | None = None  # None: no page; 0 takes a free one


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that a configuration file can say."""

    network: str = "devnet"
    peer: PeerConfig = PeerConfig()
    client: ClientConfig = ClientConfig()
    gateway: GatewayConfig = GatewayConfig()
    provider: ProviderConfig = ProviderConfig()
    chain: ChainConfig = ChainConfig()
    wallet: WalletConfig = WalletConfig()
    metrics: MetricsConfig = MetricsConfig()

    @property
    def network_id(self) -> Network:
        """The network as a value."""
        return Network.from_label(self.network)

    @property
    def listen(self) -> tuple[str, ...]:
        """Where to listen, with the network's default."""
        if self.peer.listen is not None:
            return self.peer.listen
        return (LOOPBACK_LISTEN,) if self.network_id is Network.DEVNET else (PUBLIC_LISTEN,)


def parse_config(text: str, *, source: str = CONFIG_FILE) -> Config:
    """The configuration that `text` (TOML) describes. Raises `ConfigError` that names `source` and the key."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}", advice="Correct that line.") from error
    _refuse_unknown(tree, Config, source=source, path="")
    try:
        config = msgspec.convert(tree, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}", advice="See `docs/getting-started.md` for every key.") from error
    return checked(config, source=source)


def checked(config: Config, *, source: str = "command line") -> Config:
    """`config` itself, once everything in it has been parsed for good. Raises `ConfigError`."""
    Network.from_label(config.network)
    if not 0 <= config.gateway.port <= 65535:
        raise ConfigError(f"{source}: port {config.gateway.port} is out of range", advice="Use 1 to 65535, or 0.")
    if config.metrics.port is not None and not 0 <= config.metrics.port <= 65535:
        raise ConfigError(f"{source}: metrics port {config.metrics.port} is out of range", advice="Use 1 to 65535.")
    for name, amount in (
        ("gateway.spend_request_max_ton", config.gateway.spend_request_max_ton),
        ("gateway.spend_day_max_ton", config.gateway.spend_day_max_ton),
        ("provider.price_input_ton", config.provider.price_input_ton),
        ("provider.price_output_ton", config.provider.price_output_ton),
    ):
        try:
            ton(amount)
        except ConfigError as error:
            raise ConfigError(f"{source}: {name}: {error}", advice=error.advice) from error
    if config.chain.trust_level not in (0, 1):
        raise ConfigError(f"{source}: chain.trust_level is 0 or 1, not {config.chain.trust_level}")
    if config.provider.engine not in ENGINES:
        raise ConfigError(
            f"{source}: provider.engine is one of {', '.join(ENGINES)}, not {config.provider.engine[:40]!r}"
        )
    if config.client.account not in ("auto", "none"):
        raise ConfigError(f"{source}: client.account is auto or none, not {config.client.account[:40]!r}")
    for name, number, most in (
        ("provider.slots", config.provider.slots, 1_024),  # the offer's field; engines stop far below
        ("provider.context_tokens", config.provider.context_tokens, 16_777_216),
        ("provider.threads", config.provider.threads, 4_096),
    ):
        if number is not None and not 1 <= number <= most:
            raise ConfigError(f"{source}: {name} must be from 1 to {most}, not {number}")
    return config


def override(config: Config, changes: Mapping[str, Any], *, source: str = "command line") -> Config:
    """`config` with dotted keys (`"peer.bootstrap"`) replaced; a value of None changes nothing."""
    tree = msgspec.to_builtins(config)
    for dotted, value in changes.items():
        if value is None:
            continue
        *sections, key = dotted.split(".")
        target = tree
        for section in sections:
            target = target[section]
        target[key] = value
    try:
        return checked(msgspec.convert(tree, Config, strict=True), source=source)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error


def _refuse_unknown(tree: Mapping[str, Any], struct: type[msgspec.Struct], *, source: str, path: str) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in tree.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            advice = f"Did you mean {path + near[0]!r}?" if near else f"Known here: {', '.join(sorted(fields))}."
            raise ConfigError(f"{source}: unknown key {(path + key)[:80]!r}", advice=advice)
        kind = fields[key]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
            _refuse_unknown(value, kind, source=source, path=f"{path}{key}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The directory that holds a person's keys, database, models and configuration. Mode 0700."""

    path: Path

    @staticmethod
    def locate(chosen: str | os.PathLike[str] | None = None) -> Home:
        """`chosen`, else $COCOON_HOME, else the platform's data directory. Creates nothing."""
        if chosen is None:
            chosen = os.environ.get(HOME_VARIABLE) or None
        if chosen is None:
            import platformdirs

            chosen = platformdirs.user_data_dir("cocoon", appauthor=False)
        return Home(path=Path(chosen).expanduser().absolute())

    def create(self) -> Home:
        """Make sure that it exists and is ours alone. Raises `ConfigError`."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot use {self.path} as home: {error.strerror}", advice="Choose another with --home DIR."
            ) from error
        return self

    def read_config(self) -> Config:
        """The configuration in this home; the defaults when there is none. Raises `ConfigError`."""
        file = self.path / CONFIG_FILE
        try:
            with file.open("rb") as opened:
                data = opened.read(CONFIG_BYTES_MAX + 1)
        except FileNotFoundError:
            return Config()
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        if len(data) > CONFIG_BYTES_MAX:
            raise ConfigError(f"{file} is larger than {CONFIG_BYTES_MAX} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} is not UTF-8 text") from error
        return parse_config(text, source=str(file))

    @property
    def peer_key_path(self) -> Path:
        """A plain node's identity. Providers and clients make theirs anew at every start."""
        return self.path / "node.key"

    @property
    def operator_key_path(self) -> Path:
        """The operator key O."""
        return self.path / "operator.key"

    def wallet_path(self, network: Network) -> Path:
        """The wallet's sealed words."""
        return self.path / f"wallet.{network.label}.json"

    def account_path(self, network: Network) -> Path:
        """Which spending account is ours."""
        return self.path / f"account.{network.label}.json"

    def voucher_key_path(self, network: Network) -> Path:
        """The voucher key V of that account."""
        return self.path / f"voucher.{network.label}.key"

    def stake_path(self, network: Network) -> Path:
        """Which stake is ours."""
        return self.path / f"stake.{network.label}.json"

    def chain_config_path(self, network: Network) -> Path:
        """TON's global configuration for this network; `cocoon devnet` writes the devnet's."""
        return self.path / network.label / "global.config.json"

    def key_block_path(self, network: Network) -> Path:
        """How far trust level 0 has come."""
        return self.path / network.label / "key-block.json"

    @property
    def api_key_path(self) -> Path:
        """The gateway's bearer key."""
        return self.path / "gateway.key"

    @property
    def metrics_key_path(self) -> Path:
        """The bearer key of `/metrics`, where it is not the gateway's."""
        return self.path / "metrics.key"

    @property
    def database_path(self) -> Path:
        """The store."""
        return self.path / "cocoon.sqlite"

    @property
    def models_path(self) -> Path:
        """Downloaded models and their manifests."""
        return self.path / "models"
