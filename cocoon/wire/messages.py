"""Every message of Cocoon's own protocols, as arrays `[tag, field, …]` of deterministic CBOR.

Bounds stand beside the fields (`Annotated[…, Meta]`), so a message that decodes is within them. What a field
*means* and when a message may come is decided by the machines in `market`, `pay` and `serve`; here is only shape.

Things that somebody signs travel as the bytes that were signed (`offer`, `beacon`, `statement`, `receipt`
fields), decoded beside the signature check and never re-encoded.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from . import limits

VERSION: Final = 1

# --- field types -----------------------------------------------------------------------------------------

U8 = Annotated[int, Meta(ge=0, le=255)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]  # ids and counters; signed 64-bit everywhere
AmountNano = Annotated[int, Meta(ge=0, le=limits.NANO_MAX)]
UnixSeconds = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
ContextTokens = Annotated[int, Meta(ge=0, le=limits.CONTEXT_TOKENS_MAX)]
OutputTokens = Annotated[int, Meta(ge=0, le=limits.OUTPUT_TOKENS_MAX)]
NetworkId = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Bytes8 = Annotated[bytes, Meta(min_length=8, max_length=8)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
MaybeBytes32 = Annotated[bytes, Meta(max_length=32)]  # 32 bytes, or none
Detail = Annotated[str, Meta(max_length=limits.DETAIL_CHARS_MAX)]
ModelName = Annotated[
    str,
    Meta(min_length=1, max_length=limits.MODEL_NAME_CHARS_MAX, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/+-]*\Z"),
]
OfferBytes = Annotated[bytes, Meta(min_length=1, max_length=limits.OFFER_BYTES_MAX)]
BeaconBytes = Annotated[bytes, Meta(min_length=1, max_length=limits.BEACON_BYTES_MAX)]


class Message(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every message: immutable, an array on the wire, refused when it has a field too many."""


# --- market: offers and beacons --------------------------------------------------------------------------


class OfferPrices(Message, frozen=True):
    """NanoTON per 10⁶ tokens, and per request."""

    input_nano: AmountNano
    cached_input_nano: AmountNano
    output_nano: AmountNano
    request_nano: AmountNano


class OfferSpeed(Message, frozen=True):
    """What the provider measured of itself: a claim, discounted until seen."""

    first_token_p50_ms: U32
    first_token_p95_ms: U32
    tokens_per_s_p50: U32


class OfferTerms(Message, frozen=True):
    """How the provider wants to be paid. Zeros in a free offer."""

    payout: Bytes32  # 256-bit account id in workchain 0
    unpaid_tokens_max: U32
    reserve_threshold_nano: AmountNano
    voucher_step_nano: AmountNano


class Offer(Message, frozen=True):
    """One model at one provider peer at one price, for at most an hour (`design.md` §4)."""

    version: U16
    network: NetworkId
    peer: Bytes32  # P, ed25519
    operator: Bytes32  # O, ed25519
    stake: Bytes32  # stake contract's account id; zeros when unstaked
    key_epoch: U32  # of O in the stake contract; zero when unstaked
    seq: U63  # strictly rising per (operator, peer, model)
    not_before_s: UnixSeconds
    expiry_s: UnixSeconds
    addresses: Annotated[
        list[Annotated[bytes, Meta(min_length=1, max_length=limits.ADDRESS_BYTES_MAX)]],
        Meta(max_length=limits.OFFER_ADDRESSES_MAX),
    ]  # binary multiaddrs, without the peer id
    model: Bytes32  # SHA-256 of the model manifest
    model_name: ModelName
    engine: Bytes32  # digest of engine name and version
    context_tokens_max: ContextTokens
    output_tokens_max: OutputTokens
    prices: OfferPrices
    features: U32  # cocoon.types.Feature
    slots: U16
    speed: OfferSpeed
    tee: U16  # cocoon.types.TeeKind
    image: Bytes32  # image digest; zeros without a TEE
    consent: Signature  # P over the consent (rule K3)
    terms: OfferTerms
    region: Annotated[str, Meta(max_length=limits.REGION_CHARS_MAX, pattern=r"^[A-Za-z0-9-]*\Z")]  # a claim
    extensions: dict[int, bytes]  # keys ≥ 1000, ignored when unknown


class SignedOffer(Message, frozen=True, tag=32):
    """An offer as received, and O's signature over its 108-byte stake statement."""

    offer: OfferBytes
    signature: Signature


class Beacon(Message, frozen=True):
    """How busy a provider is now: a hint for ranking, never the truth. Life 30 s."""

    version: U16
    network: NetworkId
    peer: Bytes32
    operator: Bytes32
    model_prefix: Bytes8
    at_ms: U63  # Unix milliseconds; the newest wins
    running: U16
    queued: U16
    slots: U16
    kv_free_permille: Annotated[int, Meta(ge=0, le=1000)]
    wait_ms: U32


