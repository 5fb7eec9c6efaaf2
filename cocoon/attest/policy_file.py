"""A trust policy as a TOML file. Unknown keys are errors: a misspelt demand must not silently demand nothing.

    level = "confidential"              # or cpu-confidential, simulated (devnet only), open

    [releases]
    builders = ["<64 hex>", "<64 hex>", "<64 hex>"]
    threshold = 2
    files = ["cocoon-2026.11.json"]

    [tcb]
    statuses = ["UpToDate"]
    advisories_tolerated = []
    evaluation_number_min = 18

    [guest]
    mr_seam = ["<96 hex>"]

    [ages]
    tcb_info_days = 14
    qe_identity_days = 14
    pck_crl_days = 14
    gpu_crl_days = 90
    ocsp_hours = 48

    [ppid]
    allow_files = ["my-hosts.txt"]      # one PPID in hex per line; # starts a comment
    deny_files = []

    [gpu]
    drivers = ["550.144.03"]
    drivers_denied = []

    [[image]]                           # your own measurements, signed by nobody but you
    manifest = "my-image.json"

Files are read through a function that the caller gives, so nothing here touches the disk.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..errors import ConfigError
from ..types import Network, TrustLevel
from . import limits
from .images import ImagePolicy
from .policy import DAY_S, AgePolicy, GpuPolicy, GuestPolicy, PpidPolicy, TcbPolicy, TrustPolicy
from .release import Release, read_manifest, verify_release

_TABLES: Final[dict[str, frozenset[str]]] = {
    "releases": frozenset(("builders", "threshold", "files")),
    "tcb": frozenset(("statuses", "advisories_tolerated", "evaluation_number_min")),
    "guest": frozenset(("mr_seam",)),
    "ages": frozenset(("tcb_info_days", "qe_identity_days", "pck_crl_days", "gpu_crl_days", "ocsp_hours")),
    "ppid": frozenset(("allow_files", "deny_files")),
    "gpu": frozenset(("drivers", "drivers_denied")),
}
_STATUSES: Final = frozenset(
    ("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
     "OutOfDateConfigurationNeeded", "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded")
)  # fmt: skip
_PPID_BYTES: Final = 16

ReadFile = Callable[[str], bytes]


def parse_policy(text: str, *, network: Network, read: ReadFile, now_s: int) -> TrustPolicy:
    """The policy in TOML text. `read` gives the bytes of a file that the policy names.

    Raises `ConfigError` for the text itself, and an `AttestationError` for a release that its builders did not
    sign or that is out of date.
    """
    if len(text) > limits.POLICY_BYTES_MAX:
        raise ConfigError("the policy file is too long")
    try:
        root = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the policy is not TOML: {str(error)[:120]}") from None
    unknown = sorted(set(root) - set(_TABLES) - {"level", "image"})
    if unknown:
        raise ConfigError(f"the policy has an unknown key: {unknown[0][:40]}")
    tables = {name: _table(root, name, keys) for name, keys in _TABLES.items()}
    level = _level(root.get("level"))
    if level is TrustLevel.SIMULATED and network is not Network.DEVNET:
        raise ConfigError("level simulated holds on devnet only", advice='Use level = "confidential".')
    return TrustPolicy(
        level=level,
        network=network,
        tcb=_tcb(tables["tcb"]),
        guest=_guest(tables["guest"]),
        ages=_ages(tables["ages"]),
        images=ImagePolicy(
            releases=_releases(tables["releases"], read, now_s) + _own_images(root.get("image", []), read)
        ),
        ppid=_ppid(tables["ppid"], read),
        gpu=_gpu(tables["gpu"]),
    )


def _level(value: Any) -> TrustLevel:
    for level in TrustLevel:
        if level.value == value:
            return level
    raise ConfigError("the policy names no trust level", advice='Write level = "confidential" as its first line.')


def _table(root: Mapping[str, Any], name: str, keys: frozenset[str]) -> dict[str, Any]:
    table = root.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"[{name}] is not a table")
    unknown = sorted(set(table) - keys)
    if unknown:
        raise ConfigError(f"[{name}] has an unknown key: {unknown[0][:40]}")
    return table


def _tcb(table: dict[str, Any]) -> TcbPolicy:
    default = TcbPolicy()
    statuses = frozenset(_strings(table, "statuses", default.statuses))
    if statuses - _STATUSES:
        raise ConfigError(f"no such TCB status: {min(statuses - _STATUSES)[:40]}")
    return TcbPolicy(
        statuses=statuses,
        advisories_tolerated=frozenset(_strings(table, "advisories_tolerated", default.advisories_tolerated)),
        evaluation_number_min=(
            _count(table, "evaluation_number_min", 0, 1 << 20) if "evaluation_number_min" in table else None
        ),
    )


def _guest(table: dict[str, Any]) -> GuestPolicy:
    if "mr_seam" not in table:
        return GuestPolicy()
    return GuestPolicy(mr_seam=frozenset(_hex(v, 48, "mr_seam") for v in _strings(table, "mr_seam", ())))


def _ages(table: dict[str, Any]) -> AgePolicy:
    default = AgePolicy()
    days = {
        f"{name}_s": _count(table, f"{name}_days", getattr(default, f"{name}_s") // DAY_S, 365) * DAY_S
        for name in ("tcb_info", "qe_identity", "pck_crl", "gpu_crl")
    }
    return AgePolicy(**days, ocsp_s=_count(table, "ocsp_hours", default.ocsp_s // 3600, 24 * 30) * 3600)


def _releases(table: dict[str, Any], read: ReadFile, now_s: int) -> tuple[Release, ...]:
    files = _strings(table, "files", ())
    if len(files) > limits.RELEASES_MAX:
        raise ConfigError(f"more than {limits.RELEASES_MAX} releases")
    if not files:
        return ()
    builders = frozenset(_hex(v, 32, "builders") for v in _strings(table, "builders", ()))
    threshold = _count(table, "threshold", 0, limits.BUILDERS_MAX)
    return tuple(verify_release(read(name), builders=builders, threshold=threshold, now_s=now_s) for name in files)


def _own_images(rows: Any, read: ReadFile) -> tuple[Release, ...]:
    if not isinstance(rows, list) or len(rows) > limits.RELEASES_MAX:
        raise ConfigError("[[image]] is not a short list of tables")
    releases = []
    for row in rows:
        if not isinstance(row, dict) or set(row) != {"manifest"} or not isinstance(row["manifest"], str):
            raise ConfigError("[[image]] takes exactly one key: manifest")
        releases.append(read_manifest(read(row["manifest"])))
    return tuple(releases)


def _ppid(table: dict[str, Any], read: ReadFile) -> PpidPolicy:
    allow = None
    if "allow_files" in table:
        allow = frozenset(p for name in _strings(table, "allow_files", ()) for p in _ppids(read(name)))
    deny = frozenset(p for name in _strings(table, "deny_files", ()) for p in _ppids(read(name)))
    return PpidPolicy(allow=allow, deny=deny)


def _ppids(data: bytes) -> list[bytes]:
    try:
        lines = [line.split("#", 1)[0].strip() for line in data.decode("utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ConfigError("a PPID list is not text") from None
    found = [_hex(line, _PPID_BYTES, "a PPID list") for line in lines if line]
    if len(found) > limits.PPIDS_MAX:
        raise ConfigError(f"a PPID list has more than {limits.PPIDS_MAX} entries")
    return found


def _gpu(table: dict[str, Any]) -> GpuPolicy:
    drivers = frozenset(_strings(table, "drivers", ())) if "drivers" in table else None
    return GpuPolicy(drivers=drivers, drivers_denied=frozenset(_strings(table, "drivers_denied", ())))


def _strings(table: dict[str, Any], key: str, default: Any) -> list[str]:
    value = table.get(key, list(default))
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{key} is not a list of strings")
    return value


def _count(table: dict[str, Any], key: str, default: int, limit: int) -> int:
    value = table.get(key, default)
    if type(value) is not int or not 0 <= value <= limit:
        raise ConfigError(f"{key} is not a whole number from 0 to {limit}")
    return value


def _hex(text: str, size: int, what: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != size:
        raise ConfigError(f"{what}: {text[:20]!r} is not {size} bytes of hex")
    return raw
