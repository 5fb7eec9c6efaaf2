"""Judging a session: evidence becomes facts, and facts are held against a policy, request by request (rule S8).

Facts come from `cocoon.attest.verifier` and hold for at most ten minutes; a verdict is never kept. Parts of the
evidence that travel by digest are fetched from the provider itself and kept, so that a second session costs only
the quote and the GPU's report. What was seen at its highest (TCB numbers, dates) is persisted before use.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from ..attest.evidence import (
    PART_BYTES_MAX,
    Bundle,
    SavedEvidence,
    assemble,
    decode_hardware,
    encode_bundle,
    missing_parts,
)
from ..attest.facts import Facts
from ..attest.policy import TrustPolicy
from ..attest.verifier import Expected, SessionEvidence, Verifier
from ..blobs import BlobFetcher
from ..errors import BindingMismatch, CocoonError, EvidenceMalformed
from ..market.offer import VerifiedOffer
from ..ports import Clock, PeerAddresses, Store
from ..serve.events import EvidenceReceived
from ..types import SECOND_NS, Digest, Network, TrustLevel

log = logging.getLogger("cocoon.client")

VERIFYING_AT_ONCE_MAX: Final = 2  # each takes tens of milliseconds of a core, in a thread of its own


class EvidenceJudge:
    """One per client. `verify` makes facts of a session's evidence, `judge` holds facts against a policy."""

    def __init__(
        self,
        *,
        network_id: Network,
        verifier: Verifier,
        fetcher: BlobFetcher,
        clock: Clock,
        store: Store | None,
        policy: TrustPolicy,
        uses_threads: bool,
    ) -> None:
        self.policy = policy
        """The client's own, as it stands now. Requests add theirs, which may only be stricter."""

        self._network_id = network_id
        self._verifier = verifier
        self._fetcher = fetcher
        self._clock = clock
        self._store = store
        self._uses_threads = uses_threads
        self._ratchet: dict[str, int] = {}
        self._threads = trio.CapacityLimiter(VERIFYING_AT_ONCE_MAX)

    async def restore(self) -> None:
        """Take over the ratchet of earlier runs. Raises `StoreError`: without it a rollback could pass."""
        if self._store is not None:
            self._ratchet = await self._store.ratchet()

    async def verify(self, evidence: EvidenceReceived, offer: VerifiedOffer) -> Facts:
        """What this session's evidence proves, against the offer that led to it.

        Raises `AttestationError`, `BadSignature`, `DecodeError`; `Unavailable` when a part cannot be fetched.
        """
        source = PeerAddresses(peer=offer.provider, addresses=offer.addresses)
        session = SessionEvidence(
            statement=evidence.statement,
            operator_signature=evidence.operator_signature,
            peer_signature=evidence.peer_signature,
            bundle=await self._bundle(evidence.hardware, source) if evidence.hardware else None,
        )
        expected = Expected(
            network=self._network_id,
            nonce=evidence.nonce,
            peer=offer.offer.peer,
            operator=offer.offer.operator,
            model=offer.model,
            payout=offer.offer.terms.payout,
            image=offer.offer.image,
        )
        now = self._clock.now()

        def verify() -> Facts:
            try:
                return self._verifier.verify(session, expected, now=now, seen=self._ratchet)
            except CocoonError:
                raise
            except Exception as error:
                # Supervision boundary: bytes from outside, three parsers that are not ours. A fault in one of them is
                # this provider's refusal and not the end of the client.
                log.error("evidence.fault", extra={"provider": offer.provider, "error": type(error).__name__})
                raise EvidenceMalformed("the verifier broke on this evidence", reason="evidence.fault") from error

        if session.bundle is not None and self._uses_threads:
            facts = await trio.to_thread.run_sync(verify, limiter=self._threads)
        else:
            facts = verify()
        _require_offered(facts, offer)
        await self._advance(facts.ratchet)
        return facts

    def judge(self, facts: Facts, offer: VerifiedOffer, policy: TrustPolicy) -> TrustLevel:
        """The level that may be shown, for this request and this moment. Raises `AttestationError`.

        A request keeps the policy that it began with (rule S9); what the client has come to refuse since, it is
        refused as well.
        """
        _require_offered(facts, offer)
        now = self._clock.now()
        level = policy.judge(facts, now=now).level
        if policy is not self.policy:
            self.policy.judge(facts, now=now)
        return level

    async def collect(self, evidence: EvidenceReceived, offer: VerifiedOffer) -> SavedEvidence:
        """This session's evidence with every part inline, unverified: what `cocoon verify FILE` reads."""
        source = PeerAddresses(peer=offer.provider, addresses=offer.addresses)
        hardware = evidence.hardware and encode_bundle(await self._bundle(evidence.hardware, source))
        return SavedEvidence(
            network=int(self._network_id),
            nonce=evidence.nonce,
            peer=offer.offer.peer,
            operator=offer.offer.operator,
            model=offer.model,
            payout=offer.offer.terms.payout,
            statement=evidence.statement,
            operator_signature=evidence.operator_signature,
            peer_signature=evidence.peer_signature,
            hardware=hardware,
            saved_s=self._clock.now() // SECOND_NS,
        )

    async def _bundle(self, hardware: bytes, source: PeerAddresses) -> Bundle:
        message = decode_hardware(hardware)
        blobs: dict[Digest, bytes] = {}
        for kind, digest in missing_parts(message, {}):
            blobs[digest] = await self._fetcher.fetch(source, digest, bytes_max=PART_BYTES_MAX[kind])
        return assemble(message, blobs)

    async def _advance(self, entries: dict[str, int]) -> None:
        """Persist first: facts that rest on newer collateral must not be used by a client that may forget it."""
        if not entries:
            return
        if self._store is not None:
            await self._store.advance_ratchet(entries)
        for name, value in entries.items():
            self._ratchet[name] = max(value, self._ratchet.get(name, value))


def _require_offered(facts: Facts, offer: VerifiedOffer) -> None:
    """The statement and the offer must say the same (rule K4); O signed both. Raises `BindingMismatch`."""
    statement = facts.statement
    if (
        statement.peer != offer.offer.peer
        or statement.operator != offer.offer.operator
        or statement.payout != offer.offer.terms.payout
        or statement.image != offer.offer.image
        or offer.model not in statement.models
    ):
        raise BindingMismatch("the provider's statement does not stand behind this offer")
    if facts.level.rank < offer.claimed_trust.rank:
        raise BindingMismatch(
            f"the offer promises {offer.claimed_trust.value}, the evidence proves {facts.level.value}"
        )
