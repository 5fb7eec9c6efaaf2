"""Reading an H100 attestation report: an SPDM 1.1 GET_MEASUREMENTS request and its MEASUREMENTS response.

Every length has to end exactly where the one around it does; the last 96 bytes are the signature over all that
comes before. Nothing here is proven: `verify.py` checks the signature. Layout: DMTF DSP0274 §10.11 and the fields
that NVIDIA puts into the opaque data, checked against real reports.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from ...errors import GpuReportInvalid
from .. import limits

REQUEST_BYTES: Final = 37
REQUEST_OPENING: Final = bytes.fromhex("11e001ff")  # SPDM 1.1, GET_MEASUREMENTS, signed, all blocks
RESPONSE_OPENING: Final = bytes.fromhex("1160")  # SPDM 1.1, MEASUREMENTS
BLOCKS: Final = 64
BLOCK_BYTES: Final = 48
SIGNATURE_BYTES: Final = 96
NONCE_BYTES: Final = 32
_DMTF: Final = 1

# Opaque fields that we read; the others are signed but carry nothing that we judge.
DRIVER_VERSION: Final = 3
VBIOS_VERSION: Final = 6
NVDEC0_STATUS: Final = 11
CHIP_SKU: Final = 15
PROJECT: Final = 17
PROJECT_SKU: Final = 18
FWID: Final = 20
PROTECTED_PCIE: Final = 21
FEATURE: Final = 36

DISABLED: Final = b"\x55"
FEATURES: Final = {0: "single GPU", 1: "multi-GPU", 2: "protected PCIe"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """An unverified reading of a report."""

    nonce: bytes  # of the request: what was asked to be signed
    slot: int
    blocks: dict[int, bytes]  # 1–64 → 48-byte measurement
    opaque: dict[int, bytes]
    signed: bytes
    signature: bytes

    @property
    def driver_version(self) -> str:
        """E.g. "550.90.07"."""
        return self._text(DRIVER_VERSION)

    @property
    def vbios_version(self) -> str:
        """E.g. "96.00.9F.00.01": the field is little-endian with the build number in its upper half."""
        raw = self.opaque.get(VBIOS_VERSION, b"")
        if len(raw) != 8:
            raise GpuReportInvalid("the report names no VBIOS version", reason="gpu.vbios-version")
        return ".".join(f"{raw[i]:02X}" for i in (3, 2, 1, 0, 4))

    @property
    def driver_rim_id(self) -> str:
        """NVIDIA's name for the RIM of this driver."""
        return f"NV_GPU_DRIVER_GH100_{self.driver_version}"

    @property
    def vbios_rim_id(self) -> str:
        """NVIDIA's name for the RIM of this board's VBIOS."""
        board = "_".join(self._text(field).upper() for field in (PROJECT, PROJECT_SKU, CHIP_SKU))
        return f"NV_GPU_VBIOS_{board}_{self.vbios_version.replace('.', '')}"

    @property
    def feature(self) -> str:
        """How the GPU is attached: "single GPU", or a mode that version 1 refuses."""
        flag = self.opaque.get(FEATURE)
        if flag:
            return FEATURES.get(int.from_bytes(flag, "little"), "unknown feature")
        # Drivers before the feature flag say it with the older field.
        return FEATURES[0] if self.opaque.get(PROTECTED_PCIE, DISABLED) == DISABLED else FEATURES[2]

    @property
    def is_nvdec0_disabled(self) -> bool:
        """Then measurement 35 does not exist."""
        return self.opaque.get(NVDEC0_STATUS) == DISABLED

    def _text(self, field: int) -> str:
        raw = self.opaque.get(field, b"").rstrip(b"\0")
        if not raw or not raw.isascii() or not raw.decode("ascii").isprintable():
            raise GpuReportInvalid(f"the report's field {field} is missing or not text", reason="gpu.opaque-text")
        return raw.decode("ascii")


def read_report(data: bytes) -> GpuReport:
    """The fields of a report that fills its bytes exactly. Raises `GpuReportInvalid`."""
    if len(data) > limits.REPORT_BYTES_MAX:
        raise GpuReportInvalid(f"a report of {len(data)} bytes is too long", reason="gpu.size")
    if len(data) < REQUEST_BYTES + 8:
        raise GpuReportInvalid("the report is cut off", reason="gpu.truncated")
    request, response = data[:REQUEST_BYTES], data[REQUEST_BYTES:]
    if request[:4] != REQUEST_OPENING or response[:2] != RESPONSE_OPENING:
        raise GpuReportInvalid("not an SPDM 1.1 measurement report", reason="gpu.format")
    if response[4] != BLOCKS:
        raise GpuReportInvalid(f"a report with {response[4]} blocks; an H100 has {BLOCKS}", reason="gpu.blocks")
    record_end = 8 + int.from_bytes(response[5:8], "little")
    opaque_at = record_end + NONCE_BYTES + 2
    opaque_end = opaque_at + int.from_bytes(response[opaque_at - 2 : opaque_at], "little")
    extra = len(response) - opaque_end - SIGNATURE_BYTES
    if extra < 0:
        raise GpuReportInvalid("the report is cut off", reason="gpu.truncated")
    if extra > 0:
        raise GpuReportInvalid(f"{extra} bytes follow the report", reason="gpu.trailing-bytes")
    return GpuReport(
        nonce=request[4:36],
        slot=request[36],
        blocks=_read_blocks(response[8:record_end]),
        opaque=_read_opaque(response[opaque_at:opaque_end]),
        signed=data[:-SIGNATURE_BYTES],
        signature=data[-SIGNATURE_BYTES:],
    )


def _read_blocks(record: bytes) -> dict[int, bytes]:
    blocks: dict[int, bytes] = {}
    at = 0
    for _ in range(BLOCKS):
        if at + 7 > len(record):
            raise GpuReportInvalid("a measurement block is cut off", reason="gpu.blocks")
        index, specification, size, _kind, length = struct.unpack_from("<BBHBH", record, at)
        value = record[at + 7 : at + 7 + length]
        if (
            specification != _DMTF
            or length != BLOCK_BYTES
            or size != length + 3
            or len(value) != length
            or not 1 <= index <= BLOCKS
            or index in blocks
        ):
            raise GpuReportInvalid("a measurement block is malformed or doubled", reason="gpu.blocks")
        blocks[index] = value
        at += 7 + length
    if at != len(record):
        raise GpuReportInvalid("bytes follow the last measurement block", reason="gpu.blocks")
    return blocks


def _read_opaque(data: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        if at + 4 > len(data) or len(fields) >= limits.OPAQUE_FIELDS_MAX:
            raise GpuReportInvalid("the opaque data is cut off or too long", reason="gpu.opaque")
        kind, size = struct.unpack_from("<HH", data, at)
        value = data[at + 4 : at + 4 + size]
        if len(value) != size or kind in fields:
            raise GpuReportInvalid(f"opaque field {kind} is cut off or doubled", reason="gpu.opaque")
        fields[kind] = value
        at += 4 + size
    return fields
