"""The bytes of hardware evidence: what a provider staples to its statement S, and what a client saves of a session.

`Hardware` travels in `wire.messages.Evidence.hardware`. Its large static parts (collateral, event logs, RIMs,
revocation lists) are named by SHA-256 and may be left out: the client then fetches them over `/cocoon/blob/1`, or
has them already. Everything in it is signed by somebody, so it does not matter who carries it.

`SavedEvidence` is one file with everything inline: what `cocoon verify FILE` reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Final

from msgspec import Meta

from ..errors import DecodeError, EvidenceMalformed, LimitExceeded
from ..types import Digest, Network
from ..wire import limits as wire_limits
from ..wire.codec import decode_as, encode
from ..wire.messages import U8, U16, U63, Bytes32, Message, NetworkId, Signature
from . import limits
from .eventlog import LogKind

HARDWARE_VERSION: Final = 1
SAVED_MAGIC: Final = b"cocoon-evidence\x01"


class PartKind(IntEnum):
    """What a part is."""

    COLLATERAL = 1
    CCEL = 2
    JSON_LOG = 3
    RIM = 4
    CRL = 5


PART_BYTES_MAX: Final[dict[PartKind, int]] = {
    PartKind.COLLATERAL: limits.COLLATERAL_BYTES_MAX,
    PartKind.CCEL: limits.EVENT_LOG_BYTES_MAX,
    PartKind.JSON_LOG: limits.EVENT_LOG_BYTES_MAX,
    PartKind.RIM: limits.RIM_BYTES_MAX,
    PartKind.CRL: limits.CRL_BYTES_MAX,
}
_PART_COUNT_MAX: Final[dict[PartKind, int]] = {
    PartKind.COLLATERAL: 1,
    PartKind.CCEL: 1,
    PartKind.JSON_LOG: 1,
    PartKind.RIM: limits.RIMS_MAX,
    PartKind.CRL: limits.CRLS_MAX,
}


class Part(Message, frozen=True):
    """A static part: its digest, and its bytes unless the client is to fetch them."""

    kind: U8
    digest: Bytes32
    data: Annotated[bytes, Meta(max_length=limits.EVENT_LOG_BYTES_MAX)]


class GpuPart(Message, frozen=True):
    """One GPU's report and device chain, as NVML gives them."""

    report: Annotated[bytes, Meta(min_length=1, max_length=limits.REPORT_BYTES_MAX)]
    chain: Annotated[bytes, Meta(min_length=1, max_length=limits.PEM_BYTES_MAX)]


class Hardware(Message, frozen=True, tag=48):
    """Hardware evidence on the wire."""

    version: U16
    quote: Annotated[bytes, Meta(min_length=1, max_length=limits.QUOTE_BYTES_MAX)]
    nonce_index: U16  # place of our nonce among those that S commits to; 0 when S holds it itself
    nonce_path: Annotated[list[Bytes32], Meta(max_length=limits.NONCE_PATH_MAX)]
    gpus: Annotated[list[GpuPart], Meta(max_length=limits.GPUS_MAX)]
    ocsp: Annotated[
        list[Annotated[bytes, Meta(min_length=1, max_length=limits.OCSP_BYTES_MAX)]],
        Meta(max_length=limits.OCSP_ANSWERS_MAX),
    ]
    parts: Annotated[list[Part], Meta(max_length=limits.PARTS_MAX)]


class SavedEvidence(Message, frozen=True, tag=49):
    """One session's evidence with the client's view of whom it asked. `saved_s` is Unix seconds, for people."""

    network: NetworkId
    nonce: Bytes32  # the client's own
    peer: Bytes32
    operator: Bytes32
    model: Bytes32
    payout: Bytes32
    statement: Annotated[bytes, Meta(min_length=1, max_length=4_096)]
    operator_signature: Signature
    peer_signature: Signature
    hardware: Annotated[bytes, Meta(max_length=limits.SAVED_BYTES_MAX)]
    saved_s: U63


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvidence:
    """One GPU's report and device chain."""

    report: bytes = field(repr=False)
    chain: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """All hardware evidence of one session, complete. Unverified."""

    quote: bytes = field(repr=False)
    collateral: bytes = field(repr=False)
    logs: tuple[tuple[LogKind, bytes], ...] = field(repr=False)
    gpus: tuple[GpuEvidence, ...] = ()
    rims: tuple[bytes, ...] = field(default=(), repr=False)
    crls: tuple[bytes, ...] = field(default=(), repr=False)
    ocsp: tuple[bytes, ...] = field(default=(), repr=False)
    nonce_index: int = 0
    nonce_path: tuple[bytes, ...] = ()

    def parts(self) -> Iterable[tuple[PartKind, bytes]]:
        """The static parts: what may travel by digest."""
        yield PartKind.COLLATERAL, self.collateral
        for kind, data in self.logs:
            yield (PartKind.CCEL if kind is LogKind.CCEL else PartKind.JSON_LOG), data
        for data in self.rims:
            yield PartKind.RIM, data
        for data in self.crls:
            yield PartKind.CRL, data


