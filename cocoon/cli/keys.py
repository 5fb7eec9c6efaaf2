"""The gateway's bearer key: one line in a file that its owner alone can read, made on first use.

Not here: key seeds, which are `cocoon.adapters.keyfile`'s.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..types import Secret

API_KEY_BYTES: Final = 32
FILE_BYTES_MAX: Final = 1_024  # a key is a line


def api_key(path: Path) -> Secret:
    """The key in `path`. Raises `ConfigError`."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return Secret(_read(path).encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", advice="Choose another --home.") from error
    key = new_api_key()
    with os.fdopen(handle, "w") as file:
        file.write(key + "\n")
    return Secret(key.encode())


def new_api_key() -> str:
    """A random key, in the form that SDKs expect of keys."""
    return "ck-" + secrets.token_urlsafe(API_KEY_BYTES)


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
