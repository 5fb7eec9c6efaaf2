"""The whole verification of a session's evidence: bytes and `now` in, `Facts` or a typed refusal out.

Order, cheap before dear: exact lengths → S says who we asked, answers our nonce, and is signed by O and P → the
TDX quote under pinned roots → the ratchet → report_data is the hash of S → the event log replays to the RTMRs and
RTMR3 holds S's image, config and models → each GPU's report answers the nonce made of N, P and E, and its hash is
in S → RIMs and revocation. Whether that is *enough* is the policy's business (`policy.py`).

Which anchors are used is decided by the mode that S claims, and the modes' domains differ: real evidence never
meets software roots, nor the other way round. Software anchors exist on devnet alone.

No state is kept here but a bounded cache of verified RIMs; facts are the session's to keep.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from ..errors import (
    AttestationError,
    BadSignature,
    BindingMismatch,
    DecodeError,
    EventLogInvalid,
    EvidenceMalformed,
    GpuReportInvalid,
    LimitExceeded,
    TrustRefused,
)
from ..types import SECOND_NS, Digest, Network, TrustLevel
from . import limits, ratchet
from .eventlog import EV_RUNTIME, Event, read_log, replay
from .evidence import Bundle
from .facts import Facts
from .gpu.rim import VerifiedRim, verify_rim
from .gpu.verify import VerifiedGpu, evidence_digest, verify_gpu, verify_report
from .nonces import committed_nonce
from .ratchet import Ratchet
from .roots import Anchors, hardware
from .statement import (
    MODE_OPEN,
    MODE_SIMULATED,
    MODE_TDX,
    MODE_TDX_GPU,
    Statement,
    check_statement,
    gpu_nonce,
    report_data,
    statement_digest,
)
from .tdx import VerifiedQuote, verify_quote
from .trail import Trail

# What a Cocoon image measures into RTMR3 before it makes P (rule K6), in this order, then nothing more.
EVENT_IMAGE: Final = "cocoon/image"
EVENT_CONFIG: Final = "cocoon/config"
EVENT_MODEL: Final = "cocoon/model"  # one per model: manifest digest, then the dm-verity root if there is one
EVENT_SEAL: Final = "cocoon/seal"
DIGEST_BYTES: Final = 32
RIM_CACHE_MAX: Final = 64  # driver and VBIOS versions in use at one time


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the client knows before it looks at the evidence: its nonce, its connection, the offer it chose."""

    network: Network
    nonce: bytes  # N, 32 bytes that this client drew for this Hello
    peer: bytes  # P of the authenticated connection
    operator: bytes  # O of the offer
    model: Digest
    payout: bytes
    image: Digest | None = None  # of the offer; None when there is no offer (a file checked on its own)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvidence:
    """What the provider sent. `bundle` is None at trust level `open`."""

    statement: bytes
    operator_signature: bytes
    peer_signature: bytes
    bundle: Bundle | None = field(repr=False)


