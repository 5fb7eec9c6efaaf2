"""One request at the provider: what was admitted, its output that waits for credit, and how it turns into chunks.

Bytes wait here in the clear, so they are bounded (`bounds.BUFFER_BYTES_*`) and dropped as soon as the request closes.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ..errors import LocalProtocolError
from ..ports.engine import Delta
from ..types import Digest, FinishReason, Secret
from ..wire.codec import encode
from ..wire.messages import Chunk, EndBody, OpenHeader
from . import bounds
from .chunks import BODY_HEAD_BYTES, ChunkSeal, delta_bytes, encode_deltas, split_delta
from .events import OfferFacts
from .receipts import cached_tokens_before_end

MERGE_BYTES = 1_024  # pieces that wait are joined up to this: objects cost more memory than their bytes
PAID_PIECE_TOKENS_MAX = 8  # of paid output, which leaves by the token: small beside the first window of 64
END_BYTES_MAX = 96  # an encoded EndBody and its tag
_OVERHEAD = BODY_HEAD_BYTES + bounds.AEAD_TAG_BYTES


class TokenGate(Protocol):
    """Says how many tokens of a paid request may leave (rule M3). The role puts `cocoon.pay` behind it.

    Both are called in the step in which a chunk is made, and must not call the session back.
    """

    def allowed(self, session: Digest, request_id: int, wanted: int, *, now: int) -> int:
        """How many of `wanted` tokens, at least one, may leave now."""
        ...

    def released(self, session: Digest, request_id: int, tokens: int, *, cached_tokens: int, now: int) -> None:
        """So many leave now. `cached_tokens`: of the prompt, as the bill counts them up to here."""
        ...


class ServedRequest:
    """A request between `RequestOpened` and its last message."""

    __slots__ = (
        "_pending", "buffered_bytes", "cached_tokens", "chain", "credit_bytes", "finish_reason", "gate",
        "header", "id", "is_unpaid", "offer", "produced_tokens", "receipt_number", "receipt_tokens", "response_key",
        "seal", "sent_bytes", "session",
    )  # fmt: skip

    def __init__(
        self,
        *,
        request_id: int,
        session: Digest,
        header: OpenHeader,
        offer: OfferFacts,
        chain: Digest,
        response_key: Secret,
        credit_bytes: int,
    ) -> None:
        self.id = request_id
        self.session = session
        self.header = header
        self.offer = offer
        self.chain = chain
        self.response_key = response_key
        self.credit_bytes = credit_bytes
        self.gate: TokenGate | None = None  # of a paid request
        self.is_unpaid = False  # the gate held output back
        self.sent_bytes = 0
        self.seal: ChunkSeal | None = None  # from `accept` on
        self.cached_tokens = 0
        self.produced_tokens = 0
        self.buffered_bytes = 0
        self.finish_reason: FinishReason | None = None
        self.receipt_number = 0
        self.receipt_tokens = 0
        self._pending: deque[tuple[Delta, int]] = deque()

    @property
    def has_output(self) -> bool:
        """Whether a chunk could be made, credit permitting."""
        return bool(self._pending) or self.finish_reason is not None

    def push(self, delta: Delta) -> None:
        """Take output. Raises `LocalProtocolError` beyond the declared output; then nothing is taken."""
        if self.produced_tokens + len(delta.token_ids) > self.header.output_tokens_max:
            raise LocalProtocolError(f"more output than request {self.id} declared")
        if len(delta.logprobs) > len(delta.token_ids):
            raise LocalProtocolError("more log probabilities than tokens")
        size = delta_bytes(delta)
        tokens_max = bounds.DELTA_BYTES_MAX if self.gate is None else PAID_PIECE_TOKENS_MAX
        if self._pending and self._pending[-1][1] + size <= MERGE_BYTES:
            last, last_size = self._pending[-1]
            if len(last.token_ids) + len(delta.token_ids) <= tokens_max:
                self._pending[-1] = (_joined(last, delta), last_size + size)
                self.produced_tokens += len(delta.token_ids)
                self.buffered_bytes += size
                return
        pieces = [(delta, size)]
        if size > bounds.DELTA_BYTES_MAX or len(delta.token_ids) > tokens_max:
            pieces = [(piece, delta_bytes(piece)) for piece in split_delta(delta, tokens_max=tokens_max)]
            if any(size + _OVERHEAD > bounds.CHUNK_BODY_BYTES_MAX for _, size in pieces):
                raise LocalProtocolError("one piece of output does not fit a chunk")
        self._pending.extend(pieces)
        self.produced_tokens += len(delta.token_ids)
        self.buffered_bytes += sum(size for _, size in pieces)

    def next_chunk(self, now: int) -> Chunk | None:
        """The next chunk that credit, and for a paid request payment, allow; or None."""
        assert self.seal is not None
        room = min(self.credit_bytes - self.sent_bytes, bounds.CHUNK_BODY_BYTES_MAX) - _OVERHEAD
        pending = self._pending
        if pending:
            if pending[0][1] > room:
                return None
            tokens_left = None if self.gate is None else self._tokens_allowed(self.gate, room, now)
            deltas: list[Delta] = []
            while pending and pending[0][1] <= room:
                delta, size = pending[0]
                if tokens_left is not None:
                    if len(delta.token_ids) > tokens_left:
                        self.is_unpaid = True
                        break
                    tokens_left -= len(delta.token_ids)
                del pending[0]
                deltas.append(delta)
                room -= size
                self.buffered_bytes -= size
            if not deltas:
                return None
            plaintext, tokens = encode_deltas(deltas)
            if self.gate is not None and tokens:
                cached_tokens = cached_tokens_before_end(self.offer.prices, self.seal.prompt_tokens or 0)
                self.gate.released(self.session, self.id, tokens, cached_tokens=cached_tokens, now=now)
            chunk = self.seal.seal_next(plaintext, tokens, final=False)
        elif self.finish_reason is not None and room >= END_BYTES_MAX:
            end = EndBody(
                finish_reason=self.finish_reason.value,
                prompt_tokens=self.seal.prompt_tokens or 0,
                cached_tokens=self.cached_tokens,
                completion_tokens=self.seal.completion_tokens,
            )
            chunk = self.seal.seal_next(encode(end), 0, final=True)
        else:
            return None
        self.sent_bytes += len(chunk.sealed)
        return chunk

    def _tokens_allowed(self, gate: TokenGate, room: int, now: int) -> int:
        """How many tokens may leave, asked for as many as fit into the room."""
        wanted = 0
        for delta, size in self._pending:
            room -= size
            if room < 0:
                break
            wanted += len(delta.token_ids)
        self.is_unpaid = False
        return gate.allowed(self.session, self.id, wanted, now=now) if wanted else 0


def _joined(first: Delta, second: Delta) -> Delta:
    return Delta(
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        tool_calls=first.tool_calls + second.tool_calls,
    )
