"""Making offers and checking them: what P consents to, what O signs, and `VerifiedOffer`.

Three things bind an offer. Its *slot*, H(O ‖ P ‖ model ‖ seq), may carry one digest for ever (rule K2). P's
*consent* over `consent ‖ O ‖ stake ‖ payout ‖ expiry` is inside, so nobody names a peer that did not agree (K3).
O signs the 108-byte stake statement over slot and digest, which the stake contract can check as well.

Checking has two halves, so that a book can put the cheap half first (rule G1): `parse_offer` judges bytes, shape and
every rule that needs neither a clock nor a key; `verify_parsed` checks both signatures. What they refuse, every
peer refuses. Not here: time, rates and stake, on which honest peers may differ (`book`).

The sealing key is never in an offer (rule K4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..errors import DecodeError, LimitExceeded, OfferInvalid
from ..types import (
    NO_DIGEST,
    SECOND_NS,
    Digest,
    Feature,
    Network,
    PeerId,
    Prices,
    TeeKind,
    TrustLevel,
)
from ..wire import limits
from ..wire.codec import decode_as, encode
from ..wire.messages import Offer, OfferPrices, OfferSpeed, OfferTerms, SignedOffer
from ..wire.signing import Domain, domain_hash, signed_bytes, stake_statement, verify
from .addresses import decode_address, encode_address, peer_id_of_key

OFFER_VERSION: Final = 1

NO_FEATURES: Final = Feature(0)
FREE: Final = Prices(input_nano=0, cached_input_nano=0, output_nano=0, request_nano=0)


# --- what is signed --------------------------------------------------------------------------------------


def consent_payload(*, operator: bytes, stake: bytes, payout: bytes, expiry_s: int) -> bytes:
    """The 104 bytes of K3 after the domain: O ‖ stake ‖ payout ‖ expiry (u64, big-endian)."""
    assert len(operator) == len(stake) == len(payout) == 32
    return operator + stake + payout + expiry_s.to_bytes(8, "big")


def consent_bytes(network: Network, *, operator: bytes, stake: bytes, payout: bytes, expiry_s: int) -> bytes:
    """What P signs to let O name it in offers up to `expiry_s`."""
    payload = consent_payload(operator=operator, stake=stake, payout=payout, expiry_s=expiry_s)
    return signed_bytes(Domain.CONSENT, network, payload)


def offer_digest(offer_bytes: bytes) -> Digest:
    """H(offer bytes): names the offer everywhere, and is what O signs."""
    return domain_hash("offer", offer_bytes)


def offer_slot(*, operator: bytes, peer: bytes, model: Digest, seq: int) -> Digest:
    """H(O ‖ P ‖ model ‖ seq), which may be bound to one digest only (rule K2)."""
    assert len(operator) == len(peer) == len(model) == 32
    return domain_hash("slot", operator, peer, model, seq.to_bytes(8, "big"))


# --- making ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferSpec:
    """What a provider wants to offer; the rest (keys, seq, times, consent) is added when it is drafted."""

    model: Digest
    model_name: str
    engine: Digest
    context_tokens_max: int
    output_tokens_max: int
    prices: Prices = FREE
    features: Feature = NO_FEATURES
    slots: int = 1
    first_token_p50_ms: int = 0
    first_token_p95_ms: int = 0
    tokens_per_s_p50: int = 0
    tee: TeeKind = TeeKind.NONE
    image: Digest = NO_DIGEST
    addresses: tuple[str, ...] = ()  # multiaddrs as text; a last /p2p/… is dropped
    payout: bytes = NO_DIGEST
    unpaid_tokens_max: int = 0
    reserve_threshold_nano: int = 0
    voucher_step_nano: int = 0
    region: str = ""
    extensions: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferDraft:
    """An offer that P consented to and O has not signed yet. Pass its fields to `Signer.sign_offer`."""

    offer_bytes: bytes = field(repr=False)
    stake: bytes
    key_epoch: int
    slot: Digest
    digest: Digest


def draft_offer(
    spec: OfferSpec,
    *,
    network: Network,
    peer: bytes,
    operator: bytes,
    seq: int,
    not_before_s: int,
    expiry_s: int,
    sign_as_peer: Callable[[bytes], bytes],
    stake: bytes = NO_DIGEST,
    key_epoch: int = 0,
) -> OfferDraft:
    """An offer with P's consent in it. Our own mistakes raise here, before anything is signed by O.

    `peer` and `operator` are 32-byte ed25519 keys, `sign_as_peer` gives P's signature. Addresses that do not fit
    (more than four, or too long) are left out, the first ones kept. Raises `OfferInvalid`, `LimitExceeded` or
    `DecodeError` when the result would break a rule.
    """
    consent = sign_as_peer(
        consent_bytes(network, operator=operator, stake=stake, payout=spec.payout, expiry_s=expiry_s)
    )
    offer = Offer(
        version=OFFER_VERSION,
        network=int(network),
        peer=peer,
        operator=operator,
        stake=stake,
        key_epoch=key_epoch,
        seq=seq,
        not_before_s=not_before_s,
        expiry_s=expiry_s,
        addresses=_encode_addresses(spec.addresses),
        model=spec.model,
        model_name=spec.model_name,
        engine=spec.engine,
        context_tokens_max=spec.context_tokens_max,
        output_tokens_max=spec.output_tokens_max,
        prices=OfferPrices(
            input_nano=spec.prices.input_nano,
            cached_input_nano=spec.prices.cached_input_nano,
            output_nano=spec.prices.output_nano,
            request_nano=spec.prices.request_nano,
        ),
        features=int(spec.features),
        slots=spec.slots,
        speed=OfferSpeed(
            first_token_p50_ms=spec.first_token_p50_ms,
            first_token_p95_ms=spec.first_token_p95_ms,
            tokens_per_s_p50=spec.tokens_per_s_p50,
        ),
        tee=int(spec.tee),
        image=spec.image,
        consent=consent,
        terms=OfferTerms(
            payout=spec.payout,
            unpaid_tokens_max=spec.unpaid_tokens_max,
            reserve_threshold_nano=spec.reserve_threshold_nano,
            voucher_step_nano=spec.voucher_step_nano,
        ),
        region=spec.region,
        extensions=dict(spec.extensions),
    )
    offer_bytes = encode(offer)
    _check_rules(decode_as(offer_bytes, Offer, bytes_max=limits.OFFER_BYTES_MAX), network)
    return OfferDraft(
        offer_bytes=offer_bytes,
        stake=stake,
        key_epoch=key_epoch,
        slot=offer_slot(operator=operator, peer=peer, model=spec.model, seq=seq),
        digest=offer_digest(offer_bytes),
    )


def finish_offer(draft: OfferDraft, signature: bytes, *, network: Network) -> VerifiedOffer:
    """The draft with O's signature, checked as any peer will check it. Raises what `verify_offer` raises."""
    return verify_offer(encode(SignedOffer(offer=draft.offer_bytes, signature=signature)), network=network)


