"""`cocoon doctor`: what this machine lacks to prove itself to clients, each lack with its fix.

Run it in the guest, as root. It asks the quote device, the GPU's driver, and the services whose answers a provider
staples; nothing is changed, nothing is kept, and nothing is offered to anybody.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from .console import Console
from .options import add_common, setup

if TYPE_CHECKING:
    from ..adapters.tee.doctor import Finding

EXIT_LACKING: Final = 1

TITLES: Final = {
    "td-device": "TDX guest device",
    "quote": "quote generation",
    "event-logs": "event logs",
    "intel-collateral": "Intel collateral",
    "clock": "clock",
    "gpu-driver": "GPU driver",
    "gpu-cc-mode": "GPU confidential mode",
    "gpu-report": "GPU report",
    "gpu-collateral": "NVIDIA collateral",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon doctor`."""
    parser.add_argument(
        "--tee", choices=("tdx", "tdx+gpu"), help="what this machine is to prove (default: as configured, else tdx+gpu)"
    )
    add_common(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """0 when nothing is lacking, 1 otherwise."""
    configured = setup(args).config.provider.tee
    tee = args.tee or (configured if configured in ("tdx", "tdx+gpu") else "tdx+gpu")
    console.progress("asking the devices and the services …")
    return show(tee, findings_of(with_gpu=tee == "tdx+gpu"), console)


def findings_of(*, with_gpu: bool) -> tuple[Finding, ...]:
    """This machine's. Blocking: up to a minute when services cannot be reached."""
    import tempfile
    import time
    from pathlib import Path

    from ..adapters.tee.collateral import CollateralStore, urllib_http
    from ..adapters.tee.configfs import ConfigfsDevice
    from ..adapters.tee.doctor import examine
    from ..adapters.tee.dstack import SOCKET, DstackDevice
    from ..adapters.tee.nvml import NvmlGpus, load_nvml

    def clock_s() -> int:
        return int(time.time())

    def open_gpus() -> NvmlGpus:
        gpus = NvmlGpus(load_nvml())
        gpus.open()
        return gpus

    with tempfile.TemporaryDirectory(prefix="cocoon-doctor-") as folder:
        return examine(
            device=DstackDevice() if SOCKET.exists() else ConfigfsDevice(),
            open_gpus=open_gpus if with_gpu else None,
            collateral=CollateralStore(folder=Path(folder), clock_s=clock_s),
            http=urllib_http,
            clock_s=clock_s,
        )


def show(tee: str, findings: tuple[Finding, ...], console: Console) -> int:
    """Print them; the exit code."""
    ready = all(finding.passed for finding in findings)
    width = max(map(len, TITLES.values()))
    for finding in findings:
        console.line(f"{'✔' if finding.passed else '✘'} {TITLES[finding.name]:<{width}}  {finding.detail}")
        if finding.fix:
            console.line(f"  {'':<{width}}  → {finding.fix}")
    console.line("")
    if ready:
        console.line(f"This machine can prove itself as {tee}: `cocoon serve MODEL --tee {tee}`.")
    else:
        lacking = sum(not finding.passed for finding in findings)
        console.line(f"{lacking} of {len(findings)} are lacking: clients would refuse this machine as {tee}.")
    console.data({"tee": tee, "ready": ready, "checks": [_object(finding) for finding in findings]})
    return 0 if ready else EXIT_LACKING


def _object(finding: Finding) -> dict[str, Any]:
    return {"name": finding.name, "passed": finding.passed, "detail": finding.detail, "fix": finding.fix}
