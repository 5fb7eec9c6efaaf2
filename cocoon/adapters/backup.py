"""A home in one sealed file, and back: what a machine's end must not take, and nothing that could be signed twice.

    write_backup(home, target, passphrase)    →  what is in it, what is left out and why
    read_backup(source, home, passphrase)     →  the same; into an empty home only

In it: configuration and policies, the operator's, node's and gateway's keys, the wallet's sealed words, which account
and stake are ours, and the database, copied while it may be in use. Left out on purpose:

- the voucher key and the vouchers that were issued. A copy would not know what was signed after it was made, and a
  client that over-issues loses its bond. After a restore the wallet takes the deposit out and opens the account anew.
- models and caches, which can be had again; locks and sockets, which mean nothing elsewhere.

Offers need no such care: their numbers are made of the time and of chance (`Store.next_seq`), so no slot is used twice.

The file is a tar in libsodium's secretstream under a key of Argon2id; a wrong passphrase, a cut or a changed byte is
found before anything is written. Blocking: call it from a thread, or from a command without trio.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import os
import shutil
import sqlite3
import struct
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from nacl import bindings, exceptions, pwhash

from ..config import Home
from ..errors import ConfigError
from ..types import Secret

MAGIC: Final = b"COCOON-BACKUP/1\n"
PIECE_BYTES: Final = 64 * 1024
FILE_BYTES_MAX: Final = 16 * 1024 * 1024  # of anything but the database
DATABASE_BYTES_MAX: Final = 64 * 1024 * 1024 * 1024
FILES_MAX: Final = 4_096
PASSPHRASE_BYTES_MIN: Final = 8
_SALT_BYTES: Final = pwhash.argon2id.SALTBYTES
_EXTRA_BYTES: Final = bindings.crypto_secretstream_xchacha20poly1305_ABYTES
_HEADER_BYTES: Final = bindings.crypto_secretstream_xchacha20poly1305_HEADERBYTES
_LAST: Final = bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL
_MORE: Final = bindings.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_LENGTH: Final = struct.Struct(">I")

DATABASE: Final = "cocoon.sqlite"
_KEPT: Final = (
    "*.toml",
    "node.key",
    "operator.key",
    "gateway.key",
    "metrics.key",
    "wallet.*.json",
    "account.*.json",
    "stake.*.json",
    "models/pins.json",
    "*/key-block.json",
)
_SKIPPED: Final = (
    ("voucher.*.key", "signs vouchers; after a restore the account is opened anew with a fresh one"),
    ("models", "can be downloaded again; their names stay pinned"),
    ("collateral", "can be fetched again"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What a backup holds, by name, and what was left out: (name, why)."""

    kept: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def write_backup(home: Home, target: Path, passphrase: Secret) -> BackupReport:
    """Seal the home into `target`, mode 0600; it appears whole or not at all. Raises `ConfigError`."""
    _check_passphrase(passphrase)
    if not home.path.is_dir():
        raise ConfigError(f"there is no home at {home.path}", advice="Name it with --home DIR.")
    if target.exists():
        raise ConfigError(f"{target} exists already", advice="Choose another name; nothing is replaced.")
    names = tuple(_kept_files(home.path))
    skipped = list(_skipped(home.path))
    draft = target.with_name(f".{target.name}.part")
    try:
        # The open copy stays on the home's own disk; where the backup goes, nothing is ever written that is not sealed.
        with tempfile.TemporaryDirectory(dir=home.path, prefix=".backup-") as folder, _created(draft) as sealed:
            copy = Path(folder) / DATABASE
            if (home.path / DATABASE).exists():
                issued = _copy_database(home.path / DATABASE, copy)
                names = (*names, DATABASE)
                if issued:
                    skipped.append((f"{issued} issued vouchers", "a copy cannot know what was signed after it"))
            stream = _Sealer(sealed, passphrase)
            with tarfile.open(fileobj=stream, mode="w|") as archive:
                for name in names:
                    archive.add(copy if name == DATABASE else home.path / name, arcname=name, filter=_plain)
            stream.finish()
            sealed.flush()
            os.fsync(sealed.fileno())
        _put_in_place(draft, target)
    except FileExistsError:
        raise ConfigError(
            f"{target} exists already", advice="Choose another name; a backup replaces nothing."
        ) from None
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"the backup could not be written to {target}: {_reason(error)}", advice="Nothing was kept; is there room?"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return BackupReport(kept=names, skipped=tuple(skipped))


