"""Release manifests: which image measures what, signed by k of n builders whose keys the client pins.

There is no central list and no owner. A manifest is the JSON text that builders signed, byte for byte; the file
around it carries the text and the signatures:

    {"manifest": "<the signed JSON, as a string>", "signatures": [{"builder": "<hex>", "signature": "<hex>"}, …]}

A signature is ed25519 over `cocoon/release/v1\\0 ‖ manifest text`. A client accepts a release when at least k
different pinned builders signed it. Anybody can rebuild the image and check the values: that is why several
independent builders mean something.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from ..errors import BadSignature, EvidenceMalformed, StaleEvidence, TrustRefused, UnknownMeasurement
from ..types import Digest
from ..wire.signing import KEY_BYTES, SIGNATURE_BYTES, hash_prefix, verify
from . import limits
from .collateral import read_json

MEASUREMENT_BYTES: Final = 48
DIGEST_BYTES: Final = 32
MODELS_MEASURED: Final = "measured"
MODELS_LISTED: Final = "listed"
_KEYS: Final = frozenset(
    ("name", "version", "image", "mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3_before", "mr_config_id",
     "models", "model_roots", "not_before_s", "expires_s")
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The measurements of one image. Sets hold every permitted value; an empty set permits none."""

    name: str
    version: str
    image: Digest
    mrtd: frozenset[bytes]
    rtmr0: frozenset[bytes]  # one per machine shape (memory, CPUs)
    rtmr1: frozenset[bytes]
    rtmr2: frozenset[bytes]
    # Events that the image's base measures into RTMR3 before Cocoon's own, in order; a None payload is free.
    rtmr3_before: tuple[tuple[str, bytes | None], ...] = ()
    mr_config_id: frozenset[bytes] = frozenset((bytes(MEASUREMENT_BYTES),))  # host input: zero unless listed
    # "measured": the image itself checks weights against the model manifest in RTMR3.
    # "listed": only models in `model_roots`, with exactly that dm-verity root.
    models: str = MODELS_LISTED
    model_roots: tuple[tuple[Digest, bytes], ...] = ()
    not_before_s: int = 0
    expires_s: int = 0
    builders: tuple[bytes, ...] = ()  # who signed it; empty for an override of the client's own


def encode_release(release: Release) -> str:
    """The manifest text that builders sign."""
    return json.dumps(
        {
            "name": release.name,
            "version": release.version,
            "image": release.image.hex(),
            "mrtd": sorted(v.hex() for v in release.mrtd),
            "rtmr0": sorted(v.hex() for v in release.rtmr0),
            "rtmr1": sorted(v.hex() for v in release.rtmr1),
            "rtmr2": sorted(v.hex() for v in release.rtmr2),
            "rtmr3_before": [[name, None if p is None else p.hex()] for name, p in release.rtmr3_before],
            "mr_config_id": sorted(v.hex() for v in release.mr_config_id),
            "models": release.models,
            "model_roots": {model.hex(): root.hex() for model, root in release.model_roots},
            "not_before_s": release.not_before_s,
            "expires_s": release.expires_s,
        },
        indent=1,
    )


def release_message(manifest: str) -> bytes:
    """What a builder signs."""
    return hash_prefix("release") + manifest.encode()


def envelope(manifest: str, signatures: dict[bytes, bytes]) -> bytes:
    """The release file: manifest text and signatures by builder key."""
    return json.dumps(
        {
            "manifest": manifest,
            "signatures": [{"builder": k.hex(), "signature": s.hex()} for k, s in signatures.items()],
        }
    ).encode()


def verify_release(data: bytes, *, builders: Collection[bytes], threshold: int, now_s: int) -> Release:
    """The release in a file that at least `threshold` of the pinned `builders` signed.

    No builders or a threshold below one refuse everything. Raises `TrustRefused`, `StaleEvidence` (not yet or no
    longer valid) or `EvidenceMalformed`.
    """
    if threshold < 1 or len(set(builders)) < threshold:
        raise TrustRefused(
            f"{threshold} signatures of {len(set(builders))} pinned builders cannot be reached",
            reason="release.builders",
            advice="Pin the builders' keys, and ask for at least one signature.",
        )
    manifest, signatures = _read_envelope(data)
    message = release_message(manifest)
    signers = []
    for builder in sorted(set(builders)):
        signature = signatures.get(builder)
        if signature is None:
            continue
        try:
            verify(builder, signature, message)
        except BadSignature:
            continue
        signers.append(builder)
    if len(signers) < threshold:
        raise TrustRefused(
            f"the release is signed by {len(signers)} of the pinned builders; {threshold} are needed",
            reason="release.signatures",
        )
    release = read_manifest(manifest.encode(), builders=tuple(signers))
    check_release_time(release, now_s)
    return release


