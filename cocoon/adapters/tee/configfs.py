"""Quotes from the kernel's configfs-tsm report interface (Linux 6.7 and later), and RTMR3 through sysfs (6.16).

ABI: Documentation/ABI/testing/configfs-tsm-report and sysfs-devices-virtual-misc-tdx_guest in the kernel tree.
Blocking; call it from a worker thread. Needs root, as the kernel's files do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from ...attest import limits
from ...attest.eventlog import EV_RUNTIME, LogKind, runtime_digest, trim_ccel
from ...attest.quote import read_report, strip_padding
from ...attest.verifier import EVENT_CONFIG, EVENT_IMAGE, EVENT_MODEL, EVENT_SEAL
from ...errors import AttestationError, Unavailable
from ...types import Digest

REPORT_ROOT: Final = Path("/sys/kernel/config/tsm/report")
CCEL: Final = Path("/sys/firmware/acpi/tables/data/CCEL")
RTMR3: Final = Path("/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384")
RUNTIME_LOG: Final = Path("/run/cocoon/runtime-events.json")
PROVIDER: Final = "tdx_guest"
ENTRY: Final = "cocoon"
REPORT_DATA_BYTES: Final = 64
_ATTRIBUTE_BYTES_MAX: Final = 256


class QuoteDevice(Protocol):
    """Where quotes and event logs come from. Blocking."""

    def describe(self) -> str:
        """What it is, in words, once it is known to be there. Raises `Unavailable`."""
        ...

    def quote(self, report_data: bytes) -> bytes:
        """A quote over exactly 64 bytes. Raises `Unavailable`."""
        ...

    def logs(self) -> tuple[tuple[LogKind, bytes], ...]:
        """The event logs behind the quote's RTMRs. Raises `Unavailable`."""
        ...


class TsmFiles:
    """The few file operations that configfs needs; a test puts a pretended kernel in their place."""

    def ensure_directory(self, path: Path) -> None:
        """Make the report entry; the kernel fills it with attributes."""
        path.mkdir(exist_ok=True)

    def read(self, path: Path, bytes_max: int) -> bytes:
        """One read of an attribute."""
        with path.open("rb", buffering=0) as file:
            return file.read(bytes_max) or b""

    def write(self, path: Path, data: bytes) -> None:
        """One write of an attribute: the kernel takes it whole or not at all."""
        descriptor = os.open(path, os.O_WRONLY)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError("a short write")
        finally:
            os.close(descriptor)

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """Keep other processes out of the entry meanwhile."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class ConfigfsDevice:
    """The kernel's own quote device."""

    def __init__(
        self,
        *,
        report_root: Path = REPORT_ROOT,
        ccel: Path = CCEL,
        runtime_log: Path = RUNTIME_LOG,
        files: TsmFiles | None = None,
    ) -> None:
        self._entry = report_root / ENTRY
        self._ccel = ccel
        self._runtime_log = runtime_log
        self._files = files or TsmFiles()

    def describe(self) -> str:
        """The kernel's report entry of a TDX guest. Raises `Unavailable`."""
        try:
            self._files.ensure_directory(self._entry)
            self._check_provider()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        return f"the kernel's TDX guest device at {self._entry.parent}"

    def _check_provider(self) -> None:
        provider = self._files.read(self._entry / "provider", _ATTRIBUTE_BYTES_MAX).strip().decode("ascii", "replace")
        if provider != PROVIDER:
            raise Unavailable(
                f"the quote device is {provider[:32]!r}, not a TDX guest", advice="Start the guest with TDX."
            )

    def _failed(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the quote device failed: {error}",
            advice=f"Check that {self._entry.parent} exists (Linux 6.7+, CONFIG_TDX_GUEST_DRIVER) and run as root.",
        )

    def quote(self, report_data: bytes) -> bytes:
        """One quote, with its zero padding cut off.

        The entry's generation must move by exactly one, so that no other writer's quote is taken for ours, and the
        quote must carry our report data. Raises `Unavailable`.
        """
        assert len(report_data) == REPORT_DATA_BYTES
        files, entry = self._files, self._entry
        try:
            files.ensure_directory(entry)
            with files.locked(entry):
                self._check_provider()
                before = self._generation()
                files.write(entry / "inblob", report_data)
                quote = files.read(entry / "outblob", limits.QUOTE_BYTES_MAX + 1)
                moved = self._generation() - before
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        if moved != 1:
            raise Unavailable("another process used the quote device at the same time", retryable=True)
        return checked_quote(quote, report_data)

    def _generation(self) -> int:
        return int(self._files.read(self._entry / "generation", _ATTRIBUTE_BYTES_MAX))

    def logs(self) -> tuple[tuple[LogKind, bytes], ...]:
        """The firmware's log, trimmed, and the run-time log that `measure` wrote."""
        try:
            ccel = self._files.read(self._ccel, limits.EVENT_LOG_BYTES_MAX)
            runtime = self._files.read(self._runtime_log, limits.EVENT_LOG_BYTES_MAX)
            return ((LogKind.CCEL, trim_ccel(ccel)), (LogKind.JSON, runtime))
        except OSError as error:
            raise Unavailable(
                f"an event log cannot be read: {error}",
                advice=f"{self._ccel} is the firmware's log; {self._runtime_log} is written when the image boots.",
            ) from error
        except AttestationError as error:
            raise Unavailable(f"the firmware's event log is damaged: {error}") from error


def checked_quote(quote: bytes, report_data: bytes) -> bytes:
    """A device's answer without padding, once it is a TDX quote over our report data. Raises `Unavailable`."""
    try:
        exact = strip_padding(quote)
        form = read_report(exact)
    except AttestationError as error:
        raise Unavailable(f"the quote device gave no TDX quote: {error}") from error
    if form.report.report_data != report_data:
        raise Unavailable("the quote device answered with another quote than the one asked for")
    return exact


def measure(
    *,
    image: Digest,
    config: Digest,
    models: Sequence[bytes],
    rtmr: Path = RTMR3,
    runtime_log: Path = RUNTIME_LOG,
    files: TsmFiles | None = None,
) -> None:
    """Measure what runs into RTMR3 and seal it, once per boot, before any key is made (rule K6).

    `models` are manifest digests, each followed by the dm-verity root of its weights if there is one. Raises
    `Unavailable` when the kernel has no RTMR file, or when this boot has been measured already.
    """
    files = files or TsmFiles()
    events = [(EVENT_IMAGE, image), (EVENT_CONFIG, config), *((EVENT_MODEL, m) for m in models), (EVENT_SEAL, b"")]
    rows = [
        {
            "imr": 3,
            "event_type": EV_RUNTIME,
            "digest": runtime_digest(name, payload).hex(),
            "event": name,
            "event_payload": payload.hex(),
        }
        for name, payload in events
    ]
    try:
        runtime_log.parent.mkdir(parents=True, exist_ok=True)
        # Exclusive: a second measurement in one boot could not be replayed, and must not be possible after the seal.
        descriptor = os.open(runtime_log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "w") as log:
            json.dump(rows, log)
        for name, payload in events:
            files.write(rtmr, runtime_digest(name, payload))
    except FileExistsError as error:
        raise Unavailable("this boot has been measured already", advice="Reboot the guest to change it.") from error
    except OSError as error:
        raise Unavailable(
            f"RTMR3 cannot be extended: {error}", advice=f"{rtmr} needs Linux 6.16 or later; on dstack use its agent."
        ) from error


def digest_of_file(path: Path) -> Digest:
    """SHA-256 of a file, in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
