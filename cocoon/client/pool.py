"""Sessions by provider: one each, opened when first needed, reused, closed when idle.

Evidence is judged once per session (and again every ten minutes) against the offer that led there; what it proved
is then held against every further offer and every request's own policy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from ..attest.evidence import SavedEvidence
from ..attest.facts import Facts
from ..attest.policy import TrustPolicy
from ..errors import CocoonError, TrustRefused
from ..market.offer import VerifiedOffer
from ..pay.metering import vested_due_nano
from ..ports import Clock, Entropy, PeerAddresses
from ..ports import Network as PeerNetwork
from ..pump import SESSION_PROTOCOL
from ..serve.client_session import ClientSession
from ..serve.events import EvidenceReceived, ReceiptReceived
from ..serve.sealing import Crypto
from ..types import SECOND_NS, Network, PeerId, TrustLevel
from ..wire import limits
from ..wire.signing import verify
from .link import ProviderLink
from .spending import Spending
from .trusting import EvidenceJudge

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # what the stubs of trio know that libp2p brings

LINKS_MAX: Final = 64
"""Sessions held at once; a client talks to a handful of providers."""

IDLE_NS: Final = 600 * SECOND_NS
HOUSEKEEPING_S: Final = 30.0


class LinkPool:
    """All sessions of a client. `run` holds them; `trusted_link` hands them out."""

    def __init__(
        self,
        *,
        network: PeerNetwork,
        network_id: Network,
        judge: EvidenceJudge,
        crypto: Crypto,
        clock: Clock,
        entropy: Entropy,
        on_receipt: Callable[[PeerId, ReceiptReceived], None],
        spending: Spending | None,
    ) -> None:
        self._network = network
        self._network_id = network_id
        self._judge = judge
        self._crypto = crypto
        self._clock = clock
        self._entropy = entropy
        self._on_receipt = on_receipt
        self._spending = spending
        self._links: dict[PeerId, ProviderLink] = {}
        self._opening: dict[PeerId, trio.Lock] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the sessions until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(HOUSEKEEPING_S)
                self._close_idle()

    async def trusted_link(self, offer: VerifiedOffer, *, policy: TrustPolicy) -> tuple[ProviderLink, TrustLevel]:
        """A session with this offer's provider that satisfies the policy now and proves all that the offer says.

        Raises `Unavailable` (it cannot be reached), or what the evidence lacks (`AttestationError`).
        """
        async with self._opening.setdefault(offer.provider, trio.Lock()):
            link = self._links.get(offer.provider)
            if link is None or not link.is_usable:
                self._make_room()
                link = self._links[offer.provider] = await self._open(offer, self._verify)
        facts = await link.wait_trusted()
        return link, self._judge.judge(facts, offer, policy)

    async def examine(self, offer: VerifiedOffer) -> SavedEvidence:
        """Evidence of a session of its own, complete and unverified. Nothing is sealed to that session.

        Raises `Unavailable`, or what is malformed.
        """
        found: list[SavedEvidence] = []

        async def collect(evidence: EvidenceReceived, offer: VerifiedOffer) -> Facts:
            found.append(await self._judge.collect(evidence, offer))
            raise TrustRefused("only looked at")

        link = await self._open(offer, collect)
        try:
            await link.wait_trusted()
        except CocoonError:
            if not found:
                raise
        return found[0]

    async def _verify(self, evidence: EvidenceReceived, offer: VerifiedOffer) -> Facts:
        return await self._judge.verify(evidence, offer)

    async def _open(
        self, offer: VerifiedOffer, judge_evidence: Callable[[EvidenceReceived, VerifiedOffer], Awaitable[Facts]]
    ) -> ProviderLink:
        assert self._nursery is not None, "run() comes first"
        stream = await self._network.open_stream(
            PeerAddresses(peer=offer.provider, addresses=offer.addresses),
            SESSION_PROTOCOL,
            frame_bytes_max=limits.SESSION_FRAME_BYTES_MAX,
        )
        machine = ClientSession(
            network=self._network_id,
            client=self._network.peer,
            peer=offer.offer.peer,
            crypto=self._crypto,
            entropy=self._entropy,
            verify=verify,
            due=vested_due_nano,
            now=self._clock.now(),
        )

        async def judge(evidence: EvidenceReceived) -> Facts:
            return await judge_evidence(evidence, offer)

        link = ProviderLink(
            stream,
            machine,
            clock=self._clock,
            entropy=self._entropy,
            judge=judge,
            on_receipt=self._on_receipt,
            spending=self._spending,
        )
        self._nursery.start_soon(link.run)
        return link

    async def wait_sent(self) -> None:
        """Return once no frame waits to be written. The caller bounds it."""
        for link in tuple(self._links.values()):
            await link.wait_sent()

    def end_all(self, reason: CocoonError) -> None:
        """Close every session, with what it has proven: the rules have changed. Requests on them fail with `reason`
        or start anew elsewhere."""
        for link in self._links.values():
            link.end(reason)
        self._links.clear()

    def _make_room(self) -> None:
        self._links = {peer: link for peer, link in self._links.items() if link.is_usable}
        self._opening = {peer: lock for peer, lock in self._opening.items() if peer in self._links or lock.locked()}
        idle = sorted((link for link in self._links.values() if not link.requests_running), key=lambda x: x.used_ns)
        while len(self._links) >= LINKS_MAX and idle:
            link = idle.pop(0)
            link.end()
            del self._links[link.peer]

    def _close_idle(self) -> None:
        now = self._clock.now()
        for link in self._links.values():
            if not link.requests_running and now - link.used_ns > IDLE_NS:
                link.end()