def check_release_time(release: Release, now_s: int) -> None:
    """Refuse a release outside its dates. Raises `StaleEvidence`."""
    if now_s < release.not_before_s:
        raise StaleEvidence(f"release {release.version} is not valid yet", reason="release.not-yet-valid")
    if now_s >= release.expires_s:
        raise StaleEvidence(f"release {release.version} has expired", reason="release.expired")


def _read_envelope(data: bytes) -> tuple[str, dict[bytes, bytes]]:
    if len(data) > limits.RELEASE_BYTES_MAX:
        raise EvidenceMalformed("the release file is too long", reason="release.size")
    outer = read_json(data, "the release file", depth_max=4, reason="release.format")
    try:
        if set(outer) != {"manifest", "signatures"} or len(outer["signatures"]) > limits.BUILDERS_MAX:
            raise ValueError
        manifest, signatures = outer["manifest"], {}
        if not isinstance(manifest, str):
            raise TypeError
        manifest.encode()
        for row in outer["signatures"]:
            builder, signature = bytes.fromhex(row["builder"]), bytes.fromhex(row["signature"])
            if len(builder) != KEY_BYTES or len(signature) != SIGNATURE_BYTES or builder in signatures:
                raise ValueError
            signatures[builder] = signature
    except (KeyError, TypeError, ValueError):
        raise EvidenceMalformed("the release file has a wrong shape", reason="release.format") from None
    return manifest, signatures


def read_manifest(data: bytes, *, builders: tuple[bytes, ...] = ()) -> Release:
    """The release in manifest JSON whose signatures the caller has settled. Raises `EvidenceMalformed`."""
    if len(data) > limits.RELEASE_BYTES_MAX:
        raise EvidenceMalformed("the release manifest is too long", reason="release.size")
    value = read_json(data, "the release manifest", depth_max=4, reason="release.manifest")
    try:
        if not isinstance(value, dict) or set(value) - _KEYS:
            raise ValueError
        models = value.get("models", MODELS_LISTED)
        if models not in (MODELS_MEASURED, MODELS_LISTED):
            raise ValueError
        zero = [bytes(MEASUREMENT_BYTES).hex()]
        return Release(
            name=_text(value["name"]),
            version=_text(value["version"]),
            image=_hex(value["image"], DIGEST_BYTES),
            mrtd=_set(value["mrtd"]),
            rtmr0=_set(value["rtmr0"]),
            rtmr1=_set(value["rtmr1"]),
            rtmr2=_set(value["rtmr2"]),
            rtmr3_before=tuple(
                (_text(name), None if payload is None else bytes.fromhex(payload))
                for name, payload in _list(value.get("rtmr3_before", []), limits.EVENTS_MAX)
            ),
            mr_config_id=_set(value.get("mr_config_id", zero)),
            models=models,
            model_roots=tuple(
                (_hex(model, DIGEST_BYTES), bytes.fromhex(root))
                for model, root in _mapping(value.get("model_roots", {})).items()
            ),
            not_before_s=_count(value.get("not_before_s", 0)),
            expires_s=_count(value["expires_s"]),
            builders=builders,
        )
    except (KeyError, TypeError, ValueError):
        raise EvidenceMalformed("the release manifest has a wrong shape", reason="release.manifest") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 128 or not value.isprintable():
        raise ValueError
    return value


def _hex(value: Any, size: int) -> bytes:
    raw = bytes.fromhex(value)
    if len(raw) != size:
        raise ValueError
    return raw


def _list(value: Any, count_max: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > count_max:
        raise ValueError
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > limits.RTMR0_SET_MAX:
        raise ValueError
    return value


def _set(value: Any) -> frozenset[bytes]:
    return frozenset(_hex(v, MEASUREMENT_BYTES) for v in _list(value, limits.RTMR0_SET_MAX))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ValueError
    return value


def unknown_image(image: Digest) -> UnknownMeasurement:
    """The refusal of an image that no accepted release names."""
    return UnknownMeasurement(
        f"no accepted release names the image {image.hex()[:16]}…",
        reason="image.unknown",
        advice="Add a release manifest that covers it, signed by builders you pin.",
    )
