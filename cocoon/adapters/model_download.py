"""Fetches one large file over HTTP so that nothing is lost: resumed after a break, complete or not there at all.

The bytes gather in `NAME.part`; beside it, `NAME.part.json` remembers the server's tag for them, and the next try asks
for the rest only if the tag still holds (`If-Range`). The finished file is synced and renamed into place in one step.
Nothing here judges the content: hashes are the caller's business, except the one that the hub itself announces.

Blocking; runs in a worker thread and leaves within one piece of data after a cancellation. Standard library only.
Deliberately absent: logins (gated models), mirrors, parallel connections.
"""

from __future__ import annotations

import errno
import fcntl
import http.client
import json
import os
import re
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

from ..errors import CocoonError, ModelFileError, Unavailable

PIECE_BYTES: Final = 1024 * 1024
ATTEMPTS_MAX: Final = 4  # of one call; each goes on where the last one broke
TIMEOUT_S: Final = 30.0  # without a byte
SPARE_BYTES: Final = 64 * 1024 * 1024  # left free on the disk
FILE_BYTES_MAX: Final = 1 << 42  # 4 TiB
_TAG: Final = re.compile(r'(?:W/)?"?([0-9a-f]{64})"?\Z')
_RANGE: Final = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15})\Z")
KEPT: Final = "What has arrived is kept; the same command goes on from there."


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A finished download."""

    path: Path
    size: int
    announced_sha256: str | None  # by the hub, for large files


@dataclass(slots=True)
class _Part:
    """What is there of a file, and what is known of the rest."""

    file: IO[bytes]
    note: Path
    tag: str = ""
    total: int = 0
    announced: str | None = None


def fetch(url: str, target: Path, *, progress: Callable[[int, int], None], check: Callable[[], None]) -> Fetched:
    """Download `url` to `target`, going on from an earlier try.

    `progress(bytes so far, bytes in all)` and `check()` are called for every piece; `check` raises to stop. Raises
    `Unavailable` (not reachable, broken too often), `ModelFileError` (no such file, disk full, another process at it).
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ModelFileError(f"models are downloaded over http and https only, not {urlsplit(url).scheme[:16]!a}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    note = target.with_name(target.name + ".part.json")
    try:
        with part.open("a+b") as file:
            _lock(file, target)
            if target.exists():  # another process finished while this one waited to begin
                return Fetched(path=target, size=target.stat().st_size, announced_sha256=None)
            state = _Part(file=file, note=note)
            _remember(state)
            _attempts(url, state, progress, check)
            file.flush()
            os.fsync(file.fileno())
            part.replace(target)
    except OSError as error:
        raise _disk_error(error, target) from error
    note.unlink(missing_ok=True)
    return Fetched(path=target, size=state.total, announced_sha256=state.announced)


def _lock(file: IO[bytes], target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ModelFileError(
            f"another process is downloading {target.name}", advice="Wait for it, or stop it and try again."
        ) from error


def _remember(state: _Part) -> None:
    """The tag of an earlier try; without it the bytes are worthless."""
    try:
        note = json.loads(state.note.read_bytes()[:4096])
        state.tag = note["tag"] if isinstance(note["tag"], str) else ""
        state.announced = note.get("sha256") if isinstance(note.get("sha256"), str) else None
    except (OSError, ValueError, KeyError, TypeError):
        state.tag = ""
    if not state.tag:
        state.file.truncate(0)


def _attempts(url: str, state: _Part, progress: Callable[[int, int], None], check: Callable[[], None]) -> None:
    last: Exception | None = None
    for _ in range(ATTEMPTS_MAX):
        check()
        try:
            if _attempt(url, state, progress, check):
                return
            last = None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, socket.gaierror) as e:
            if isinstance(e, urllib.error.HTTPError):
                raise _status_error(e, url) from e
            last = e
    reason = getattr(last, "reason", None) or last or "the connection keeps breaking"
    raise Unavailable(f"cannot download from {urlsplit(url).netloc}: {reason}", advice=f"{KEPT} Are you online?")


def _attempt(url: str, state: _Part, progress: Callable[[int, int], None], check: Callable[[], None]) -> bool:
    """One connection. True when the file is whole."""
    have = state.file.seek(0, os.SEEK_END)
    headers = {"User-Agent": "cocoon", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": state.tag}
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme is checked above
        answer = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the part is longer than the file: begin again
            state.file.truncate(0)
            return False
        raise
    with answer:
        begin, total = _extent(answer, have)
        if begin != have:
            state.file.truncate(0)
            have = 0
        tag = answer.headers.get("ETag") or ""
        state.total, state.tag = total, "" if tag.startswith("W/") else tag
        state.announced = redirects.sha256 or _sha256(answer.headers)
        state.note.write_text(json.dumps({"tag": state.tag, "sha256": state.announced, "size": total}))
        _need_room(state.file, total - have)
        while have < total:
            piece = answer.read(min(PIECE_BYTES, total - have))
            if not piece:
                return False
            state.file.write(piece)
            have += len(piece)
            progress(have, total)
            check()
    return True


def _extent(answer: Any, have: int) -> tuple[int, int]:
    """(first byte, bytes in all) of what the server sends."""
    if answer.status == 206:
        match = _RANGE.match(answer.headers.get("Content-Range", ""))
        if match is None or int(match.group(1)) != have:
            raise Unavailable("the server sent another part of the file than was asked for")
        return have, _bounded(int(match.group(2)))
    length = answer.headers.get("Content-Length", "")
    if not (length.isascii() and length.isdecimal() and len(length) < 16):
        raise Unavailable("the server does not say how long the file is")
    return 0, _bounded(int(length))


def _bounded(total: int) -> int:
    if not 0 < total <= FILE_BYTES_MAX:
        raise ModelFileError(f"the server claims a file of {total} bytes")
    return total


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the same safety, and keeps the hash that the hub announces on the way."""

    def __init__(self) -> None:
        self.sha256: str | None = None

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self.sha256 = _sha256(headers) or self.sha256
        was, now = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if now not in ("http", "https") or (was == "https" and now != "https"):
            raise Unavailable(f"the server sends us from {was} to {now[:16]!a}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _sha256(headers: Any) -> str | None:
    match = _TAG.match(headers.get("X-Linked-Etag") or "")
    return match.group(1) if match is not None else None


def _need_room(file: IO[bytes], needed: int) -> None:
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(file.name))).free
    if needed + SPARE_BYTES > free:
        raise ModelFileError(
            f"the disk has {free // 1_000_000} MB free; the rest of the file needs {needed // 1_000_000} MB",
            advice=f"Make room, or choose another folder with --home. {KEPT}",
        )


def _status_error(error: urllib.error.HTTPError, url: str) -> CocoonError:
    path, host = urlsplit(url).path, urlsplit(url).netloc
    if error.code == 404:
        return ModelFileError(
            f"{host} has no {path}", advice="Check owner, repository, file and revision: hf:OWNER/REPO/FILE@REVISION"
        )
    if error.code in (401, 403):
        return ModelFileError(
            f"{host} does not give {path} to everybody",
            advice="Download it in a browser with your account, then give the path of the file.",
        )
    return Unavailable(f"{host} answers with status {error.code}", advice=KEPT)


def _disk_error(error: OSError, target: Path) -> CocoonError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelFileError(
            f"the disk is full while downloading {target.name}", advice=f"Make room or use --home. {KEPT}"
        )
    return ModelFileError(f"cannot write {target}: {error.strerror or error}")
