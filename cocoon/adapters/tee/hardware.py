"""A real enclave: quote device, GPU and collateral put together behind `Enclave`, one call at a time."""

from __future__ import annotations

import trio

from ...attest.certs import load_pem_chain
from ...attest.evidence import Bundle, GpuEvidence
from ...attest.gpu.report import read_report
from ...attest.gpu.rim import verify_rim
from ...attest.gpu.verify import CHAIN_LENGTH, GenuineReport, VerifiedGpu, verify_gpu, verify_report
from ...attest.roots import Anchors, hardware
from ...attest.statement import MODE_TDX, MODE_TDX_GPU
from ...attest.tdx import platform_of
from ...attest.trail import Trail
from ...errors import AttestationError, Unavailable
from ...types import Digest
from .collateral import CollateralStore
from .configfs import QuoteDevice
from .nvml import NvmlGpus


class HardwareEnclave:
    """A TDX guest, with one H100 or without. Blocking devices run in a worker thread, never two calls at once."""

    def __init__(
        self,
        *,
        device: QuoteDevice,
        collateral: CollateralStore,
        image: Digest,
        config: Digest,
        gpus: NvmlGpus | None = None,
        anchors: Anchors | None = None,
    ) -> None:
        self._device = device
        self._collateral = collateral
        self._image = image
        self._config = config
        self._gpus = gpus
        self._anchors = anchors or hardware()
        self._lock = trio.Lock()

    @property
    def mode(self) -> int:
        """TDX with or without a GPU."""
        return MODE_TDX if self._gpus is None else MODE_TDX_GPU

    @property
    def image(self) -> Digest:
        """The image digest in RTMR3."""
        return self._image

    @property
    def config(self) -> Digest:
        """The configuration digest in RTMR3."""
        return self._config

    async def gpu_evidence(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """The GPU's report for this nonce; none without a GPU. Raises `Unavailable`."""
        if self._gpus is None:
            return ()
        async with self._lock:
            return await trio.to_thread.run_sync(self._gpus.evidence, nonce)

    async def bundle(self, *, report_data: bytes, gpus: tuple[GpuEvidence, ...]) -> Bundle:
        """A quote over 64 bytes, with collateral, logs, RIMs and revocation answers. Raises `Unavailable`."""
        async with self._lock:
            return await trio.to_thread.run_sync(self._bundle, report_data, gpus)

    def _bundle(self, report_data: bytes, gpus: tuple[GpuEvidence, ...]) -> Bundle:
        quote = self._device.quote(report_data)
        try:
            fmspc, ca = platform_of(quote)
        except AttestationError as error:
            raise Unavailable(f"the quote names no platform: {error}") from error
        rims, crls, answers = gpu_collateral(self._collateral, gpus[0]) if gpus else ((), (), ())
        return Bundle(
            quote=quote,
            collateral=self._collateral.intel(fmspc=fmspc, ca=ca),
            logs=self._device.logs(),
            gpus=gpus,
            rims=rims,
            crls=crls,
            ocsp=answers,
        )

    async def check_and_set_ready(self, *, nonce: bytes, now_s: int) -> VerifiedGpu | None:
        """The guest verifies its own GPU as a client would, and lets it take work only then.

        Returns what was proven, or None without a GPU. Raises an `AttestationError` or `Unavailable`; the GPU then
        stays as it was: not ready.
        """
        gpus = self._gpus
        if gpus is None:
            return None
        shown = await self.gpu_evidence(nonce)

        def check() -> VerifiedGpu:
            rims, crls, answers = gpu_collateral(self._collateral, shown[0])
            trail = Trail()
            genuine: GenuineReport = verify_report(
                shown[0].report, shown[0].chain, anchors=self._anchors, now_s=now_s, nonce=nonce, trail=trail
            )
            verified = [verify_rim(data, anchors=self._anchors, now_s=now_s, trail=trail) for data in rims]
            proven = verify_gpu(genuine, verified, crls=crls, ocsp_answers=answers, now_s=now_s, trail=trail)
            gpus.set_ready()
            return proven

        async with self._lock:
            return await trio.to_thread.run_sync(check)


def gpu_collateral(
    collateral: CollateralStore, gpu: GpuEvidence
) -> tuple[tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...]]:
    """RIMs, revocation lists and OCSP answers for one GPU's report. Blocking. Raises `Unavailable`."""
    try:
        report = read_report(gpu.report)
        chain = load_pem_chain(gpu.chain, what="the device chain", reason="gpu.chain-format")
        if len(chain) < CHAIN_LENGTH - 1:
            raise Unavailable("the GPU's certificate chain is too short")
        rim_ids = (report.driver_rim_id, report.vbios_rim_id)
    except AttestationError as error:
        raise Unavailable(f"the GPU's report cannot be read: {error}") from error
    rims = tuple(collateral.rim(rim_id) for rim_id in rim_ids)
    answer = collateral.ocsp(subject=chain[1], issuer=chain[2])
    return rims, collateral.crls(), (answer,)
