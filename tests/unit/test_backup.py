"""Backups: whole or not at all, opened by nobody else, and never a key or a number that could be used twice."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest
import trio

from cocoon.adapters import backup
from cocoon.adapters.backup import BackupReport, read_backup, write_backup
from cocoon.adapters.clock import SystemClock, entropy
from cocoon.adapters.store import SqliteStore
from cocoon.cli import main
from cocoon.config import Home
from cocoon.errors import ConfigError
from cocoon.ports import StoredVoucher, VoucherSide
from cocoon.types import Secret

WORD = Secret(b"a long passphrase")


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key's cost is libsodium's business; here it would be minutes."""
    monkeypatch.setattr(backup.pwhash.argon2id, "OPSLIMIT_MODERATE", 1)
    monkeypatch.setattr(backup.pwhash.argon2id, "MEMLIMIT_MODERATE", 8192)


def voucher(side: VoucherSide, provider: int) -> StoredVoucher:
    return StoredVoucher(
        side=side,
        network=3,
        account=bytes(32),
        epoch=1,
        provider=bytes([provider]) * 32,
        cumulative_nano=7,
        ceiling_nano=9,
        key=bytes(32),
        signature=bytes(64),
        clean_tokens=0,
        at_ns=1,
    )


def made(tmp_path: Path) -> Home:
    home = Home(path=tmp_path / "home").create()
    for name in ("config.toml", "operator.key", "gateway.key", "wallet.devnet.json", "account.devnet.json"):
        (home.path / name).write_bytes(f"content of {name}".encode())
    (home.path / "voucher.devnet.key").write_bytes(b"V" * 32)
    (home.path / "policy.toml").write_text("x = 1\n")
    (home.path / "models/hub").mkdir(parents=True)
    (home.path / "models/pins.json").write_text("{}")
    (home.path / "models/hub/huge.gguf").write_bytes(b"weights")
    (home.path / "run.sock.lock").write_text("")

    async def fill() -> None:
        async with await SqliteStore.open(home.database_path, clock=SystemClock(), entropy=entropy) as store:
            await store.save_payments(tuple(voucher(side, number) for side in VoucherSide for number in range(3)))
            await store.next_seq(bytes(32), b"peer", bytes(32))

    trio.run(fill)
    return home


def copied(tmp_path: Path) -> tuple[Home, BackupReport, Home, BackupReport]:
    home = made(tmp_path)
    wrote = write_backup(home, tmp_path / "b", WORD)
    again = Home(path=tmp_path / "again")
    return home, wrote, again, read_backup(tmp_path / "b", again, WORD)


def test_a_restored_home_has_keys_settings_and_money_that_is_owed_to_it(tmp_path: Path) -> None:
    home, _, again, read = copied(tmp_path)
    for name in ("config.toml", "operator.key", "gateway.key", "wallet.devnet.json", "policy.toml", "models/pins.json"):
        assert (again.path / name).read_bytes() == (home.path / name).read_bytes()
        assert name in read.kept
    assert (again.path / "operator.key").stat().st_mode & 0o777 == 0o600
    assert again.path.stat().st_mode & 0o777 == 0o700

    async def look() -> int:
        async with await SqliteStore.open(again.database_path, clock=SystemClock(), entropy=entropy) as store:
            held = await store.vouchers(VoucherSide.HELD, network=3, party=bytes([1]) * 32)
            return held[0].cumulative_nano

    assert trio.run(look) == 7


def test_a_restored_home_can_sign_no_voucher_and_says_what_to_do(tmp_path: Path) -> None:
    _, wrote, again, read = copied(tmp_path)
    assert not (again.path / "voucher.devnet.key").exists()
    left_out = dict(wrote.skipped)
    assert "voucher.devnet.key" in left_out
    assert "3 issued vouchers" in left_out
    assert "cocoon account withdraw" in dict(read.skipped)["account.devnet.json"]

    async def issued() -> int:
        async with await SqliteStore.open(again.database_path, clock=SystemClock(), entropy=entropy) as store:
            return len(await store.vouchers(VoucherSide.ISSUED, network=3, party=bytes(32)))

    assert trio.run(issued) == 0


def test_a_restored_home_gives_out_no_number_of_an_offer_again(tmp_path: Path) -> None:
    home, _, again, _ = copied(tmp_path)

    async def numbers(place: Home) -> set[int]:
        async with await SqliteStore.open(place.database_path, clock=SystemClock(), entropy=entropy) as store:
            return {await store.next_seq(bytes(32), b"peer", bytes(32)) for _ in range(50)}

    used, new = trio.run(numbers, home), trio.run(numbers, again)
    assert not used & new


def test_models_locks_and_nothing_else_of_the_machine_travel(tmp_path: Path) -> None:
    _, wrote, again, _ = copied(tmp_path)
    assert "models" in dict(wrote.skipped)
    assert not (again.path / "models/hub").exists()
    assert not (again.path / "run.sock.lock").exists()


def test_the_file_shows_nothing(tmp_path: Path) -> None:
    write_backup(made(tmp_path), tmp_path / "b", WORD)
    data = (tmp_path / "b").read_bytes()
    assert b"content of" not in data
    assert b"operator.key" not in data
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600


def test_a_wrong_passphrase_opens_nothing(tmp_path: Path) -> None:
    write_backup(made(tmp_path), tmp_path / "b", WORD)
    again = Home(path=tmp_path / "again")
    with pytest.raises(ConfigError, match="passphrase is wrong"):
        read_backup(tmp_path / "b", again, Secret(b"another passphrase"))
    assert not again.path.exists()


