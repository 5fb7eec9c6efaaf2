"""Which enclave a provider runs in, from the words of its configuration.

`none`: no evidence, trust level `open`. `simulated`: a software TEE, on the devnet only, which protects nothing. `tdx`
and `tdx+gpu`: this very machine, which must be a TDX guest; its image and configuration digests are what it measured
into RTMR3 before it made its keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ...attest.enclave import Enclave
from ...errors import ConfigError
from ...ports import Clock
from ...types import DIGEST_BYTES, SECOND_NS, Digest, Network

NONE: Final = "none"
SIMULATED: Final = "simulated"
TDX: Final = "tdx"
TDX_GPU: Final = "tdx+gpu"
KINDS: Final = (NONE, SIMULATED, TDX, TDX_GPU)


def open_enclave(
    kind: str,
    *,
    network: Network,
    model: Digest,
    clock: Clock,
    folder: Path,
    image_hex: str | None,
    config_hex: str | None,
) -> Enclave | None:
    """The enclave, or None for `none`. `folder` keeps collateral. Raises `ConfigError`, `Unavailable`."""

    def clock_s() -> int:
        return clock.now() // SECOND_NS

    if kind not in KINDS:
        raise ConfigError(f"no such enclave: {kind[:32]!r}", advice=f"Use one of {', '.join(KINDS)}.")
    if kind == NONE:
        return None
    if kind == SIMULATED:
        if network is not Network.DEVNET:
            raise ConfigError(f"a simulated enclave is refused on {network.label}", advice="Use --network devnet.")
        from .software import SoftwareEnclave

        return SoftwareEnclave(models=[model], clock_s=clock_s)
    from .collateral import CollateralStore
    from .configfs import ConfigfsDevice
    from .dstack import SOCKET, DstackDevice
    from .hardware import HardwareEnclave
    from .nvml import NvmlGpus, load_nvml

    gpus = NvmlGpus(load_nvml()) if kind == TDX_GPU else None
    if gpus is not None:
        gpus.open()
    return HardwareEnclave(
        device=DstackDevice() if SOCKET.exists() else ConfigfsDevice(),
        collateral=CollateralStore(folder=folder, clock_s=clock_s),
        image=_digest(image_hex, "provider.image"),
        config=_digest(config_hex, "provider.config_digest"),
        gpus=gpus,
    )


async def make_ready(enclave: Enclave | None, *, nonce: bytes, clock: Clock) -> None:
    """A guest with a GPU verifies it as a client would, and lets it take work only then.

    `nonce` is 32 random bytes. Raises an `AttestationError` or `Unavailable`; the GPU is then not ready.
    """
    from .hardware import HardwareEnclave

    if isinstance(enclave, HardwareEnclave):
        await enclave.check_and_set_ready(nonce=nonce, now_s=clock.now() // SECOND_NS)


def _digest(text: str | None, name: str) -> Digest:
    try:
        digest = bytes.fromhex(text or "")
    except ValueError:
        digest = b""
    if len(digest) != DIGEST_BYTES:
        raise ConfigError(
            f"{name} is not a SHA-256 in hex",
            advice="It is what this guest measured into RTMR3 at boot (docs/operators/confidential-host.md).",
        )
    return digest