class Verifier:
    """Verifies sessions of one network. Pure: the same bytes, `now` and ratchet give the same answer."""

    def __init__(self, network: Network, *, software: Anchors | None = None, anchors: Anchors | None = None) -> None:
        """`software` are the anchors of a software TEE; raises `TrustRefused` for them outside devnet."""
        if software is not None and (network is not Network.DEVNET or software.is_hardware):
            raise TrustRefused(
                f"simulated evidence is refused on {network.label}", reason="level.simulated-outside-devnet"
            )
        self._network = network
        self._hardware = anchors if anchors is not None else hardware()
        assert self._hardware.is_hardware
        self._software = software
        self._rims: OrderedDict[tuple[bool, bytes], VerifiedRim] = OrderedDict()

    def verify(
        self, evidence: SessionEvidence, expected: Expected, *, now: int, seen: Ratchet, trail: Trail | None = None
    ) -> Facts:
        """The facts that this evidence proves. Raises an `AttestationError`; then nothing has changed.

        `now` is in ns; `seen` is the persisted ratchet, of which `Facts.ratchet` is the advance.
        """
        trail = Trail() if trail is None else trail
        try:
            return self._verify(evidence, expected, now, seen, trail)
        except AttestationError as error:
            if not trail.checks or trail.checks[-1].passed:
                trail.failed(error.reason, str(error))
            raise

    def _verify(self, evidence: SessionEvidence, expected: Expected, now: int, seen: Ratchet, trail: Trail) -> Facts:
        bundle, now_s = evidence.bundle, now // SECOND_NS
        statement = self._check_statement(evidence, expected, trail)
        anchors = self._anchors(statement, bundle, trail)
        quote: VerifiedQuote | None = None
        runtime: tuple[Event, ...] = ()
        gpus: tuple[VerifiedGpu, ...] = ()
        if bundle is not None and anchors is not None:
            simulated = not anchors.is_hardware
            quote = verify_quote(bundle.quote, bundle.collateral, anchors=anchors, now_s=now_s, trail=trail)
            trail.require(
                quote.report.report_data == report_data(evidence.statement, simulated=simulated),
                "binding.report-data",
                BindingMismatch,
                "the quote was not made for this statement",
                success="the quote holds the hash of the statement",
            )
            runtime = _check_event_log(bundle, quote, statement, trail)
            gpus = self._check_gpus(bundle, statement, anchors, now_s, trail)
        found = ratchet.values(quote, gpus, is_hardware=anchors is None or anchors.is_hardware)
        ratchet.check(seen, found, trail)
        ends = [now_s + limits.FACTS_LIFE_S, *([quote.expires_s] if quote else ()), *(g.expires_s for g in gpus)]
        return Facts(
            network=self._network,
            digest=statement_digest(evidence.statement),
            statement=statement,
            level=_level(statement),
            quote=quote,
            runtime=runtime,
            gpus=gpus,
            checks=tuple(trail.checks),
            ratchet=ratchet.advance(seen, found),
            verified_ns=now,
            expires_ns=min(now + limits.FACTS_LIFE_S * SECOND_NS, min(ends) * SECOND_NS),
        )

    # --- statement ---

    def _check_statement(self, evidence: SessionEvidence, expected: Expected, trail: Trail) -> Statement:
        trail.require(
            expected.network is self._network, "statement.network", BindingMismatch, "another network was asked"
        )
        bundle = evidence.bundle
        index, path = (bundle.nonce_index, bundle.nonce_path) if bundle is not None else (0, ())
        with trail.step("nonce.path"):
            nonce = committed_nonce(expected.nonce, index=index, path=path)
        try:
            statement = check_statement(
                evidence.statement,
                operator_signature=evidence.operator_signature,
                peer_signature=evidence.peer_signature,
                network=expected.network,
                nonce=nonce,
                peer=expected.peer,
                operator=expected.operator,
                model=expected.model,
                payout=expected.payout,
            )
        except (DecodeError, LimitExceeded) as error:
            trail.fail("statement.format", EvidenceMalformed, f"the statement: {error}")
        except BadSignature as error:
            trail.fail("statement.signature", BindingMismatch, f"the statement is not signed by O and P: {error}")
        except BindingMismatch as error:
            trail.fail("statement.mismatch", BindingMismatch, str(error))
        trail.passed("statement.signature", "names our nonce, peer, operator, model and payout; signed by O and P")
        trail.require(
            expected.image is None or statement.image == expected.image,
            "statement.image",
            BindingMismatch,
            "the statement names another image than the offer",
        )
        return statement

    def _anchors(self, statement: Statement, bundle: Bundle | None, trail: Trail) -> Anchors | None:
        mode = statement.mode
        trail.require(
            mode in (MODE_OPEN, MODE_SIMULATED, MODE_TDX, MODE_TDX_GPU),
            "statement.mode",
            EvidenceMalformed,
            f"mode {mode} is unknown",
        )
        if mode == MODE_OPEN:
            trail.require(
                bundle is None and not statement.gpus,
                "statement.mode-evidence",
                BindingMismatch,
                "hardware evidence beside a statement that claims none",
            )
            return None
        trail.require(bundle is not None, "evidence.missing", EvidenceMalformed, "the hardware evidence is missing")
        if mode != MODE_SIMULATED:
            return self._hardware
        trail.require(
            self._network is Network.DEVNET,
            "level.simulated-outside-devnet",
            TrustRefused,
            f"simulated evidence is refused on {self._network.label}",
        )
        if self._software is None:
            trail.fail("level.simulated-refused", TrustRefused, "no software TEE is trusted here")
        return self._software

    # --- GPUs ---

    def _check_gpus(
        self, bundle: Bundle, statement: Statement, anchors: Anchors, now_s: int, trail: Trail
    ) -> tuple[VerifiedGpu, ...]:
        wanted = {MODE_TDX: (0,), MODE_TDX_GPU: (1,)}.get(statement.mode, (0, 1))
        trail.require(
            len(statement.gpus) in wanted and len(bundle.gpus) == len(statement.gpus),
            "gpu.count",
            BindingMismatch,
            "the number of GPUs is not what the mode and the statement say",
        )
        if not bundle.gpus:
            return ()
        nonce = gpu_nonce(statement.nonce, statement.peer, statement.sealing_key, simulated=not anchors.is_hardware)
        rims = [self._rim(data, anchors, now_s, trail) for data in bundle.rims]
        gpus = []
        for given, digest in zip(bundle.gpus, statement.gpus, strict=True):
            trail.require(
                evidence_digest(given.report, given.chain) == digest,
                "binding.gpu-digest",
                BindingMismatch,
                "the GPU evidence is not what the statement commits to",
            )
            genuine = verify_report(given.report, given.chain, anchors=anchors, now_s=now_s, nonce=nonce, trail=trail)
            gpus.append(verify_gpu(genuine, rims, crls=bundle.crls, ocsp_answers=bundle.ocsp, now_s=now_s, trail=trail))
        trail.require(
            len({gpu.device for gpu in gpus}) == len(gpus), "gpu.distinct", GpuReportInvalid, "one GPU shown twice"
        )
        return tuple(gpus)

    def _rim(self, data: bytes, anchors: Anchors, now_s: int, trail: Trail) -> VerifiedRim:
        """Verified RIMs are kept by their digest: the same few files come with every session."""
        key = (anchors.is_hardware, hashlib.sha256(data).digest())
        rim = self._rims.pop(key, None)  # taken out and put back, so that two threads cannot trip over one another
        if rim is not None and rim.starts_s <= now_s <= rim.expires_s:
            trail.passed("rim.signature", f"{rim.product} {rim.version}, verified before")
        else:
            rim = verify_rim(data, anchors=anchors, now_s=now_s, trail=trail)
        self._rims[key] = rim
        while len(self._rims) > RIM_CACHE_MAX:
            self._rims.popitem(last=False)
        return rim


