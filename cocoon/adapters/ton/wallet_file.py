"""A wallet on disk: 24 words under a passphrase, the address in the clear. Mode 0600, created atomically.

Argon2id makes the key, XChaCha20-Poly1305 seals, and everything in the clear is authenticated with it, so nobody can
swap addresses between files. A wrong passphrase and a changed file look the same. Not here: asking for the passphrase.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nacl.bindings
import nacl.exceptions
import nacl.pwhash.argon2id

from ...errors import ConfigError
from ...ports import Entropy
from ...types import Network, Secret
from .mnemonic import parse_words, seed_of
from .wallet import WalletKey

VERSION: Final = 1
FILE_BYTES_MAX: Final = 8_192
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 24
PASSPHRASE_BYTES_MIN: Final = 8
PASSPHRASE_BYTES_MAX: Final = 1_024
OPERATIONS: Final = 3  # libsodium's "moderate": about half a second
MEMORY_BYTES: Final = 256 * 1024 * 1024
OPERATIONS_MAX: Final = 16  # of a file that says more, somebody wants us to stand still
MEMORY_BYTES_MAX: Final = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletHead:
    """What can be read without the passphrase."""

    network: Network
    account: bytes


def create_wallet_file(
    path: Path,
    phrase: tuple[str, ...],
    *,
    network: Network,
    passphrase: Secret,
    entropy: Entropy,
    operations: int = OPERATIONS,
    memory_bytes: int = MEMORY_BYTES,
) -> WalletHead:
    """Write a new wallet. Raises `ConfigError`, also when there is a file already: nothing is ever replaced."""
    if not PASSPHRASE_BYTES_MIN <= len(passphrase.reveal()) <= PASSPHRASE_BYTES_MAX:
        raise ConfigError(f"a passphrase has {PASSPHRASE_BYTES_MIN} to {PASSPHRASE_BYTES_MAX} bytes")
    account = WalletKey(seed_of(phrase), network).account
    head = {
        "version": VERSION,
        "network": int(network),
        "account": account.hex(),
        "operations": operations,
        "memory_bytes": memory_bytes,
        "salt": entropy(SALT_BYTES).hex(),
        "nonce": entropy(NONCE_BYTES).hex(),
    }
    sealed = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        " ".join(phrase).encode(), _aad(head), bytes.fromhex(str(head["nonce"])), _key(head, passphrase)
    )
    text = json.dumps({**head, "sealed": base64.b64encode(sealed).decode()}, indent=1) + "\n"
    _create(path, text.encode(), entropy(8).hex())
    return WalletHead(network=network, account=account)


def read_wallet_head(path: Path) -> WalletHead:
    """Network and address. Raises `ConfigError`."""
    head, _ = _load(path)
    return WalletHead(network=Network(head["network"]), account=bytes.fromhex(head["account"]))


def open_wallet_words(path: Path, *, passphrase: Secret) -> tuple[str, ...]:
    """The words. Raises `ConfigError` for a wrong passphrase or a damaged file."""
    head, sealed = _load(path)
    try:
        plain = nacl.bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
            sealed, _aad(head), bytes.fromhex(head["nonce"]), _key(head, passphrase)
        )
    except nacl.exceptions.CryptoError:
        raise ConfigError(
            "the wallet does not open", advice="The passphrase is wrong, or the file was changed."
        ) from None
    return parse_words(plain.decode())


def open_wallet(path: Path, *, passphrase: Secret) -> WalletKey:
    """The wallet's key. Raises `ConfigError`."""
    head = read_wallet_head(path)
    key = WalletKey(seed_of(open_wallet_words(path, passphrase=passphrase)), head.network)
    assert key.account == head.account, "the head is authenticated with the words"
    return key


def _key(head: dict[str, Any], passphrase: Secret) -> bytes:
    return nacl.pwhash.argon2id.kdf(
        nacl.bindings.crypto_aead_xchacha20poly1305_ietf_KEYBYTES,
        passphrase.reveal(),
        bytes.fromhex(head["salt"]),
        opslimit=head["operations"],
        memlimit=head["memory_bytes"],
    )


def _aad(head: dict[str, Any]) -> bytes:
    return b"cocoon wallet file v1\0" + json.dumps(head, sort_keys=True, separators=(",", ":")).encode()


def _load(path: Path) -> tuple[dict[str, Any], bytes]:
    """The head, checked, and what is sealed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigError(f"there is no wallet at {path}", advice="Make one with `cocoon wallet create`.") from None
    except OSError as error:
        raise ConfigError(f"the wallet {path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"the wallet {path} is not a plain file")
        if status.st_mode & 0o077:
            raise ConfigError(f"the wallet {path} is open to other users", advice=f"Run `chmod 600 {path}`.")
        data = file.read(FILE_BYTES_MAX + 1)
    try:
        value = json.loads(data)
        sealed = base64.b64decode(value.pop("sealed"), validate=True)
        wanted = {"version", "network", "account", "operations", "memory_bytes", "salt", "nonce"}
        is_sound = (
            len(data) <= FILE_BYTES_MAX
            and set(value) == wanted
            and value["version"] == VERSION
            and value["network"] in list(Network)
            and len(bytes.fromhex(value["account"])) == 32
            and len(bytes.fromhex(value["salt"])) == SALT_BYTES
            and len(bytes.fromhex(value["nonce"])) == NONCE_BYTES
            and all(type(value[name]) is int for name in ("operations", "memory_bytes"))
            and 1 <= value["operations"] <= OPERATIONS_MAX
            and 8_192 <= value["memory_bytes"] <= MEMORY_BYTES_MAX
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        is_sound = False
    if not is_sound:
        raise ConfigError(f"{path} is not a wallet", advice="Restore it from a backup, or import the words again.")
    return value, sealed


def _create(path: Path, data: bytes, suffix: str) -> None:
    draft = path.with_name(f".{path.name}.{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # refuses to replace, unlike a rename
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise ConfigError(
            f"there is a wallet at {path} already", advice="It is never replaced; move it away."
        ) from None
    except OSError as error:
        raise ConfigError(f"the wallet {path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(draft)
