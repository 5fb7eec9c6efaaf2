"""What a run was made with, for its manifest: commit, a hash of the sources, versions, machine."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from functools import cache
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "numba", "pyarrow", "pandas", "trio", "libp2p", "pynacl", "msgspec", "cbor2", "dask")
GIT_WAIT_S = 10.0


def environment() -> dict[str, Any]:
    return {
        "git_commit": git("rev-parse", "HEAD") or "unknown",
        "git_is_clean": git("status", "--porcelain", "--", "sim", "p2p", "cocoon") == "",
        "source_hash": source_hash(),
        "python": sys.version.split()[0],
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": platform.platform(),
        "cpu": _cpu(),
    }


@cache
def source_hash() -> str:
    """Of every file that can change a result: equal hashes mean equal code, whatever git says."""
    digest = blake2b(digest_size=16)
    for package in ("cocoon", "p2p", "sim"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in (".py", ".json", ".csv") and path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(ROOT)}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()


def git(*arguments: str) -> str | None:
    """What git says in this checkout; None when there is no git, or this is no checkout."""
    program = shutil.which("git")
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            [program, "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=GIT_WAIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