def encode_bundle(bundle: Bundle, *, by_digest: bool = False) -> bytes:
    """The bytes of hardware evidence; with `by_digest` the static parts are only named."""
    return encode(
        Hardware(
            version=HARDWARE_VERSION,
            quote=bundle.quote,
            nonce_index=bundle.nonce_index,
            nonce_path=list(bundle.nonce_path),
            gpus=[GpuPart(report=gpu.report, chain=gpu.chain) for gpu in bundle.gpus],
            ocsp=list(bundle.ocsp),
            parts=[
                Part(kind=kind, digest=hashlib.sha256(data).digest(), data=b"" if by_digest else data)
                for kind, data in bundle.parts()
            ],
        )
    )


def decode_hardware(data: bytes, *, bytes_max: int = wire_limits.EVIDENCE_BYTES_MAX) -> Hardware:
    """The message in these bytes. Raises `EvidenceMalformed`."""
    try:
        hardware = decode_as(data, Hardware, bytes_max=bytes_max)
    except (DecodeError, LimitExceeded) as error:
        raise EvidenceMalformed(f"hardware evidence: {error}", reason="evidence.format") from error
    if hardware.version != HARDWARE_VERSION:
        raise EvidenceMalformed(f"evidence version {hardware.version} is unknown", reason="evidence.version")
    counts: dict[PartKind, int] = {}
    for part in hardware.parts:
        try:
            kind = PartKind(part.kind)
        except ValueError:
            raise EvidenceMalformed(f"an unknown part {part.kind}", reason="evidence.part-kind") from None
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] > _PART_COUNT_MAX[kind] or len(part.data) > PART_BYTES_MAX[kind]:
            raise EvidenceMalformed(f"too many or too large parts: {kind.name}", reason="evidence.part-size")
    return hardware


def missing_parts(hardware: Hardware, have: Mapping[Digest, bytes]) -> tuple[tuple[PartKind, Digest], ...]:
    """What has to be fetched before the evidence is complete. `PART_BYTES_MAX` says how much to take of each."""
    return tuple(
        (PartKind(part.kind), part.digest) for part in hardware.parts if not part.data and part.digest not in have
    )


def assemble(hardware: Hardware, blobs: Mapping[Digest, bytes]) -> Bundle:
    """Complete evidence from a message and fetched blobs; each blob must hash to its name.

    Raises `EvidenceMalformed`.
    """
    found: dict[PartKind, list[bytes]] = {kind: [] for kind in PartKind}
    logs: list[tuple[LogKind, bytes]] = []
    for part in hardware.parts:
        kind = PartKind(part.kind)
        data = part.data or blobs.get(part.digest, b"")
        if not data:
            raise EvidenceMalformed(f"the {kind.name} part is missing", reason="evidence.part-missing")
        if len(data) > PART_BYTES_MAX[kind]:
            raise EvidenceMalformed(f"the {kind.name} part is too large", reason="evidence.part-size")
        if hashlib.sha256(data).digest() != part.digest:
            raise EvidenceMalformed(f"the {kind.name} part is not the one named", reason="evidence.part-digest")
        found[kind].append(data)
        if kind in (PartKind.CCEL, PartKind.JSON_LOG):
            logs.append((LogKind.CCEL if kind is PartKind.CCEL else LogKind.JSON, data))
    if not found[PartKind.COLLATERAL]:
        raise EvidenceMalformed("the COLLATERAL part is missing", reason="evidence.part-missing")
    return Bundle(
        quote=hardware.quote,
        collateral=found[PartKind.COLLATERAL][0],
        logs=tuple(logs),
        gpus=tuple(GpuEvidence(report=gpu.report, chain=gpu.chain) for gpu in hardware.gpus),
        rims=tuple(found[PartKind.RIM]),
        crls=tuple(found[PartKind.CRL]),
        ocsp=tuple(hardware.ocsp),
        nonce_index=hardware.nonce_index,
        nonce_path=tuple(hardware.nonce_path),
    )


def encode_saved(saved: SavedEvidence) -> bytes:
    """The bytes of an evidence file."""
    return SAVED_MAGIC + encode(saved)


def decode_saved(data: bytes) -> SavedEvidence:
    """The evidence in a file. Raises `EvidenceMalformed`."""
    if not data.startswith(SAVED_MAGIC):
        raise EvidenceMalformed("not a file of Cocoon evidence", reason="evidence.file")
    try:
        saved = decode_as(data[len(SAVED_MAGIC) :], SavedEvidence, bytes_max=limits.SAVED_BYTES_MAX)
        Network(saved.network)
    except (DecodeError, LimitExceeded, ValueError) as error:
        raise EvidenceMalformed(f"the evidence file is damaged: {error}", reason="evidence.file") from None
    return saved
