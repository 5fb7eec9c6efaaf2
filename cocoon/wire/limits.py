"""Every bound on what may come from outside, with the reason for its size."""

from __future__ import annotations

from typing import Final

# --- market ---
OFFER_BYTES_MAX: Final = 1_024  # fits one gossip packet; our largest test offer has about 800
SIGNED_OFFER_BYTES_MAX: Final = OFFER_BYTES_MAX + 128  # signature and framing
BEACON_BYTES_MAX: Final = 160
SIGNED_BEACON_BYTES_MAX: Final = BEACON_BYTES_MAX + 96
OFFER_LIFE_MAX_S: Final = 3_600  # a stale price misleads nobody for longer than an hour
OFFER_ADDRESSES_MAX: Final = 4
ADDRESS_BYTES_MAX: Final = 128
MODEL_NAME_CHARS_MAX: Final = 64
REGION_CHARS_MAX: Final = 16
EXTENSION_KEY_MIN: Final = 1_000  # unknown keys from here on are ignored, below they are refused
OFFERS_REPLY_OFFERS_MAX: Final = 64  # one model on one peer is one offer; nobody serves more models
OFFERS_MESSAGE_BYTES_MAX: Final = OFFERS_REPLY_OFFERS_MAX * (SIGNED_OFFER_BYTES_MAX + SIGNED_BEACON_BYTES_MAX + 16)

# --- blobs ---
BLOB_BYTES_MAX: Final = 16 * 1024 * 1024  # tokenizers are the largest small files
BLOB_PIECE_BYTES_MAX: Final = 64 * 1024
BLOB_MESSAGE_BYTES_MAX: Final = BLOB_PIECE_BYTES_MAX + 64

# --- session ---
SESSION_FRAME_BYTES_MAX: Final = 2 * 1024 * 1024  # the largest sealed request plus its envelope
SESSION_FRAME_ITEMS_MAX: Final = 4_096  # FRAME_CHUNKS_MAX chunks of seven items, twice over
SEALED_REQUEST_BYTES_MAX: Final = 1024 * 1024 + 256  # padded plaintext of 1 MiB: about 250,000 tokens of text
SEALED_CHUNK_BYTES_MAX: Final = 64 * 1024  # a chunk is flushed long before it holds this much
EVIDENCE_BYTES_MAX: Final = 512 * 1024  # quote, collateral, RIMs and CRLs together take about 200 KB
STATEMENT_BYTES_MAX: Final = 4_096  # a post-quantum sealing key takes 1,216, eight GPU digests 400
FRAME_CHUNKS_MAX: Final = 256  # one per request in flight
REQUESTS_IN_FLIGHT_MAX: Final = 256  # per session
DETAIL_CHARS_MAX: Final = 256
FRAME_PAD_BYTES: Final = 256  # rule S5
REQUEST_PAD_BYTES_MIN: Final = 1_024  # rule S5
OUTPUT_TOKENS_MAX: Final = 1 << 20
CONTEXT_TOKENS_MAX: Final = 1 << 24
NANO_MAX: Final = (1 << 63) - 1
