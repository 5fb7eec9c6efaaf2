"""A software TEE: a whole simulated machine whose evidence has the real formats and passes the real verifier.

It needs this file's anchors instead of Intel's and NVIDIA's, and devnet: `roots.software` and the verifier refuse
it anywhere else, whatever the configuration says. It protects nothing; it shows and tests everything.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from ...attest.eventlog import EV_RUNTIME, LogKind, read_log, replay, runtime_digest
from ...attest.evidence import Bundle, GpuEvidence
from ...attest.release import MODELS_MEASURED, Release
from ...attest.roots import Anchors
from ...attest.roots import software as software_roots
from ...attest.statement import MODE_SIMULATED
from ...attest.verifier import EVENT_CONFIG, EVENT_IMAGE, EVENT_MODEL, EVENT_SEAL
from ...types import Digest, Network
from .software_intel import SoftwareIntel, TdFields
from .software_nvidia import Device, SoftwareNvidia

SOFTWARE_IMAGE: Final = hashlib.sha256(b"cocoon software TEE image").digest()
SOFTWARE_MRTD: Final = hashlib.sha384(b"cocoon software TEE").digest()
NO_CONFIG: Final = hashlib.sha256(b"").digest()
REFRESH_S: Final = 3600  # collateral is made anew this often; real providers fetch theirs daily
_EV_EFI_ACTION: Final = 0x80000007


@lru_cache(maxsize=1)
def _makers() -> tuple[SoftwareIntel, SoftwareNvidia]:
    return SoftwareIntel(), SoftwareNvidia()


def software_anchors(network: Network) -> Anchors:
    """The anchors that accept this machine's evidence. Raises `TrustRefused` on any network but devnet."""
    intel, nvidia = _makers()
    return anchors_of(network, intel, nvidia)


def anchors_of(network: Network, intel: SoftwareIntel, nvidia: SoftwareNvidia) -> Anchors:
    """Anchors of other simulated makers, for tests."""
    return software_roots(
        network,
        intel_root=intel.root.der,
        nvidia_device_root=nvidia.root.der,
        nvidia_rim_root=nvidia.rim_root.der,
    )


def build_ccel(events: Sequence[tuple[int, bytes]]) -> bytes:
    """A firmware log (TCG crypto-agile, SHA-384 only) of (RTMR index, text) events."""
    algorithms = struct.pack("<I", 1) + struct.pack("<HH", 0x0C, 48)
    header = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2) + algorithms + b"\0"
    log = struct.pack("<II20sI", 1, 3, bytes(20), len(header)) + header
    for rtmr, text in events:
        digest = hashlib.sha384(text).digest()
        log += struct.pack("<III", rtmr + 1, _EV_EFI_ACTION, 1) + struct.pack("<H", 0x0C) + digest
        log += struct.pack("<I", len(text)) + text
    return log


def build_json_log(events: Sequence[tuple[str, bytes]]) -> bytes:
    """A run-time log of RTMR3 events in dstack's form."""
    return json.dumps(
        [
            {
                "imr": 3,
                "event_type": EV_RUNTIME,
                "digest": runtime_digest(name, payload).hex(),
                "event": name,
                "event_payload": payload.hex(),
            }
            for name, payload in events
        ]
    ).encode()


FIRMWARE_EVENTS: Final = (
    (0, b"software firmware volume"),
    (0, b"software machine shape"),
    (1, b"software kernel"),
    (2, b"software kernel command line"),
)


@dataclass(kw_only=True)
class SoftwareEnclave:
    """One simulated machine. `clock_s` gives Unix seconds; `with_gpu` adds a simulated H100."""

    models: Sequence[Digest]
    clock_s: Callable[[], int]
    config: Digest = NO_CONFIG
    image: Digest = SOFTWARE_IMAGE
    name: str = "software-machine"
    with_gpu: bool = True
    intel: SoftwareIntel = field(default_factory=lambda: _makers()[0])
    nvidia: SoftwareNvidia = field(default_factory=lambda: _makers()[1])

    def __post_init__(self) -> None:
        self._ppid = hashlib.sha256(self.name.encode()).digest()[:16]
        self._machine = self.intel.machine(self._ppid)
        self._device = self.nvidia.device(self.name)
        self._static: tuple[int, bytes, tuple[bytes, ...], tuple[bytes, ...]] | None = None
        self._rims = self.nvidia.rims()

    @property
    def mode(self) -> int:
        """Always simulated."""
        return MODE_SIMULATED

    @property
    def device(self) -> Device:
        """The simulated GPU."""
        return self._device

    def logs(self) -> tuple[tuple[LogKind, bytes], ...]:
        """Firmware and run-time log, as a sealed Cocoon image leaves them."""
        runtime = [(EVENT_IMAGE, self.image), (EVENT_CONFIG, self.config)]
        runtime += [(EVENT_MODEL, model) for model in self.models]
        runtime.append((EVENT_SEAL, b""))
        return ((LogKind.CCEL, build_ccel(FIRMWARE_EVENTS)), (LogKind.JSON, build_json_log(runtime)))

    def fields(self, report_data: bytes) -> TdFields:
        """The guest's report over this report data."""
        events = [event for kind, data in self.logs() for event in read_log(data, kind)]
        return TdFields(report_data=report_data, mr_td=SOFTWARE_MRTD, rtmr=replay(events))

    def quote(self, fields: TdFields) -> bytes:
        """A quote of this machine over a report."""
        return self.intel.quote(self._machine, fields)

    async def gpu_evidence(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """The simulated GPU's report for this nonce."""
        if not self.with_gpu:
            return ()
        report = self.nvidia.report(self._device, nonce)
        return (GpuEvidence(report=report, chain=self._device.chain),)

    async def bundle(self, *, report_data: bytes, gpus: tuple[GpuEvidence, ...]) -> Bundle:
        """Complete evidence over this report data."""
        collateral, crls, answers = self._fresh()
        return Bundle(
            quote=self.quote(self.fields(report_data)),
            collateral=collateral,
            logs=self.logs(),
            gpus=gpus,
            rims=self._rims if gpus else (),
            crls=crls if gpus else (),
            ocsp=answers if gpus else (),
        )

    def _fresh(self) -> tuple[bytes, tuple[bytes, ...], tuple[bytes, ...]]:
        now_s = self.clock_s()
        if self._static is None or not 0 <= now_s - self._static[0] < REFRESH_S:
            issued_s = now_s - 60
            self._static = (
                now_s,
                self.intel.collateral(issued_s=issued_s),
                self.nvidia.crls(issued_s=issued_s),
                (self.nvidia.ocsp_answer(self._device, issued_s=issued_s),),
            )
        return self._static[1:]


def software_release(*, image: Digest = SOFTWARE_IMAGE) -> Release:
    """The release that simulated machines of the default firmware match. Worth nothing, like all of this."""
    rtmr = replay(read_log(build_ccel(FIRMWARE_EVENTS), LogKind.CCEL))
    return Release(
        name="software TEE",
        version="simulated",
        image=image,
        mrtd=frozenset((SOFTWARE_MRTD,)),
        rtmr0=frozenset((rtmr[0],)),
        rtmr1=frozenset((rtmr[1],)),
        rtmr2=frozenset((rtmr[2],)),
        models=MODELS_MEASURED,
        expires_s=1 << 39,
    )
