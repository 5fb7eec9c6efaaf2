"""Collateral from Intel and NVIDIA, fetched by providers only, cached on disk, and stapled to evidence.

Clients never come here. Everything fetched is signed by its maker and verified by clients, so a cache or a proxy
(an Intel PCCS) in between can withhold but not forge. Failed fetches back off; what is cached is served while it
is young enough; offline mode serves the cache alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ...attest import limits
from ...errors import Unavailable

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
NVIDIA_RIM: Final = "https://rim.attestation.nvidia.com/v1/rim/"
NVIDIA_OCSP: Final = "http://ocsp.ndis.nvidia.com"
NVIDIA_CRLS: Final = (
    "http://crl.ndis.nvidia.com/crl/l1-root.crl",
    "http://crl.ndis.nvidia.com/crl/l2-gh100.crl",
)

HOUR_S: Final = 3600
TIMEOUT_S: Final = 20.0
ANSWER_BYTES_MAX: Final = 512 * 1024  # above every limit of a single part
BACKOFF_FIRST_S: Final = 30
BACKOFF_MAX_S: Final = HOUR_S
# How old a cached copy may be before it is fetched anew: well inside what clients accept (`AgePolicy`).
REFRESH_S: Final = {"intel": 24 * HOUR_S, "rim": 30 * 24 * HOUR_S, "crl": 24 * HOUR_S, "ocsp": 12 * HOUR_S}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """Status 200, body within bounds; header names in lower case."""

    body: bytes = field(repr=False)
    headers: Mapping[str, str]


Http = Callable[[str, bytes | None, str], HttpAnswer]
"""(url, body to post or None, content type of the body). Raises `Unavailable`."""


def urllib_http(url: str, body: bytes | None, content_type: str) -> HttpAnswer:
    """The standard library's client, bounded in time and size. Blocking."""
    request = urllib.request.Request(url, data=body)  # noqa: S310 - schemes are fixed by the constants above
    if body is not None:
        request.add_header("Content-Type", content_type)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            data = response.read(ANSWER_BYTES_MAX + 1)
            headers = {name.lower(): value for name, value in response.headers.items()}
    except (OSError, ValueError) as error:
        host = urllib.parse.urlsplit(url).hostname or "?"
        raise Unavailable(
            f"{host} did not answer: {error}", advice="Check the guest's network, or set an Intel PCCS."
        ) from error
    if len(data) > ANSWER_BYTES_MAX:
        raise Unavailable(f"{url[:60]} answered with too much")
    return HttpAnswer(body=data, headers=headers)


