"""A 32-byte key seed in a file: mode 0600, created atomically, never in a log.

Raw bytes, no format, no passphrase: whoever can read the file can sign. For the operator key O and, on machines
without a TEE, for the peer key P. Not here: any use of the key.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..ports import Entropy
from ..types import Secret

SEED_BYTES: Final = 32


def load_seed(path: Path) -> Secret:
    """The seed in the file. Raises `ConfigError` when it is missing, not 32 bytes, or readable by others."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no key file at {path}",
            advice="Restore it from your backup; without the setting a new key is made at the next start.",
        ) from None
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"the key file {path} is not a plain file")
        if status.st_mode & 0o077:
            raise ConfigError(
                f"the key file {path} is open to other users of this machine",
                advice=f"Run `chmod 600 {path}`; if others could have read it, replace the key.",
            )
        seed = os.read(descriptor, SEED_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"the key file {path} does not hold {SEED_BYTES} bytes", advice="Restore it from a backup.")
    return Secret(seed)


def load_or_create_seed(path: Path, *, entropy: Entropy) -> Secret:
    """The seed in the file, made fresh if there is none.

    A crash leaves a whole file or none, and of two processes that start at once both get the same key.
    Raises `ConfigError`.
    """
    if not path.exists() and not path.is_symlink():
        try:
            _create(path, entropy(SEED_BYTES), entropy(8).hex())
        except FileExistsError:
            pass  # somebody else was first; theirs is the key
        except OSError as error:
            raise ConfigError(f"the key file {path} cannot be created: {error.strerror}") from error
    return load_seed(path)


def _create(path: Path, seed: bytes, suffix: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{suffix}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(seed)
            file.flush()
            os.fsync(descriptor)
        os.link(draft, path)  # refuses to replace, unlike a rename
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
