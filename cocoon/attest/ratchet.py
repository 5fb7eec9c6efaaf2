"""Never go back: the highest TCB numbers and issue dates seen, which older collateral may not undercut.

An operator who keeps yesterday's collateral could hide a revocation for as long as its dates allow. So a client
remembers, per platform family and issuer, the newest it has ever verified, and refuses what is older: numbers at
once, dates after a grace of two days, because honest providers refresh daily and not at the same minute.

A ratchet is a plain mapping from names to integers. `check` reads it, `advance` gives what to write; the caller
persists that. Names are few: platform families and issuers that Intel and NVIDIA signed for. Only verified values get
in, and none is dated after `now`, so nobody can push it into the future.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..errors import StaleEvidence
from .gpu.verify import VerifiedGpu
from .tdx import VerifiedQuote
from .trail import Trail

DATE_GRACE_S: Final = 2 * 24 * 3600

Ratchet = Mapping[str, int]


def values(quote: VerifiedQuote | None, gpus: tuple[VerifiedGpu, ...], *, is_hardware: bool) -> dict[str, int]:
    """What this evidence says, under the names that the ratchet uses. Simulated evidence has names of its own."""
    found: dict[str, int] = {}
    if quote is not None:
        family, collateral = quote.fmspc.hex(), quote.collateral
        found[f"number/tcb/{family}"] = collateral.tcb_evaluation_number
        found["number/qe"] = collateral.qe_evaluation_number
        found[f"date/tcb/{family}"] = collateral.tcb_info.issued_s
        found["date/qe"] = collateral.qe_identity.issued_s
        found[f"date/pck-crl/{collateral.pck_crl_issuer}"] = collateral.pck_crl.issued_s
        found["date/root-crl"] = collateral.root_crl.issued_s
    for gpu in gpus:
        found["date/gpu-crl-root"] = gpu.crl_root.issued_s
        found[f"date/gpu-crl-identity/{gpu.chip}"] = gpu.crl_identity.issued_s
    return {name if is_hardware else f"sim/{name}": value for name, value in found.items()}


def check(seen: Ratchet, found: Mapping[str, int], trail: Trail) -> None:
    """Refuse evidence that undercuts what was seen. Raises `StaleEvidence` with the name that went back."""
    for name, value in found.items():
        kind = name.removeprefix("sim/").split("/", 1)
        grace = DATE_GRACE_S if kind[0] == "date" else 0
        trail.require(
            value >= seen.get(name, value) - grace,
            f"ratchet.{kind[1].split('/', 1)[0]}{'-number' if not grace else ''}",
            StaleEvidence,
            f"{name} went back: {value} after {seen.get(name)} was seen",
        )


def advance(seen: Ratchet, found: Mapping[str, int]) -> dict[str, int]:
    """The entries that are new or higher, to be persisted."""
    return {name: value for name, value in found.items() if value > seen.get(name, -1)}