def read_backup(source: Path, home: Home, passphrase: Secret) -> BackupReport:
    """Open `source` into an empty home. Everything is checked before the home gets anything. Raises `ConfigError`."""
    if home.path.exists() and (not home.path.is_dir() or any(home.path.iterdir())):
        raise ConfigError(
            f"the home {home.path} is not empty",
            advice="Restore into a new one with --home DIR, or move this one away.",
        )
    try:
        home.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"there can be no home at {home.path}: {_reason(error)}") from error
    try:
        with tempfile.TemporaryDirectory(dir=home.path.parent, prefix=".restore-") as folder:
            whole = Path(folder) / "home"
            whole.mkdir(mode=0o700)
            with source.open("rb") as sealed:
                names = _unpack(_Opener(sealed, passphrase), whole)
            with contextlib.suppress(FileNotFoundError):
                home.path.rmdir()
            whole.replace(home.path)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {source}") from error
    except OSError as error:
        raise ConfigError(f"the backup could not be restored: {_reason(error)}") from error
    accounts = [name for name in names if fnmatch.fnmatch(name, "account.*.json")]
    why = "its vouchers and their key are not in the backup: withdraw with `cocoon account withdraw`, then open it anew"
    return BackupReport(kept=tuple(names), skipped=tuple((name, why) for name in accounts))


# --- what belongs to it ------------------------------------------------------------------------------------


def _kept_files(folder: Path) -> Iterator[str]:
    for path in sorted([*folder.iterdir(), *folder.glob("*/*.json")]):
        name = path.relative_to(folder).as_posix()
        if _is_kept(name) and path.is_file() and not path.is_symlink():
            if path.stat().st_size > FILE_BYTES_MAX:
                raise ConfigError(f"{path} is larger than {FILE_BYTES_MAX} bytes; that is not a file of Cocoon's")
            yield name


def _is_kept(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in _KEPT)


def _skipped(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        for pattern, why in _SKIPPED:
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path.name, why


def _put_in_place(draft: Path, target: Path) -> None:
    """Under its name at last; nothing is replaced."""
    try:
        os.link(draft, target)  # refuses to replace, unlike a rename
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES):
            raise
        with _created(target):  # a disk that knows no links (exFAT): take the name first, then replace only our own
            pass
        draft.replace(target)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Names of this machine's users are nobody's business."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o600
    return info


def _copy_database(source: Path, target: Path) -> int:
    """A consistent copy without issued vouchers; how many those were."""
    with contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as live:
        with contextlib.closing(sqlite3.connect(target)) as copy:
            live.backup(copy)  # in one read; in pieces it would begin anew whenever a busy node writes between two
            tables = {row[0] for row in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            removed = copy.execute("DELETE FROM vouchers WHERE side = 0").rowcount if "vouchers" in tables else 0
            copy.commit()
            copy.execute("PRAGMA secure_delete = ON")
            copy.execute("VACUUM")
            return max(0, removed)


def _unpack(stream: _Opener, folder: Path) -> list[str]:
    names: list[str] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name).as_posix()
                most = DATABASE_BYTES_MAX if name == DATABASE else FILE_BYTES_MAX
                is_inside = not name.startswith("/") and ".." not in PurePosixPath(name).parts and "\0" not in name
                is_known = name == DATABASE or (_is_kept(name) and is_inside)
                if not (is_known and member.isreg() and 0 <= member.size <= most and len(names) < FILES_MAX):
                    raise ConfigError("the backup holds something that no backup of Cocoon's holds")
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                target = folder / name
                target.parent.mkdir(mode=0o700, exist_ok=True)
                with _created(target) as file:
                    shutil.copyfileobj(content, file, PIECE_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
                names.append(name)
        stream.expect_end()
    except (tarfile.TarError, FileExistsError) as error:
        raise ConfigError("the backup is damaged") from error
    return names


@contextlib.contextmanager
def _created(path: Path) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        yield file


def _reason(error: OSError | sqlite3.Error) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)[:200]


