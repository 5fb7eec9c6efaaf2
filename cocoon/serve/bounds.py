"""Times and sizes of a session, each with the reason for its value. Sizes of messages are in `cocoon.wire.limits`."""

from __future__ import annotations

from typing import Final

from ..types import MILLISECOND_NS, SECOND_NS
from ..wire import limits

FRAME_INTERVAL_NS: Final = 20 * MILLISECOND_NS  # one libp2p message costs as much CPU as ten tokens
PING_IDLE_NS: Final = 15 * SECOND_NS  # NATs forget a silent mapping after 30 s
DEAD_NS: Final = 45 * SECOND_NS  # three unanswered pings
PINGS_PER_IDLE_MAX: Final = 16  # an honest peer sends one in this time
HELLO_TIMEOUT_NS: Final = 30 * SECOND_NS  # hardware evidence takes up to 10 s to make
HELLO_AGAIN_NS: Final = 600 * SECOND_NS  # rule K5
HELLOS_PER_PERIOD_MAX: Final = 4  # per HELLO_AGAIN_NS: the due one, and one after each refusal for a stale key (S6)
UNSERVED_PERIOD_NS: Final = 15 * SECOND_NS
UNSERVED_PER_PERIOD_MAX: Final = 512  # requests of one session that cost decryption and then served nobody (S6)
HELD_BYTES_MAX: Final = 4 * 1024 * 1024  # of one session's sealed requests, while its account is looked up on chain
KEY_LIFE_NS: Final = 3_600 * SECOND_NS  # rule K5
KEY_GRACE_NS: Final = 600 * SECOND_NS  # rule K5
ANSWER_GRACE_NS: Final = 10 * SECOND_NS  # after the longest wait in the queue that the client allows
CANCEL_TIMEOUT_NS: Final = 30 * SECOND_NS  # a cancelled request must be closed by the provider within this
STALL_NS: Final = 300 * SECOND_NS  # a reader that takes nothing for so long has gone
DRAIN_GRACE_NS: Final = 2 * SECOND_NS  # for an Open that crossed the Goodbye

RECEIPT_TOKENS: Final = 256  # design §5: a receipt at least so often
RECEIPT_BYTES_MAX: Final = 512
RECEIPTS_MAX: Final = limits.OUTPUT_TOKENS_MAX // RECEIPT_TOKENS + 2

CREDIT_BYTES_MIN: Final = limits.SEALED_CHUNK_BYTES_MAX  # any one chunk fits, so a stream never locks up
CREDIT_BYTES: Final = 128 * 1024  # about 2,500 single-token chunks, a minute at 40 tokens/s
CREDIT_BYTES_MAX: Final = 16 * 1024 * 1024

AEAD_TAG_BYTES: Final = 16
CHUNK_BODY_BYTES_MAX: Final = limits.SEALED_CHUNK_BYTES_MAX - AEAD_TAG_BYTES
DELTA_BYTES_MAX: Final = 16 * 1024  # larger deltas are split, so several always fit one chunk
FLUSH_BYTES_MAX: Final = 1024 * 1024  # of sealed chunks in one frame: leaves half of the message bound as margin
BUFFER_BYTES_HIGH: Final = 1024 * 1024  # of a request's unsent output: from here on the engine should pause
BUFFER_BYTES_LOW: Final = 256 * 1024  # and here it goes on
SESSION_BUFFER_BYTES_HIGH: Final = 16 * 1024 * 1024  # the same over all requests of a session
SESSION_BUFFER_BYTES_LOW: Final = 8 * 1024 * 1024
BUFFER_BYTES_MAX: Final = 4 * 1024 * 1024  # what one late batch may add; beyond it the request fails
