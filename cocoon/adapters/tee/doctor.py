"""What a provider's machine lacks to be an enclave, each finding with its fix. For `cocoon doctor`. Blocking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from ...attest.tdx import platform_of
from ...errors import CocoonError, Unavailable
from .collateral import INTEL_PCS, CollateralStore, Http
from .configfs import REPORT_DATA_BYTES, QuoteDevice
from .nvml import NvmlGpus

CLOCK_ERROR_MAX_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check. `fix` is empty when it passed."""

    name: str
    passed: bool
    detail: str
    fix: str = ""


def examine(
    *, device: QuoteDevice, gpus: NvmlGpus | None, collateral: CollateralStore, http: Http, clock_s: Callable[[], int]
) -> tuple[Finding, ...]:
    """Every check, in order; none stops the others."""
    quote: list[bytes] = []

    def make_quote() -> str:
        quote.append(device.quote(bytes(REPORT_DATA_BYTES)))
        return f"a quote of {len(quote[0])} bytes"

    def read_logs() -> str:
        return f"{len(device.logs())} event logs"

    def fetch() -> str:
        if not quote:
            raise Unavailable("no quote, so the platform is unknown")
        fmspc, ca = platform_of(quote[0])
        collateral.intel(fmspc=fmspc, ca=ca)
        return f"Intel collateral for family {fmspc.hex()}"

    def clock() -> str:
        when = http(f"{INTEL_PCS}/sgx/certification/v4/pckcrl?ca=platform&encoding=der", None, "").headers.get("date")
        try:
            theirs = int(parsedate_to_datetime(when or "").timestamp())
        except ValueError:
            raise Unavailable("no date to compare the clock with") from None
        error_s = clock_s() - theirs
        if abs(error_s) > CLOCK_ERROR_MAX_S:
            raise Unavailable(f"the clock is off by {error_s} s", advice="Set the guest's clock: run an NTP client.")
        return f"within {abs(error_s)} s"

    findings = [
        _finding("quote", make_quote),
        _finding("event-logs", read_logs),
        _finding("collateral", fetch),
        _finding("clock", clock),
    ]
    if gpus is not None:
        findings.append(_finding("gpu", lambda: _gpu(gpus)))
    return tuple(findings)


def _gpu(gpus: NvmlGpus) -> str:
    state = gpus.state()
    problem = state.problem()
    if problem is not None:
        raise Unavailable(problem, advice="Set the GPU to CC mode on the host (nvidia_gpu_tools), then reset it.")
    return f"{state.names[0]}, driver {state.driver_version}, confidential"


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, passed=True, detail=check())
    except CocoonError as error:
        return Finding(name=name, passed=False, detail=str(error), fix=error.advice or "See the operator's page.")