# --- the seal ----------------------------------------------------------------------------------------------


def _check_passphrase(passphrase: Secret) -> None:
    if len(passphrase.reveal()) < PASSPHRASE_BYTES_MIN:
        raise ConfigError(
            f"the passphrase is shorter than {PASSPHRASE_BYTES_MIN} bytes",
            advice="Whoever has the file can try passphrases for as long as they like; take a long one.",
        )


def _key(passphrase: Secret, salt: bytes) -> bytes:
    """About half a second and 256 MiB, for whoever guesses as well."""
    return pwhash.argon2id.kdf(
        bindings.crypto_secretstream_xchacha20poly1305_KEYBYTES,
        passphrase.reveal(),
        salt,
        opslimit=pwhash.argon2id.OPSLIMIT_MODERATE,
        memlimit=pwhash.argon2id.MEMLIMIT_MODERATE,
    )


class _Sealer(io.RawIOBase):
    """A file to write to; what arrives is sealed piece by piece."""

    def __init__(self, target: BinaryIO, passphrase: Secret) -> None:
        self._target = target
        self._state = bindings.crypto_secretstream_xchacha20poly1305_state()
        salt = os.urandom(_SALT_BYTES)
        header = bindings.crypto_secretstream_xchacha20poly1305_init_push(self._state, _key(passphrase, salt))
        self._waiting = bytearray()
        target.write(MAGIC + salt + header)

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._waiting += piece
        while len(self._waiting) > PIECE_BYTES:
            self._push(bytes(self._waiting[:PIECE_BYTES]), _MORE)
            del self._waiting[:PIECE_BYTES]
        return len(piece)

    def finish(self) -> None:
        """The last piece says that it is the last."""
        self._push(bytes(self._waiting), _LAST)
        self._waiting.clear()

    def _push(self, piece: bytes, tag: int) -> None:
        sealed = bindings.crypto_secretstream_xchacha20poly1305_push(self._state, piece, MAGIC, tag)
        self._target.write(_LENGTH.pack(len(sealed)) + sealed)


class _Opener(io.RawIOBase):
    """A file to read from; every byte that it gives is authentic. Raises `ConfigError`."""

    def __init__(self, source: BinaryIO, passphrase: Secret) -> None:
        self._source = source
        head = source.read(len(MAGIC) + _SALT_BYTES + _HEADER_BYTES)
        if not head.startswith(MAGIC) or len(head) != len(MAGIC) + _SALT_BYTES + _HEADER_BYTES:
            raise ConfigError("this is not a backup of Cocoon's")
        salt, header = head[len(MAGIC) : len(MAGIC) + _SALT_BYTES], head[len(MAGIC) + _SALT_BYTES :]
        self._state = bindings.crypto_secretstream_xchacha20poly1305_state()
        bindings.crypto_secretstream_xchacha20poly1305_init_pull(self._state, header, _key(passphrase, salt))
        self._ready = b""
        self._ended = False
        self._first = True

    def read(self, size: int = -1) -> bytes:
        while (size < 0 or len(self._ready) < size) and not self._ended:
            self._ready += self._pull()
        piece, self._ready = (self._ready, b"") if size < 0 else (self._ready[:size], self._ready[size:])
        return piece

    def expect_end(self) -> None:
        """Nothing is missing, and nothing was added."""
        while not self._ended:
            self._pull()
        if self._source.read(1):
            raise ConfigError("the backup is damaged: something follows its end")

    def _pull(self) -> bytes:
        head = self._source.read(_LENGTH.size)
        size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        sealed = self._source.read(size) if _EXTRA_BYTES <= size <= PIECE_BYTES + _EXTRA_BYTES else b""
        try:
            if not sealed or len(sealed) != size:
                raise exceptions.CryptoError
            piece, tag = bindings.crypto_secretstream_xchacha20poly1305_pull(self._state, sealed, MAGIC)
        except (exceptions.CryptoError, RuntimeError, ValueError) as error:
            said = "the passphrase is wrong, or the backup is damaged" if self._first else "the backup is damaged"
            raise ConfigError(said, advice="Nothing was restored.") from error
        self._first = False
        self._ended = tag == _LAST
        return bytes(piece)
