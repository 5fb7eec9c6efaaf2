"""GPU reports and the confidential-computing state, through NVML (`nvidia-ml-py`, an optional dependency).

NVML is passed in, so tests run without a GPU. Blocking; call it from a worker thread. The report does not say
whether a GPU is in DevTools mode, so that is asked here, inside the guest, whose measured image runs this code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

from ...attest.evidence import GpuEvidence
from ...errors import ConfigError, Unavailable

NONCE_BYTES: Final = 32
CC_ENABLED: Final = 1
DEV_TOOLS_OFF: Final = 0
ENVIRONMENT_PROD: Final = 2
MULTI_GPU_NONE: Final = 0
_ENVIRONMENTS: Final = {0: "unavailable", 1: "simulation", 2: "production"}


class Nvml(Protocol):
    """The part of the `pynvml` module that is used."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlSystemGetDriverVersion(self) -> Any: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlSystemGetConfComputeState(self) -> Any: ...  # noqa: N802
    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle: Any, nonce: bytes) -> Any: ...  # noqa: N802
    def nvmlDeviceGetConfComputeGpuCertificate(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlSystemSetConfComputeGpusReadyState(self, state: int) -> Any: ...  # noqa: N802


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """What NVML says of the machine's GPUs."""

    driver_version: str
    names: tuple[str, ...]
    environment: int
    confidential: bool
    dev_tools: bool

    def problem(self) -> str | None:
        """Why these GPUs must not be offered as confidential, or None."""
        if len(self.names) != 1:
            return f"{len(self.names)} GPUs are visible; exactly one is supported in an enclave"
        if not self.confidential:
            return f"{self.names[0]} is not in confidential-computing mode"
        if self.dev_tools:
            return f"{self.names[0]} is in DevTools mode: its memory can be read from outside"
        if self.environment != ENVIRONMENT_PROD:
            return f"the confidential environment is {_ENVIRONMENTS.get(self.environment, 'unknown')}, not production"
        return None


def load_nvml() -> Nvml:
    """The real module. Raises `ConfigError` when it is not installed."""
    try:
        import pynvml
    except ImportError:
        raise ConfigError(
            "NVML's Python module is not installed", advice="Install it with the extra: pip install cocoon-network[gpu]"
        ) from None
    module: Nvml = pynvml
    return module


class NvmlGpus:
    """The GPUs of this machine. Open it before use, close it after."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml

    def open(self) -> None:
        """Start NVML. Raises `Unavailable` without a driver."""
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise Unavailable(
                f"NVML does not start: {error}", advice="Install NVIDIA's driver for confidential computing."
            ) from error

    def close(self) -> None:
        """Stop NVML."""
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            raise Unavailable(f"NVML does not stop: {error}") from error

    def state(self) -> GpuState:
        """Names, driver and confidential-computing state. A card that knows no such mode is not confidential."""
        nvml = self._nvml
        try:
            names = tuple(
                _text(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(i)))
                for i in range(nvml.nvmlDeviceGetCount())
            )
            driver = _text(nvml.nvmlSystemGetDriverVersion())
        except nvml.NVMLError as error:
            raise Unavailable(f"NVML cannot list the GPUs: {error}") from error
        try:
            state = nvml.nvmlSystemGetConfComputeState()
        except nvml.NVMLError:  # "not supported": an ordinary card or driver
            return GpuState(driver_version=driver, names=names, environment=0, confidential=False, dev_tools=False)
        return GpuState(
            driver_version=driver,
            names=names,
            environment=int(state.environment),
            confidential=int(state.ccFeature) == CC_ENABLED,
            dev_tools=int(state.devToolsMode) != DEV_TOOLS_OFF,
        )

    def evidence(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """The one GPU's report for this nonce, with its device chain. Raises `Unavailable` with the reason."""
        assert len(nonce) == NONCE_BYTES
        problem = self.state().problem()
        if problem is not None:
            raise Unavailable(problem, retryable=False, advice="Set the GPU to CC mode on the host, then reboot it.")
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(0)
            report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(handle, nonce)
            chain = nvml.nvmlDeviceGetConfComputeGpuCertificate(handle)
        except nvml.NVMLError as error:
            raise Unavailable(f"the GPU gave no attestation report: {error}") from error
        return (
            GpuEvidence(
                report=bytes(report.attestationReport)[: int(report.attestationReportSize)],
                chain=bytes(chain.attestationCertChain)[: int(chain.attestationCertChainSize)].rstrip(b"\0"),
            ),
        )

    def set_ready(self) -> None:
        """Let the GPU take work. Call only after the guest has verified its own evidence."""
        try:
            self._nvml.nvmlSystemSetConfComputeGpusReadyState(1)
        except self._nvml.NVMLError as error:
            raise Unavailable(f"the GPU does not become ready: {error}", advice="Run as root.") from error


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