class CollateralStore:
    """Everything a provider staples, by kind. Blocking; call it from a worker thread."""

    def __init__(
        self,
        *,
        folder: Path,
        clock_s: Callable[[], int],
        http: Http = urllib_http,
        offline: bool = False,
        pcs: str = INTEL_PCS,
    ) -> None:
        self._folder = folder
        self._clock_s = clock_s
        self._http = http
        self._offline = offline
        self._pcs = pcs.rstrip("/")
        self._failures: dict[str, tuple[int, int]] = {}  # key → (failures, not before); as many as there are keys

    def intel(self, *, fmspc: bytes, ca: str) -> bytes:
        """Collateral JSON for a platform family; `ca` is "platform" or "processor"."""
        return self._cached("intel", f"{fmspc.hex()}-{ca}.json", lambda: self._fetch_intel(fmspc, ca))

    def rim(self, rim_id: str) -> bytes:
        """A reference-measurement file by NVIDIA's id."""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", rim_id):
            raise Unavailable(f"not a RIM id: {rim_id[:40]!r}", retryable=False)
        return self._cached("rim", f"{rim_id}.xml", lambda: self._fetch_rim(rim_id))

    def crls(self) -> tuple[bytes, ...]:
        """NVIDIA's revocation lists for Hopper devices."""
        return tuple(
            self._cached("crl", url.rsplit("/", 1)[1], lambda url=url: self._http(url, None, "").body)  # type: ignore[misc]
            for url in NVIDIA_CRLS
        )

    def ocsp(self, *, subject: x509.Certificate, issuer: x509.Certificate) -> bytes:
        """NVIDIA's answer about one device certificate."""
        request = ocsp.OCSPRequestBuilder().add_certificate(subject, issuer, hashes.SHA384()).build()
        der = request.public_bytes(Encoding.DER)
        name = hashlib.sha256(der).hexdigest()[:32] + ".ocsp"
        return self._cached("ocsp", name, lambda: self._http(NVIDIA_OCSP, der, "application/ocsp-request").body)

    # --- cache ---

    def _cached(self, kind: str, name: str, fetch: Callable[[], bytes]) -> bytes:
        path, now_s = self._folder / kind / name, self._clock_s()
        kept = _read(path)
        age_s = now_s - kept[0] if kept else None
        if kept and (self._offline or (age_s is not None and 0 <= age_s < REFRESH_S[kind])):
            return kept[1]
        if self._offline:
            raise Unavailable(f"{kind} {name} is not cached, and this provider is offline", retryable=False)
        failures, not_before_s = self._failures.get(str(path), (0, 0))
        if now_s < not_before_s:
            return _or_unavailable(
                kept, f"{kind} {name} could not be fetched; next attempt in {not_before_s - now_s} s"
            )
        try:
            data = fetch()
        except Unavailable as error:
            pause_s = min(BACKOFF_FIRST_S << min(failures, 16), BACKOFF_MAX_S)
            self._failures[str(path)] = (failures + 1, now_s + pause_s)
            return _or_unavailable(kept, str(error))
        self._failures.pop(str(path), None)
        _write(path, now_s, data)
        return data

    # --- makers ---

    def _fetch_intel(self, fmspc: bytes, ca: str) -> bytes:
        # "early": clients ratchet on the newest evaluation that they have seen of anybody.
        tcb = self._get(f"/tdx/certification/v4/tcb?fmspc={fmspc.hex()}&update=early")
        qe = self._get("/tdx/certification/v4/qe/identity?update=early")
        crl = self._get(f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der")
        if self._pcs == INTEL_PCS:
            root = self._http(INTEL_ROOT_CRL, None, "").body
        else:
            root = _maybe_hex(self._get("/sgx/certification/v4/rootcacrl").body)
        tcb_info, tcb_signature = _signed_member(tcb.body, "tcbInfo")
        identity, qe_signature = _signed_member(qe.body, "enclaveIdentity")
        return json.dumps(
            {
                "pck_crl_issuer_chain": _chain(crl, "sgx-pck-crl-issuer-chain"),
                "root_ca_crl": root.hex(),
                "pck_crl": _maybe_hex(crl.body).hex(),
                "tcb_info_issuer_chain": _chain(tcb, "tcb-info-issuer-chain"),
                "tcb_info": tcb_info,
                "tcb_info_signature": tcb_signature,
                "qe_identity_issuer_chain": _chain(qe, "sgx-enclave-identity-issuer-chain"),
                "qe_identity": identity,
                "qe_identity_signature": qe_signature,
            }
        ).encode()

    def _get(self, path: str) -> HttpAnswer:
        return self._http(self._pcs + path, None, "")

    def _fetch_rim(self, rim_id: str) -> bytes:
        answer: Any = _json(self._http(NVIDIA_RIM + urllib.parse.quote(rim_id), None, "").body)
        try:
            data = base64.b64decode(answer["rim"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise Unavailable(f"the RIM service gave no RIM for {rim_id}") from None
        if not 0 < len(data) <= limits.RIM_BYTES_MAX:
            raise Unavailable(f"the RIM for {rim_id} has {len(data)} bytes")
        return data


def _signed_member(body: bytes, name: str) -> tuple[str, str]:
    """The signed JSON text, byte for byte as Intel sent it, and its signature in hex."""
    text = body.decode("utf-8", "replace").strip()
    head, middle = f'{{"{name}":', ',"signature":"'
    end = text.rfind(middle)
    signature = text[end + len(middle) : -2]
    if not text.startswith(head) or end < 0 or not re.fullmatch(r"[0-9a-fA-F]{128}", signature):
        raise Unavailable(f"Intel's answer holds no signed {name}")
    return text[len(head) : end], signature


def _chain(answer: HttpAnswer, header: str) -> str:
    value = answer.headers.get(header) or answer.headers.get(f"sgx-{header}")
    if not value:
        raise Unavailable(f"Intel's answer lacks the header {header}")
    return urllib.parse.unquote(value)


def _maybe_hex(data: bytes) -> bytes:
    """A PCCS gives CRLs in hex, Intel in DER."""
    try:
        return bytes.fromhex(data.decode("ascii"))
    except ValueError:
        return data


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Unavailable("an answer that is not JSON") from None


def _read(path: Path) -> tuple[int, bytes] | None:
    """When a file was fetched (its first line) and its content."""
    try:
        stamp, _, data = path.read_bytes().partition(b"\n")
        return int(stamp), data
    except (OSError, ValueError):
        return None


def _write(path: Path, now_s: int, data: bytes) -> None:
    """Replace atomically, so that a crash leaves the old copy or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(path.suffix + ".new")
        fresh.write_bytes(b"%d\n" % now_s + data)
        os.replace(fresh, path)
    except OSError as error:
        raise Unavailable(f"the collateral cache cannot be written: {error}") from error


def _or_unavailable(kept: tuple[int, bytes] | None, why: str) -> bytes:
    """An older copy is better than none: clients judge its dates themselves."""
    if kept is None:
        raise Unavailable(why)
    return kept[1]
