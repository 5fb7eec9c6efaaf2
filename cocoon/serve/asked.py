"""One request at the client: what it expects next, and everything that it checks of the answer.

It counts for itself and believes nothing. What breaks the protocol raises `RemoteProtocolError`, and the session
that called it is over.
"""

from __future__ import annotations

from ..errors import DecodeError, InvalidRequest, LimitExceeded, StreamBroken
from ..types import MILLISECOND_NS, Digest, FinishReason, Network, Secret, Usage
from ..wire.codec import encode
from ..wire.messages import Accepted, Chunk, ChunkBody, EndBody, Open, OpenHeader, Receipt, SealedRequest
from . import bounds
from .chunks import ChunkSeal, chain_start, delta_of
from .events import OfferFacts, OutputReceived, ReceiptReceived, RequestEnded
from .handshake import ClientContext
from .receipts import DueRule, Verify, check_receipt, decode_receipt, payable_nano, receipt_body
from .sealing import Crypto, chunk_key, pad_request, request_info


def seal_request(
    *,
    request_id: int,
    context: ClientContext,
    offer: OfferFacts,
    header: OpenHeader,
    request: SealedRequest,
    wait_ms_max: int,
    credit_bytes: int,
    voucher: bytes,
    crypto: Crypto,
    now: int,
) -> tuple[Open, AskedRequest]:
    """The message to send, and what to expect of its answer. Raises `InvalidRequest` when it is too large."""
    header_bytes = encode(header)
    try:
        padded = pad_request(encode(request))
    except LimitExceeded as error:
        raise InvalidRequest(f"the request is too large: {error}", param="messages") from error
    info = request_info(context.session, request_id, header_bytes)
    sealed = crypto.seal(context.sealing_key, padded, info)
    message = Open(
        id=request_id,
        session_prefix=context.prefix,
        header=header_bytes,
        wait_ms_max=wait_ms_max,
        credit_bytes=credit_bytes,
        sealed=sealed,
        voucher=voucher,
    )
    return message, AskedRequest(
        request_id=request_id,
        session=context.session,
        header=header,
        offer=offer,
        chain=chain_start(context.session, request_id, sealed),
        response_key=Secret(request.response_key),
        credit_bytes=credit_bytes,
        answer_by_ns=now + wait_ms_max * MILLISECOND_NS + bounds.ANSWER_GRACE_NS,
    )


class AskedRequest:
    """A request between `open` and the provider's last word on it."""

    __slots__ = (
        "_response_key", "answer_by_ns", "cancelled_ns", "chain", "consumed_bytes", "credit_bytes", "end",
        "has_final_receipt", "header", "id", "is_reported", "offer", "receipt_number", "receipt_tokens",
        "received_bytes", "seal", "session", "window_bytes",
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
        answer_by_ns: int,
    ) -> None:
        self.id = request_id
        self.session = session
        self.header = header
        self.offer = offer
        self.chain = chain
        self._response_key = response_key
        self.seal: ChunkSeal | None = None  # from `Accepted` on
        self.window_bytes = credit_bytes
        self.credit_bytes = credit_bytes  # granted in total
        self.received_bytes = 0
        self.consumed_bytes = 0
        self.answer_by_ns = answer_by_ns
        self.cancelled_ns: int | None = None
        self.is_reported = False  # its one ending was emitted already
        self.end: EndBody | None = None
        self.has_final_receipt = False
        self.receipt_number = 0
        self.receipt_tokens = 0

    def accepted(self, message: Accepted, crypto: Crypto) -> None:
        """Ready for chunks."""
        if self.seal is not None:
            raise StreamBroken("accepted twice")
        key = chunk_key(self._response_key.reveal(), message.salt, self.session, self.id)
        self.seal = ChunkSeal(crypto.cipher(key), self.id, self.chain, prompt_tokens=None)

    def chunk(self, chunk: Chunk) -> OutputReceived | None:
        """Open the next chunk: output, or None for the sealed end."""
        seal = self.seal
        if seal is None:
            raise StreamBroken("output of a request that was not accepted")
        if self.has_final_receipt:
            raise StreamBroken("a chunk after the final receipt")
        size = len(chunk.sealed)
        if self.received_bytes + size > self.credit_bytes:
            raise LimitExceeded("more output than credit")
        if chunk.prompt_tokens > self.header.input_tokens_max:
            raise StreamBroken("more prompt tokens than declared")
        if chunk.completion_tokens > self.header.output_tokens_max:
            raise StreamBroken("more output tokens than declared")
        body = seal.open_next(chunk)
        self.received_bytes += size
        if isinstance(body, ChunkBody):
            return OutputReceived(
                id=self.id,
                delta=delta_of(body),
                prompt_tokens=chunk.prompt_tokens,
                completion_tokens=chunk.completion_tokens,
                sealed_bytes=size,
            )
        finish_reason_of(body)
        self.end = body
        return None

    def receipt(
        self, message: Receipt, *, network: Network, peer: bytes, verify: Verify, due: DueRule
    ) -> ReceiptReceived:
        """Check a receipt against our own count."""
        seal = self.seal
        if seal is None or seal.number == 0 or self.has_final_receipt:
            raise StreamBroken("a receipt that is not due")
        claimed = decode_receipt(message)
        if not claimed.final and (
            self.end is not None or seal.completion_tokens - self.receipt_tokens < bounds.RECEIPT_TOKENS
        ):
            raise StreamBroken("a receipt that is not due")
        ours = receipt_body(
            network=network,
            session=self.session,
            request_id=self.id,
            number=self.receipt_number,
            header=self.header,
            offer=self.offer,
            chunks=seal,
            cached_tokens=0 if self.end is None else self.end.cached_tokens,
            final=claimed.final,
            due=due,
        )
        check_receipt(message, claimed, ours, network=network, peer=peer, verify=verify)
        self.receipt_number += 1
        self.receipt_tokens = seal.completion_tokens
        self.has_final_receipt = claimed.final
        return ReceiptReceived(
            id=self.id,
            body=claimed,
            receipt=message.receipt,
            signature=message.signature,
            payable_nano=payable_nano(
                claimed,
                self.offer,
                own_completion_tokens=seal.completion_tokens,
                input_tokens_max=self.header.input_tokens_max,
                is_ended=seal.is_ended,
                due=due,
            ),
        )

    def ended(self, receipt: ReceiptReceived) -> RequestEnded:
        """Complete: end and final receipt are both here."""
        assert self.end is not None and self.has_final_receipt
        return RequestEnded(
            id=self.id,
            finish_reason=finish_reason_of(self.end),
            usage=Usage(
                prompt_tokens=self.end.prompt_tokens,
                completion_tokens=self.end.completion_tokens,
                cached_tokens=self.end.cached_tokens,
            ),
            receipt=receipt,
        )

    def consume(self, sealed_bytes: int) -> int | None:
        """The reader has taken so much; the new total credit to grant, or None while it is not worth a message."""
        self.consumed_bytes += sealed_bytes
        assert self.consumed_bytes <= self.received_bytes
        total = self.consumed_bytes + self.window_bytes
        if total - self.credit_bytes < self.window_bytes // 2 or self.end is not None:
            return None
        self.credit_bytes = total
        return total


def finish_reason_of(body: EndBody) -> FinishReason:
    """OpenAI's word; raises `DecodeError` on any other."""
    try:
        return FinishReason(body.finish_reason)
    except ValueError:
        raise DecodeError("an unknown finish reason") from None