def _encode_addresses(addresses: tuple[str, ...]) -> list[bytes]:
    encoded: list[bytes] = []
    for text in addresses:
        try:
            encoded.append(encode_address(text))
        except (DecodeError, LimitExceeded):
            continue  # an address that others could not read is better left out than fatal
    return list(dict.fromkeys(encoded))[: limits.OFFER_ADDRESSES_MAX]


# --- checking --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedOffer:
    """An offer whose shape and static rules hold and whose signatures are *not* checked."""

    message: bytes = field(repr=False)  # the encoded SignedOffer, as received
    offer_bytes: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    offer: Offer
    slot: Digest
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedOffer:
    """An offer with O's signature and P's consent checked. Only `verify_parsed` makes one."""

    message: bytes = field(repr=False)  # the encoded SignedOffer, as received: forward this
    signature: bytes = field(repr=False)
    offer: Offer
    slot: Digest
    digest: Digest
    provider: PeerId  # P as a peer id

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def model(self) -> Digest:
        """Of the manifest."""
        return self.offer.model

    @property
    def key(self) -> OfferKey:
        """(O, P, model): one current offer each."""
        return (self.offer.operator, self.offer.peer, self.offer.model)

    @property
    def prices(self) -> Prices:
        """As the rest of the program spells them."""
        prices = self.offer.prices
        return Prices(
            input_nano=prices.input_nano,
            cached_input_nano=prices.cached_input_nano,
            output_nano=prices.output_nano,
            request_nano=prices.request_nano,
        )

    @property
    def features(self) -> Feature:
        """What the model and engine can do, as claimed."""
        return Feature(self.offer.features)

    @property
    def claimed_trust(self) -> TrustLevel:
        """The level that the offer promises evidence for; only a session's evidence proves it."""
        return claimed_trust(self.offer.tee)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs as text with `/p2p/<peer>`; forms that we do not know are left out."""
        texts = []
        for binary in self.offer.addresses:
            try:
                texts.append(f"{decode_address(binary)}/p2p/{self.provider}")
            except DecodeError:
                continue
        return tuple(texts)

    @property
    def consent_digest(self) -> Digest:
        """H(what P consented to), which every receipt names (rule M4)."""
        offer = self.offer
        payload = consent_payload(
            operator=offer.operator, stake=offer.stake, payout=offer.terms.payout, expiry_s=offer.expiry_s
        )
        return domain_hash("consent-digest", Network(offer.network).wire, payload)

    @property
    def expiry_ns(self) -> int:
        """From when on it is void."""
        return self.offer.expiry_s * SECOND_NS


OfferKey = tuple[bytes, bytes, bytes]
"""(operator, peer, model)."""


def claimed_trust(tee: int) -> TrustLevel:
    """The trust level that TEE bits promise. A simulated TEE never counts as more, whatever else is set."""
    if tee & _SIMULATED:
        return TrustLevel.SIMULATED
    if tee & _TDX:
        return TrustLevel.CONFIDENTIAL if tee & _NVIDIA_CC else TrustLevel.CPU_CONFIDENTIAL
    return TrustLevel.OPEN


_SIMULATED, _TDX, _NVIDIA_CC = int(TeeKind.SIMULATED), int(TeeKind.TDX), int(TeeKind.NVIDIA_CC)  # enums are slow


def parse_offer(message: bytes, *, network: Network) -> ParsedOffer:
    """Bytes, shape and static rules of an encoded `SignedOffer`; no signature yet.

    Raises `LimitExceeded`, `DecodeError` or `OfferInvalid`.
    """
    signed = decode_as(message, SignedOffer, bytes_max=limits.SIGNED_OFFER_BYTES_MAX)
    offer = decode_as(signed.offer, Offer, bytes_max=limits.OFFER_BYTES_MAX)
    _check_rules(offer, network)
    return ParsedOffer(
        message=message,
        offer_bytes=signed.offer,
        signature=signed.signature,
        offer=offer,
        slot=offer_slot(operator=offer.operator, peer=offer.peer, model=offer.model, seq=offer.seq),
        digest=offer_digest(signed.offer),
    )


def verify_parsed(parsed: ParsedOffer) -> VerifiedOffer:
    """Both signatures: O's over the stake statement, P's over the consent. Raises `BadSignature`."""
    offer = parsed.offer
    network = Network(offer.network)
    verify(
        offer.operator,
        parsed.signature,
        stake_statement(network, offer.stake, offer.key_epoch, parsed.slot, parsed.digest),
    )
    verify(
        offer.peer,
        offer.consent,
        consent_bytes(
            network,
            operator=offer.operator,
            stake=offer.stake,
            payout=offer.terms.payout,
            expiry_s=offer.expiry_s,
        ),
    )
    return VerifiedOffer(
        message=parsed.message,
        signature=parsed.signature,
        offer=offer,
        slot=parsed.slot,
        digest=parsed.digest,
        provider=peer_id_of_key(offer.peer),
    )


def verify_offer(message: bytes, *, network: Network) -> VerifiedOffer:
    """An encoded `SignedOffer`, checked in full but for time. Raises `LimitExceeded`, `DecodeError`,
    `OfferInvalid` or `BadSignature`."""
    return verify_parsed(parse_offer(message, network=network))


def is_current(offer: VerifiedOffer, *, now: int) -> bool:
    """Whether it is in force at `now` (nanoseconds)."""
    return offer.offer.not_before_s * SECOND_NS <= now < offer.expiry_ns


def _check_rules(offer: Offer, network: Network) -> None:
    """What every peer judges alike, from the bytes alone. Raises `OfferInvalid`."""
    if offer.version != OFFER_VERSION:
        raise OfferInvalid(f"an offer of version {offer.version}; we know {OFFER_VERSION}")
    if offer.network != network:
        raise OfferInvalid(f"an offer for another network than {network.label}")
    life_s = offer.expiry_s - offer.not_before_s
    if not 0 < life_s <= limits.OFFER_LIFE_MAX_S:
        raise OfferInvalid(f"an offer that lives {life_s} s; 1 to {limits.OFFER_LIFE_MAX_S} s are allowed")
    if offer.peer == offer.operator:
        raise OfferInvalid("peer and operator share one key")  # rule K1
    if offer.stake == NO_DIGEST and offer.key_epoch != 0:
        raise OfferInvalid("a key epoch without a stake")
    if offer.tee == 0 and offer.image != NO_DIGEST:
        raise OfferInvalid("an image digest without a TEE")
    if offer.tee & _SIMULATED and network is not Network.DEVNET:
        raise OfferInvalid("a simulated TEE outside the development network")  # rule S8
    if offer.context_tokens_max == 0 or offer.output_tokens_max == 0 or offer.slots == 0:
        raise OfferInvalid("an offer that could serve nothing")
    if not (offer.model_name + offer.region).isprintable():  # `$` in a pattern lets a last line break through
        raise OfferInvalid("a name or region that would break a line")
    if any(key < limits.EXTENSION_KEY_MIN for key in offer.extensions):
        raise OfferInvalid(f"an unknown field below {limits.EXTENSION_KEY_MIN}")
