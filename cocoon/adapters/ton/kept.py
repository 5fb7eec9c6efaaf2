"""Which spending account and which stake are ours: small files in the home, written before the chain is told.

Nothing here is secret, and nothing is believed: an address that does not follow from what is beside it is refused, and
what an account holds is asked of the chain. Not here: keys (`cocoon.adapters.keyfile`), words (`wallet_file`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import ConfigError
from ...types import Network
from . import contracts

VERSION: Final = 1
FILE_BYTES_MAX: Final = 4_096
SALT_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAccount:
    """A spending account: its address follows from owner and salt."""

    network: Network
    owner: bytes
    salt: int

    @property
    def account(self) -> bytes:
        """Its address."""
        return contracts.account_address(self.owner, self.salt)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptStake:
    """A stake: its address follows from owner and delay."""

    network: Network
    owner: bytes
    unbond_delay_s: int

    @property
    def stake(self) -> bytes:
        """Its address."""
        return contracts.stake_address(self.owner, self.unbond_delay_s)


def save_account(path: Path, kept: KeptAccount) -> None:
    """Keep it. Raises `ConfigError`, also when there is one already."""
    _create(path, {"account": kept.account.hex(), "owner": kept.owner.hex(), "salt": kept.salt}, kept.network)


def load_account(path: Path, *, network: Network) -> KeptAccount | None:
    """None: there is none. Raises `ConfigError` for a file that is not ours."""
    value = _load(path, network, ("account", "owner", "salt"))
    if value is None:
        return None
    with _sound(path):
        kept = KeptAccount(network=network, owner=_account(value["owner"]), salt=_whole(value["salt"], SALT_MAX))
        if kept.account != _account(value["account"]):
            raise ValueError("address")
        return kept


def save_stake(path: Path, kept: KeptStake) -> None:
    """As `save_account`."""
    fields = {"stake": kept.stake.hex(), "owner": kept.owner.hex(), "unbond_delay_s": kept.unbond_delay_s}
    _create(path, fields, kept.network)


def load_stake(path: Path, *, network: Network) -> KeptStake | None:
    """As `load_account`."""
    value = _load(path, network, ("stake", "owner", "unbond_delay_s"))
    if value is None:
        return None
    with _sound(path):
        delay_s = _whole(value["unbond_delay_s"], (1 << 31) - 1)
        kept = KeptStake(network=network, owner=_account(value["owner"]), unbond_delay_s=delay_s)
        if kept.stake != _account(value["stake"]):
            raise ValueError("address")
        return kept


def _create(path: Path, fields: Mapping[str, Any], network: Network) -> None:
    text = json.dumps({"version": VERSION, "network": int(network), **fields}, indent=1) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with draft.open("w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # refuses to replace, unlike a rename
    except FileExistsError:
        raise ConfigError(f"there is {path} already", advice="It is never replaced; move it away.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _load(path: Path, network: Network, fields: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    with _sound(path):
        value = json.loads(data)
        if set(value) != {"version", "network", *fields} or value["version"] != VERSION:
            raise ValueError("fields")
        if value["network"] != int(network) or len(data) > FILE_BYTES_MAX:
            raise ValueError("network")
        return dict(value)


@contextlib.contextmanager
def _sound(path: Path) -> Any:
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} was damaged or is of another network", advice="Restore it from a backup.") from error


def _account(text: Any) -> bytes:
    data = bytes.fromhex(text)
    if len(data) != 32:
        raise ValueError("32 bytes")
    return data


def _whole(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("number")
    return value
