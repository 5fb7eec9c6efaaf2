"""Secrets in the home, one small file each: readable by their owner only, made on first use.

Not here: the operator key, whose file belongs to `cocoon.adapters.signer`.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..types import Secret

SEED_BYTES: Final = 32
API_KEY_BYTES: Final = 32
FILE_BYTES_MAX: Final = 1_024  # a key is a line


def node_seed(path: Path) -> Secret:
    """The seed of a plain node's identity, as hex in `path`. Raises `ConfigError`."""
    text = _read_or_make(path, lambda: secrets.token_hex(SEED_BYTES))
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"{path} does not hold a node key", advice="Move it away; a new identity is made then.")
    return Secret(seed)


def fresh_seed() -> Secret:
    """For providers and clients, whose identity lasts as long as the process (rule H2)."""
    return Secret(secrets.token_bytes(SEED_BYTES))


def api_key(path: Path) -> Secret:
    """The gateway's bearer key in `path`. Raises `ConfigError`."""
    return Secret(_read_or_make(path, new_api_key).encode())


def new_api_key() -> str:
    """A random key, in the form that SDKs expect of keys."""
    return "ck-" + secrets.token_urlsafe(API_KEY_BYTES)


def _read_or_make(path: Path, make: Callable[[], str]) -> str:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", advice="Choose another --home.") from error
    text = make()
    with os.fdopen(handle, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    return text


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path} can be read by others", advice=f"Run: chmod 600 {path}")
    if len(data) > FILE_BYTES_MAX or not data.isascii():
        raise ConfigError(f"{path} does not hold a key", advice="Move it away; a new one is made then.")
    return data.decode("ascii").strip()
