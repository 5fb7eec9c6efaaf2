"""A running process answers questions about itself on a Unix socket in its home, and nowhere else.

    HOME/run/provider-4711.sock       a line of JSON in, a line of JSON out, one question per connection

The folder has mode 0700: who may ask is who owns the home. Nothing can be changed through it. A socket whose process
is gone is removed by whoever finds it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from ..errors import CocoonError, ConfigError, Unavailable

FOLDER: Final = "run"
QUESTION_BYTES_MAX: Final = 1_024
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
ASKING_MAX: Final = 16  # at once; the rest waits
ANSWER_TIMEOUT_S: Final = 10.0
SOCKET_PATH_BYTES_MAX: Final = 100  # of the kernel: 108 with the final zero

_log = logging.getLogger("cocoon.status")

Answer = Callable[[str], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A process of this home that answers."""

    role: str
    pid: int
    path: Path


@asynccontextmanager
async def open_control(home: Path, role: str, answer: Answer) -> AsyncIterator[Path | None]:
    """Answer questions until the block is left. None where the home's path is too long for a socket's name."""
    folder = home / FOLDER
    path = folder / f"{role}-{os.getpid()}.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        yield None
        return
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # whatever made it: who may enter it may ask
        path.unlink(missing_ok=True)
        await listener.bind(os.fspath(path))
        listener.listen(ASKING_MAX)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {path}: {error.strerror}", advice="Is there room in the home?") from error
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, listener, answer)
            yield path
            nursery.cancel_scope.cancel()
    finally:
        listener.close()
        path.unlink(missing_ok=True)


async def _serve(listener: trio.socket.SocketType, answer: Answer) -> None:
    limit = trio.CapacityLimiter(ASKING_MAX)
    async with trio.open_nursery() as nursery:
        while True:
            try:
                connection, _ = await listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED):
                    await trio.sleep(0.1)
                    continue
                raise
            nursery.start_soon(_answer_one, trio.SocketStream(connection), answer, limit)


async def _answer_one(stream: trio.SocketStream, answer: Answer, limit: trio.CapacityLimiter) -> None:
    """One question. Whatever goes wrong in it ends it alone."""
    async with stream, limit:
        with trio.move_on_after(ANSWER_TIMEOUT_S), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            question = await _line(stream, QUESTION_BYTES_MAX)
            try:
                asked = json.loads(question)
                what = asked["what"] if isinstance(asked, dict) else None
            except (ValueError, KeyError, RecursionError):
                what = None
            await stream.send_all(await _said(answer, what))


async def _said(answer: Answer, what: object) -> bytes:
    """The answer's line. A database that cannot be read now is an answer as well, and no reason to end a provider."""
    try:
        reply = await answer(what) if isinstance(what, str) else {"error": "not a question"}
        return json.dumps(reply, allow_nan=False).encode() + b"\n"
    except (CocoonError, ValueError) as error:
        _log.warning("status.failed", extra={"error": type(error).__name__})
        return json.dumps({"error": f"it cannot say now ({type(error).__name__})"}).encode() + b"\n"


async def _line(stream: trio.SocketStream, bytes_max: int) -> bytes:
    data = b""
    while b"\n" not in data and len(data) <= bytes_max:
        piece = await stream.receive_some(64 * 1024)
        if not piece:
            break
        data += piece
    return data.partition(b"\n")[0]


def running(home: Path) -> tuple[Running, ...]:
    """Processes of this home, by their sockets. Those of dead processes are removed."""
    found = []
    folder = home / FOLDER
    for path in sorted(folder.glob("*-*.sock")) if folder.is_dir() else ():
        role, _, number = path.stem.rpartition("-")
        if not role or not number.isdecimal():
            continue
        if not _lives(int(number)):
            with suppress(OSError):
                path.unlink()
            continue
        found.append(Running(role=role, pid=int(number), path=path))
    return tuple(found)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


async def ask(path: Path, what: str) -> dict[str, Any]:
    """The answer to one question. Raises `Unavailable`."""
    try:
        with trio.fail_after(ANSWER_TIMEOUT_S):
            async with await trio.open_unix_socket(os.fspath(path)) as stream:
                await stream.send_all(json.dumps({"what": what}).encode() + b"\n")
                data = await _line(stream, ANSWER_BYTES_MAX)
        value = json.loads(data)
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, ValueError, RecursionError) as error:
        raise Unavailable(
            f"{path.stem} does not answer ({type(error).__name__})", advice="Is it starting or ending just now?"
        ) from error
    if not isinstance(value, dict):
        raise Unavailable(f"{path.stem} answers with something else")
    return value