class SignedBeacon(Message, frozen=True, tag=33):
    """A beacon as received, and P's signature over it."""

    beacon: BeaconBytes
    signature: Signature


class OffersQuery(Message, frozen=True, tag=34):
    """`/cocoon/offers/1`: which offers do you make? An empty `model` asks for all."""

    model: MaybeBytes32


class OffersReply(Message, frozen=True, tag=35):
    """The answer: current offers and beacons, each an encoded `SignedOffer` or `SignedBeacon`."""

    offers: Annotated[
        list[Annotated[bytes, Meta(max_length=limits.SIGNED_OFFER_BYTES_MAX)]],
        Meta(max_length=limits.OFFERS_REPLY_OFFERS_MAX),
    ]
    beacons: Annotated[
        list[Annotated[bytes, Meta(max_length=limits.SIGNED_BEACON_BYTES_MAX)]],
        Meta(max_length=limits.OFFERS_REPLY_OFFERS_MAX),
    ]


# --- blobs -----------------------------------------------------------------------------------------------


class BlobQuery(Message, frozen=True, tag=37):
    """`/cocoon/blob/1`: the bytes with this SHA-256, from `offset` on."""

    digest: Bytes32
    offset: U32


class BlobPiece(Message, frozen=True, tag=38):
    """A piece of the answer. `total` is the whole blob's size; 0 says that it is not had here."""

    total: U32
    data: Annotated[bytes, Meta(max_length=limits.BLOB_PIECE_BYTES_MAX)]


# --- session ---------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag=1):
    """Client → provider: prove who you are, freshly. Sent again after ten minutes on the same stream."""

    version: U16
    network: NetworkId
    nonce: Bytes32  # N, bound by the statement and by all hardware evidence
    client_nonce: Bytes32  # enters the session id


class Evidence(Message, frozen=True, tag=2):
    """Provider → client: the statement S verbatim, O's and P's signatures over it, and hardware evidence."""

    statement: Annotated[bytes, Meta(min_length=1, max_length=limits.STATEMENT_BYTES_MAX)]
    operator_signature: Signature
    peer_signature: Signature
    provider_nonce: Bytes32  # enters the session id
    hardware: Annotated[bytes, Meta(max_length=limits.EVIDENCE_BYTES_MAX)]  # empty at trust level `open`


class Authenticate(Message, frozen=True, tag=3):
    """Client → provider: V's signature over the session, sealed to E (rule S2). Needed before a paid Open."""

    session_prefix: Bytes8
    sealed: Annotated[bytes, Meta(max_length=1_024)]


class OpenHeader(Message, frozen=True):
    """What an `Open` declares in the clear: admission works on this alone (S6), and the seal binds it (S3)."""

    offer: Bytes32  # digest of the offer whose price holds
    account: MaybeBytes32  # spending account; empty when free
    input_tokens_max: ContextTokens
    output_tokens_max: OutputTokens
    cost_max_nano: AmountNano


class Open(Message, frozen=True, tag=4):
    """Client → provider: one sealed request."""

    id: U63  # strictly rising within a session
    session_prefix: Bytes8  # first bytes of the session id whose E it is sealed to
    header: Annotated[bytes, Meta(min_length=1, max_length=256)]  # an encoded OpenHeader, hashed as it is
    wait_ms_max: U32
    credit_bytes: U32  # sealed bytes the client will take before it grants more
    sealed: Annotated[bytes, Meta(min_length=1, max_length=limits.SEALED_REQUEST_BYTES_MAX)]
    voucher: Annotated[bytes, Meta(max_length=256)]  # empty when free


class Accepted(Message, frozen=True, tag=5):
    """Provider → client: it is admitted. `salt` is r of rule S4."""

    id: U63
    salt: Bytes32
    queue_position: U16


class Refused(Message, frozen=True, tag=6):
    """Provider → client: not admitted, unbilled. `reason` is a `cocoon.serve.reasons.Reason` value."""

    id: U63
    reason: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[a-z_]+\Z")]
    retry_after_ms: U32
    detail: Detail  # for the caller's eyes; never holds request text


class Chunk(Message, frozen=True):
    """Sealed output of one request. The counts are cumulative and are bound by the seal."""

    id: U63
    number: U32  # 0, 1, 2 … within the request; the AEAD nonce
    final: bool  # a sealed `End`
    prompt_tokens: ContextTokens
    completion_tokens: OutputTokens
    sealed: Annotated[bytes, Meta(min_length=16, max_length=limits.SEALED_CHUNK_BYTES_MAX)]


