"""What a provider's machine lacks to be an enclave, each finding with its fix. For `cocoon doctor`. Blocking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from ...attest.evidence import GpuEvidence
from ...attest.tdx import platform_of
from ...errors import CocoonError, Unavailable
from .collateral import INTEL_PCS, CollateralStore, Http
from .configfs import REPORT_DATA_BYTES, QuoteDevice
from .hardware import gpu_collateral
from .nvml import NONCE_BYTES, NvmlGpus

CLOCK_ERROR_MAX_S: Final = 60
GUIDE: Final = "See docs/operators/confidential-host.md."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check. `fix` is empty when it passed."""

    name: str
    passed: bool
    detail: str
    fix: str = ""


def examine(
    *,
    device: QuoteDevice,
    open_gpus: Callable[[], NvmlGpus] | None,
    collateral: CollateralStore,
    http: Http,
    clock_s: Callable[[], int],
) -> tuple[Finding, ...]:
    """Every check, in order; none stops the others. `open_gpus` is None for a guest that offers no GPU.

    `collateral` should have an empty folder: copies from before would hide that a service cannot be reached.
    """
    findings = [_finding("td-device", device.describe), *_quote(device, collateral)]
    findings.append(_finding("clock", lambda: _clock(http, clock_s)))
    if open_gpus is not None:
        findings += _gpu(open_gpus, collateral)
    return tuple(findings)


def _quote(device: QuoteDevice, collateral: CollateralStore) -> list[Finding]:
    made: list[bytes] = []

    def make() -> str:
        made.append(device.quote(bytes(REPORT_DATA_BYTES)))
        return f"a quote of {len(made[0])} bytes"

    def fetch() -> str:
        if not made:
            raise Unavailable("no quote, so the platform is unknown")
        fmspc, ca = platform_of(made[0])
        collateral.intel(fmspc=fmspc, ca=ca)
        return f"Intel's for the platform family {fmspc.hex()}"

    return [
        _finding("quote", make),
        _finding("event-logs", lambda: f"{len(device.logs())} read"),
        _finding("intel-collateral", fetch),
    ]


def _clock(http: Http, clock_s: Callable[[], int]) -> str:
    when = http(f"{INTEL_PCS}/sgx/certification/v4/pckcrl?ca=platform&encoding=der", None, "").headers.get("date")
    try:
        theirs = int(parsedate_to_datetime(when or "").timestamp())
    except ValueError:
        raise Unavailable("no date to compare the clock with") from None
    error_s = clock_s() - theirs
    if abs(error_s) > CLOCK_ERROR_MAX_S:
        raise Unavailable(f"off by {error_s} s", advice="Set the guest's clock: run an NTP client.")
    return f"within {abs(error_s)} s of Intel's"


def _gpu(open_gpus: Callable[[], NvmlGpus], collateral: CollateralStore) -> list[Finding]:
    opened: list[NvmlGpus] = []
    shown: list[GpuEvidence] = []

    def driver() -> str:
        opened.append(open_gpus())
        return f"driver {opened[0].state().driver_version}"

    def mode() -> str:
        state = _opened(opened).state()
        problem = state.problem()
        if problem is not None:
            raise Unavailable(problem, advice="On the host: nvidia_gpu_tools.py --set-cc-mode=on, then reset the GPU.")
        return f"{state.names[0]}, confidential"

    def report() -> str:
        shown.extend(_opened(opened).evidence(bytes(NONCE_BYTES)))
        return f"a report of {len(shown[0].report)} bytes"

    def fetch() -> str:
        if not shown:
            raise Unavailable("no report, so driver and VBIOS are unknown")
        gpu_collateral(collateral, shown[0])
        return "NVIDIA's reference values, revocation lists and device status"

    found = [
        _finding("gpu-driver", driver),
        _finding("gpu-cc-mode", mode),
        _finding("gpu-report", report),
        _finding("gpu-collateral", fetch),
    ]
    for gpus in opened:
        gpus.close()
    return found


def _opened(gpus: list[NvmlGpus]) -> NvmlGpus:
    if not gpus:
        raise Unavailable("NVML does not start, so nothing is known of the GPU")
    return gpus[0]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, passed=True, detail=check())
    except CocoonError as error:
        return Finding(name=name, passed=False, detail=str(error), fix=error.advice or GUIDE)