def test_a_changed_cut_or_lengthened_file_restores_nothing(tmp_path: Path) -> None:
    write_backup(made(tmp_path), tmp_path / "b", WORD)
    good = (tmp_path / "b").read_bytes()
    step = max(1, len(good) // 40)
    damaged = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), step)]
    damaged += [good[:at] for at in range(0, len(good), step)] + [good + b"x"]
    for number, data in enumerate(damaged):
        (tmp_path / "d").write_bytes(data)
        again = Home(path=tmp_path / f"again{number}")
        with pytest.raises(ConfigError):
            read_backup(tmp_path / "d", again, WORD)
        assert not again.path.exists()
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".restore")]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.toml",
        "/etc/x.toml",
        "a/b/c.toml",
        "voucher.devnet.key",
        "models/x.bin",
        "/key-block.json",
        "../key-block.json",
        "a\0b/key-block.json",
    ],
)
def test_a_backup_made_by_an_enemy_writes_nowhere_else(tmp_path: Path, name: str) -> None:
    with (tmp_path / "b").open("wb") as file:
        stream = backup._Sealer(file, WORD)
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 3, {"path": name}
            archive.addfile(info, io.BytesIO(b"abc"))
        stream.finish()
    with pytest.raises(ConfigError, match="holds something"):
        read_backup(tmp_path / "b", Home(path=tmp_path / "again"), WORD)
    assert not (tmp_path / "again").exists()


def test_a_link_in_a_backup_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "b").open("wb") as file:
        stream = backup._Sealer(file, WORD)
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            info = tarfile.TarInfo("config.toml")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
        stream.finish()
    with pytest.raises(ConfigError, match="holds something"):
        read_backup(tmp_path / "b", Home(path=tmp_path / "again"), WORD)


def test_neither_a_backup_nor_a_home_is_overwritten(tmp_path: Path) -> None:
    home = made(tmp_path)
    write_backup(home, tmp_path / "b", WORD)
    before = (tmp_path / "b").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        write_backup(home, tmp_path / "b", WORD)
    assert (tmp_path / "b").read_bytes() == before
    with pytest.raises(ConfigError, match="not empty"):
        read_backup(tmp_path / "b", home, WORD)


@pytest.mark.parametrize("where", ["a file", "a file/home"])
def test_a_place_where_no_home_can_be_is_said(tmp_path: Path, where: str) -> None:
    write_backup(made(tmp_path), tmp_path / "b", WORD)
    (tmp_path / "a file").write_text("mine")
    with pytest.raises(ConfigError, match="a file"):
        read_backup(tmp_path / "b", Home(path=tmp_path / where), WORD)
    assert (tmp_path / "a file").read_text() == "mine"


def test_a_full_disk_leaves_no_half_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = made(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(backup.os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_backup(home, tmp_path / "b", WORD)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["home"]


def test_nothing_open_is_written_where_the_backup_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, stick = made(tmp_path), tmp_path / "stick"
    stick.mkdir()
    copies: list[Path] = []
    copy = backup._copy_database

    def watched(source: Path, target: Path) -> int:
        copies.append(target)
        return copy(source, target)

    monkeypatch.setattr(backup, "_copy_database", watched)
    write_backup(home, stick / "b", WORD)
    assert [stick in one.parents for one in copies] == [False]
    assert [home.path in one.parents for one in copies] == [True]
    assert not [one for one in home.path.iterdir() if one.name.startswith(".backup")]


def test_a_disk_without_links_takes_a_backup_and_replaces_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = made(tmp_path)

    def refuse(source: object, target: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(backup.os, "link", refuse)
    write_backup(home, tmp_path / "b", WORD)
    assert read_backup(tmp_path / "b", Home(path=tmp_path / "again"), WORD).kept
    draft, other = tmp_path / "draft", tmp_path / "other"
    draft.write_text("new")
    other.write_text("old")
    with pytest.raises(FileExistsError):
        backup._put_in_place(draft, other)
    assert other.read_text() == "old"


def test_a_database_that_is_written_all_the_time_can_be_copied(tmp_path: Path) -> None:
    home = made(tmp_path)
    with contextlib.closing(sqlite3.connect(home.database_path, isolation_level=None)) as writer:
        writer.execute("CREATE TABLE filler (x BLOB)")
        writer.executemany("INSERT INTO filler VALUES (?)", [(bytes(64_000),) for _ in range(300)])
        writes = 0

        class Busy(sqlite3.Connection):
            def backup(self, target: Any, **given: Any) -> None:
                def between(status: int, remaining: int, total: int) -> None:
                    nonlocal writes
                    writes += 1
                    assert writes < 50, "it begins anew for ever"
                    writer.execute("INSERT INTO filler VALUES (x'00')")

                super().backup(target, **given, progress=between)

        opened = sqlite3.connect
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backup.sqlite3, "connect", lambda *a, **k: opened(*a, **k, factory=Busy))
            assert write_backup(home, tmp_path / "b", WORD).kept
    assert writes < 50


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shorter"):
        write_backup(made(tmp_path), tmp_path / "b", Secret(b"short"))


def test_the_commands_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = made(tmp_path)
    word = tmp_path / "word"
    word.write_bytes(WORD.reveal() + b"\n")
    options = ["--passphrase-file", str(word), "--json"]
    assert main(["backup", str(tmp_path / "b"), "--home", str(home.path), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "operator.key" in said["kept"]
    assert main(["restore", str(tmp_path / "b"), "--home", str(tmp_path / "again"), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["skipped"][0]["name"] == "account.devnet.json"
    assert main(["backup", str(tmp_path / "c"), "--home", str(tmp_path / "none"), *options]) != 0
    assert main(["backup", str(tmp_path / "c"), "--home", str(home.path)]) != 0, "nobody to ask"