def _level(statement: Statement) -> TrustLevel:
    return {
        MODE_OPEN: TrustLevel.OPEN,
        MODE_SIMULATED: TrustLevel.SIMULATED,
        MODE_TDX: TrustLevel.CPU_CONFIDENTIAL,
        MODE_TDX_GPU: TrustLevel.CONFIDENTIAL,
    }[statement.mode]


def _check_event_log(bundle: Bundle, quote: VerifiedQuote, statement: Statement, trail: Trail) -> tuple[Event, ...]:
    with trail.step("eventlog.format"):
        events = tuple(event for kind, data in bundle.logs for event in read_log(data, kind))
    replayed = replay(events)
    for number, (ours, theirs) in enumerate(zip(replayed, quote.report.rtmr, strict=True)):
        trail.require(ours == theirs, "eventlog.replay", EventLogInvalid, f"the log does not replay to RTMR{number}")
    runtime = tuple(event for event in events if event.rtmr == 3)
    trail.require(
        all(event.proven and event.kind == EV_RUNTIME for event in runtime),
        "eventlog.unproven",
        EventLogInvalid,
        "RTMR3 holds an event whose content is not proven",
    )
    _check_runtime(runtime, statement, trail)
    return runtime


def _check_runtime(runtime: tuple[Event, ...], statement: Statement, trail: Trail) -> None:
    """RTMR3 ends with image, config, models, seal: exactly what S says, and nothing after the seal."""
    names = [event.name for event in runtime]
    trail.require(
        names.count(EVENT_SEAL) == 1 and names[-1] == EVENT_SEAL,
        "eventlog.seal",
        EventLogInvalid,
        "RTMR3 is not sealed, or something was measured after the seal",
        success="sealed, and nothing after it",
    )
    payloads = {
        name: [event.payload for event in runtime if event.name == name]
        for name in (EVENT_IMAGE, EVENT_CONFIG, EVENT_MODEL)
    }
    for name, label, value in (
        (EVENT_IMAGE, "image", statement.image),
        (EVENT_CONFIG, "config", statement.config),
    ):
        trail.require(
            payloads[name] == [value],
            f"binding.{label}",
            BindingMismatch,
            f"RTMR3 does not hold the statement's {label} digest, exactly once",
            success=f"the {label} of the statement was measured",
        )
    measured = [payload[:DIGEST_BYTES] for payload in payloads[EVENT_MODEL]]
    trail.require(
        sorted(measured) == sorted(statement.models) and len(set(measured)) == len(measured),
        "binding.models",
        BindingMismatch,
        "RTMR3 does not hold the models that the statement names",
        success="exactly the models of the statement were measured",
    )
