"""What a provider needs of the machine that it runs in: GPU reports, a quote, and what proves them.

The order is fixed by what commits to what: GPU reports answer a nonce made of N, P and E; their digests go into
the statement S; the quote's report_data is the hash of S. Implementations are in `cocoon.adapters.tee`.
"""

from __future__ import annotations

from typing import Protocol

from ..types import Digest
from .evidence import Bundle, GpuEvidence


class Enclave(Protocol):
    """A machine that can prove what it is. Calls may take tens of milliseconds; they never run at once."""

    @property
    def mode(self) -> int:
        """The mode for S: `MODE_SIMULATED`, `MODE_TDX` or `MODE_TDX_GPU`."""
        ...

    @property
    def image(self) -> Digest:
        """The image digest that was measured into RTMR3."""
        ...

    @property
    def config(self) -> Digest:
        """The configuration digest that was measured into RTMR3."""
        ...

    async def gpu_evidence(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """One report per GPU for this 32-byte nonce; none without a GPU. Raises `Unavailable`."""
        ...

    async def bundle(self, *, report_data: bytes, gpus: tuple[GpuEvidence, ...]) -> Bundle:
        """A quote over 64 bytes of report data, with everything that a client needs to verify it and the GPUs.

        Raises `Unavailable` when the device fails or the collateral cannot be had.
        """
        ...