class Frame(Message, frozen=True, tag=7):
    """Provider → client: what all requests of the session produced in the last 20 ms, padded to 256 bytes (S5)."""

    chunks: Annotated[list[Chunk], Meta(min_length=1, max_length=limits.FRAME_CHUNKS_MAX)]
    padding: Annotated[
        bytes, Meta(max_length=limits.FRAME_PAD_BYTES + 24)
    ]  # 24 bytes more cannot be hit by padding alone


class Credit(Message, frozen=True, tag=8):
    """Client → provider: the total of sealed bytes it takes for this request; only grows."""

    id: U63
    total_bytes: U63


class Cancel(Message, frozen=True, tag=9):
    """Client → provider: stop. Chunks that were already sent stay billed."""

    id: U63


class ReceiptBody(Message, frozen=True):
    """What P signs (rule M4)."""

    version: U16
    network: NetworkId
    session: Bytes32
    id: U63
    number: U32
    account: MaybeBytes32
    payout: Bytes32
    offer: Bytes32
    prompt_tokens: ContextTokens
    cached_tokens: ContextTokens
    completion_tokens: OutputTokens
    chain: Bytes32  # h_i over the ciphertext so far
    due_nano: AmountNano
    consent: Bytes32  # digest of the consent in the offer
    final: bool


class Receipt(Message, frozen=True, tag=10):
    """Provider → client: every 256 tokens and at the end."""

    id: U63
    receipt: Annotated[bytes, Meta(min_length=1, max_length=512)]
    signature: Signature


class Voucher(Message, frozen=True, tag=11):
    """Client → provider: a cumulative voucher, 92 bytes as the account contract rebuilds them, and V's signature."""

    voucher: Annotated[bytes, Meta(min_length=92, max_length=92)]
    signature: Signature


class Ping(Message, frozen=True, tag=12):
    """Either way: are you there?"""

    token: U63


class Pong(Message, frozen=True, tag=13):
    """Either way: yes, with your token."""

    token: U63


class Failed(Message, frozen=True, tag=14):
    """Provider → client: an accepted request cannot go on. Chunks up to here stand."""

    id: U63
    reason: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[a-z_]+\Z")]
    detail: Detail


class Goodbye(Message, frozen=True, tag=15):
    """Either way: no new requests on this stream; those in flight finish."""

    reason: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[a-z_]+\Z")]


class Reserve(Message, frozen=True, tag=16):
    """Provider → client: half of the unsecured credit is used; please sign a voucher with this ceiling (rule M3)."""

    ceiling_nano: AmountNano  # cumulative, as in the voucher


SessionMessage = (
    Hello | Evidence | Authenticate | Open | Accepted | Refused | Frame | Credit | Cancel | Receipt | Voucher
    | Ping | Pong | Failed | Goodbye | Reserve
)  # fmt: skip
"""Everything that travels on `/cocoon/session/1`, one message per length-prefixed frame."""


# --- inside the seals ------------------------------------------------------------------------------------


class SealedMessage(Message, frozen=True):
    """Base of what only the two ends may read: its repr shows nothing of it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class SessionAuthentication(SealedMessage, frozen=True):
    """The plaintext of `Authenticate.sealed` (S2): V's signature over the session, the account and the payout."""

    account: Bytes32
    voucher_key: Bytes32  # V
    payout: Bytes32
    signature: Signature


class SealedRequest(SealedMessage, frozen=True):
    """The plaintext of `Open.sealed`, before padding. `body` is an OpenAI-style JSON object."""

    response_key: Bytes32  # new for every attempt (S4)
    cache_tag: Bytes16  # secret; KV reuse only between requests that share it (S7)
    endpoint: Annotated[str, Meta(min_length=1, max_length=32)]  # "chat.completions" or "completions"
    body: Annotated[bytes, Meta(min_length=2, max_length=1024 * 1024)]


class TokenLogprob(SealedMessage, frozen=True):
    """One generated token with its alternatives. Log probabilities are in 10⁻⁶ nat, floored at −10⁹."""

    token_id: U32
    token: bytes
    logprob_micro: Annotated[int, Meta(ge=-1_000_000_000, le=0)]
    top: Annotated[list[tuple[U32, bytes, Annotated[int, Meta(ge=-1_000_000_000, le=0)]]], Meta(max_length=20)]


class ChunkBody(SealedMessage, frozen=True):
    """The plaintext of a chunk that is not the last."""

    text: str
    token_ids: list[U32]
    logprobs: list[TokenLogprob]  # of these tokens, when asked for
    tool_calls: bytes  # JSON array of OpenAI tool-call deltas; empty without


class EndBody(Message, frozen=True):
    """The plaintext of the final chunk (rule S4: `End` is sealed)."""

    finish_reason: Annotated[str, Meta(min_length=1, max_length=24)]
    prompt_tokens: ContextTokens
    cached_tokens: ContextTokens
    completion_tokens: OutputTokens
