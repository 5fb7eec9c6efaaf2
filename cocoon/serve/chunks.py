"""Sealed output: how one request's chunks are sealed, chained, and turned from and into engine deltas (S4, M4).

Both ends hold one `ChunkSeal` per request. It counts for itself: number, tokens and chain advance only by
`seal_next` and `open_next`, so a chunk that is dropped, swapped, repeated, truncated or forged does not open. What
does not open leaves everything as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cryptography.exceptions import InvalidTag

from ..errors import DecodeError, StreamBroken
from ..ports.engine import Delta, Logprob
from ..types import Digest
from ..wire import limits
from ..wire.codec import decode_as, encode
from ..wire.messages import Chunk, ChunkBody, EndBody, Frame, TokenLogprob
from ..wire.signing import domain_hash, hash_prefix
from . import bounds
from .sealing import Cipher, seal_error

MICRO: Final = 1_000_000
LOGPROB_MICRO_MIN: Final = -1_000_000_000
TOOL_DELTAS_MAX: Final = 128  # in one chunk
_CHAIN_PREFIX: Final = hash_prefix("chain")
_CHUNK_PREFIX: Final = hash_prefix("chunk")


def chain_start(session: Digest, request_id: int, sealed_request: bytes) -> Digest:
    """h₀ = H(domain ‖ sid ‖ id ‖ H(sealed request))."""
    return domain_hash(
        "chain-start", session, request_id.to_bytes(8, "big"), domain_hash("sealed-request", sealed_request)
    )


def chain_next(chain: Digest, number: int, sealed_chunk: bytes) -> Digest:
    """hᵢ = H(hᵢ₋₁ ‖ number ‖ H(chunk))."""
    inner = hashlib.sha256(_CHUNK_PREFIX + sealed_chunk).digest()
    return hashlib.sha256(_CHAIN_PREFIX + chain + number.to_bytes(4, "big") + inner).digest()


def associated_data(request_id: int, number: int, *, final: bool, prompt_tokens: int, completion_tokens: int) -> bytes:
    """What the seal of a chunk binds: id ‖ number ‖ final ‖ cumulative counts."""
    return (
        request_id.to_bytes(8, "big")
        + number.to_bytes(4, "big")
        + (b"\1" if final else b"\0")
        + prompt_tokens.to_bytes(4, "big")
        + completion_tokens.to_bytes(4, "big")
    )


class ChunkSeal:
    """The chunks of one request, in order, at either end. `prompt_tokens` is None at the client until it is told."""

    __slots__ = ("_cipher", "_id", "chain", "completion_tokens", "is_ended", "number", "prompt_tokens")

    def __init__(self, cipher: Cipher, request_id: int, chain: Digest, *, prompt_tokens: int | None) -> None:
        self._cipher = cipher
        self._id = request_id
        self.chain = chain
        self.number = 0  # of the next chunk
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.is_ended = False

    def seal_next(self, plaintext: bytes, new_tokens: int, *, final: bool) -> Chunk:
        """Seal one encoded body as the next chunk."""
        assert not self.is_ended and self.prompt_tokens is not None
        number, tokens = self.number, self.completion_tokens + new_tokens
        sealed = self._cipher.encrypt(
            number.to_bytes(12, "big"),
            plaintext,
            associated_data(self._id, number, final=final, prompt_tokens=self.prompt_tokens, completion_tokens=tokens),
        )
        self.chain = chain_next(self.chain, number, sealed)
        self.number, self.completion_tokens, self.is_ended = number + 1, tokens, final
        return Chunk(
            id=self._id,
            number=number,
            final=final,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=tokens,
            sealed=sealed,
        )

    def open_next(self, chunk: Chunk) -> ChunkBody | EndBody:
        """The body of the next chunk, or of the sealed end.

        Raises `StreamBroken` (out of order, after the end, counts that do not add up), `SealError` or
        `DecodeError`; then nothing has changed.
        """
        if self.is_ended:
            raise StreamBroken("a chunk after the end")
        if chunk.number != self.number:
            raise StreamBroken("a chunk out of order")
        if self.prompt_tokens is not None and chunk.prompt_tokens != self.prompt_tokens:
            raise StreamBroken("the prompt's token count changed")
        try:
            plaintext = self._cipher.decrypt(
                chunk.number.to_bytes(12, "big"),
                chunk.sealed,
                associated_data(
                    chunk.id,
                    chunk.number,
                    final=chunk.final,
                    prompt_tokens=chunk.prompt_tokens,
                    completion_tokens=chunk.completion_tokens,
                ),
            )
        except InvalidTag:
            raise seal_error() from None
        body: ChunkBody | EndBody
        if chunk.final:
            body = decode_as(plaintext, EndBody, bytes_max=256)
            if (body.prompt_tokens, body.completion_tokens) != (chunk.prompt_tokens, chunk.completion_tokens):
                raise StreamBroken("the end does not agree with its own counts")
            if body.cached_tokens > body.prompt_tokens:
                raise StreamBroken("more cached tokens than prompt tokens")
            new_tokens = 0
        else:
            body = decode_as(plaintext, ChunkBody, bytes_max=bounds.CHUNK_BODY_BYTES_MAX)
            new_tokens = len(body.token_ids)
            if len(body.logprobs) > new_tokens:
                raise StreamBroken("more log probabilities than tokens")
        if chunk.completion_tokens != self.completion_tokens + new_tokens:
            raise StreamBroken("the token count does not match the tokens received")
        self.chain = chain_next(self.chain, chunk.number, chunk.sealed)
        self.number += 1
        self.prompt_tokens = chunk.prompt_tokens
        self.completion_tokens = chunk.completion_tokens
        self.is_ended = chunk.final
        return body


# --- bodies and deltas -----------------------------------------------------------------------------------


def encode_deltas(deltas: Sequence[Delta]) -> tuple[bytes, int]:
    """One chunk body from consecutive deltas, and the tokens in it."""
    if len(deltas) == 1:
        (delta,) = deltas
        text: str = delta.text
        token_ids = list(delta.token_ids)
        logprobs = [_logprob_to_wire(one) for one in delta.logprobs] if delta.logprobs else []
        tool_calls: Sequence[Mapping[str, Any]] = delta.tool_calls
    else:
        text = "".join([delta.text for delta in deltas])
        token_ids = [token for delta in deltas for token in delta.token_ids]
        logprobs = [_logprob_to_wire(one) for delta in deltas for one in delta.logprobs]
        tool_calls = [call for delta in deltas for call in delta.tool_calls]
    body = ChunkBody(
        text=text if text.isascii() else text.encode("utf-8", "replace").decode(),  # lone surrogates have no UTF-8
        token_ids=token_ids,
        logprobs=logprobs,
        tool_calls=json.dumps(list(tool_calls), separators=(",", ":")).encode() if tool_calls else b"",
    )
    return encode(body), len(token_ids)


def delta_of(body: ChunkBody) -> Delta:
    """The engine's delta again. Raises `DecodeError` when the tool calls are not what OpenAI calls so."""
    return Delta(
        text=body.text,
        token_ids=tuple(body.token_ids),
        logprobs=tuple(_logprob_from_wire(one) for one in body.logprobs) if body.logprobs else (),
        tool_calls=_tool_calls(body.tool_calls) if body.tool_calls else (),
    )


def delta_bytes(delta: Delta) -> int:
    """At least as many bytes as this delta takes in an encoded body, head of the body apart."""
    size = 4 * len(delta.text) + 5 * len(delta.token_ids)
    for one in delta.logprobs:
        size += 24 + len(one.token) + sum(16 + len(token) for _, token, _ in one.top)
    for call in delta.tool_calls:
        size += 1 + len(json.dumps(call, separators=(",", ":")))
    return size


BODY_HEAD_BYTES: Final = 32  # array, four heads of at most five bytes, and brackets of the tool calls


def split_delta(delta: Delta, *, tokens_max: int = bounds.DELTA_BYTES_MAX) -> list[Delta]:
    """The same output in pieces that each fit a chunk well and have at most `tokens_max` tokens: those come first.

    A long text, a long argument string of a tool call, or many tokens at once are cut; a logprob entry never is.
    """
    if delta_bytes(delta) <= bounds.DELTA_BYTES_MAX and len(delta.token_ids) <= tokens_max:
        return [delta]
    tokens_step = min(tokens_max, 4 if delta.logprobs else bounds.DELTA_BYTES_MAX // 8)
    text_step = bounds.DELTA_BYTES_MAX // 8
    pieces = [
        Delta(token_ids=delta.token_ids[at : at + tokens_step], logprobs=delta.logprobs[at : at + tokens_step])
        for at in range(0, len(delta.token_ids), tokens_step)
    ]
    pieces += [Delta(text=delta.text[at : at + text_step]) for at in range(0, len(delta.text), text_step)]
    for call in delta.tool_calls:
        pieces += [Delta(tool_calls=(piece,)) for piece in _split_call(call, text_step)]
    return pieces


def _split_call(call: Mapping[str, Any], step: int) -> list[Mapping[str, Any]]:
    """An OpenAI tool-call delta as several: the arguments concatenate, the rest comes once."""
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(arguments, str) or len(arguments) <= step:
        return [call]
    first = {**call, "function": {**function, "arguments": arguments[:step]}}
    rest = [
        {"index": call.get("index", 0), "function": {"arguments": arguments[at : at + step]}}
        for at in range(step, len(arguments), step)
    ]
    return [first, *rest]


def _tool_calls(data: bytes) -> tuple[Mapping[str, Any], ...]:
    try:
        calls = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise DecodeError("tool calls that are not JSON") from None
    if not isinstance(calls, list) or len(calls) > TOOL_DELTAS_MAX:
        raise DecodeError("tool calls that are not a list, or too many")
    return tuple(_tool_call(call) for call in calls)


def _tool_call(call: object) -> Mapping[str, Any]:
    """A provider's delta with OpenAI's fields only, each of its own type: apps use it as it is."""
    known = _known(call, ("index", "id", "type", "function"))
    index = known.get("index", 0)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < TOOL_DELTAS_MAX:
        raise DecodeError("a tool call with an index out of bounds")
    function = known.get("function")
    if function is not None:
        known["function"] = function = _known(function, ("name", "arguments"))
    for text in (known.get("id"), known.get("type"), *(function or {}).values()):
        if text is not None and not _is_text(text):
            raise DecodeError("a tool call with a field of another type")
    if known.get("type") not in (None, "function"):
        raise DecodeError("a tool call that is no function")
    return known


def _known(value: object, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DecodeError("a tool call that is not an object")
    return {name: value[name] for name in names if name in value}


def _is_text(value: object) -> bool:
    """A string that UTF-8 can say; JSON's escapes can spell half a surrogate pair."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value))


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _micro(nats: float) -> int:
    """10⁻⁶ nat, within the wire's range; NaN and −∞ become the floor."""
    if not nats > LOGPROB_MICRO_MIN / MICRO:
        return LOGPROB_MICRO_MIN
    return min(0, round(nats * MICRO))


def _logprob_to_wire(one: Logprob) -> TokenLogprob:
    return TokenLogprob(
        token_id=one.token_id,
        token=one.token,
        logprob_micro=_micro(one.logprob),
        top=[(token_id, token, _micro(nats)) for token_id, token, nats in one.top],
    )


def _logprob_from_wire(one: TokenLogprob) -> Logprob:
    return Logprob(
        token_id=one.token_id,
        token=one.token,
        logprob=one.logprob_micro / MICRO,
        top=tuple((token_id, token, micro / MICRO) for token_id, token, micro in one.top),
    )


# --- frames ----------------------------------------------------------------------------------------------


def encode_frame(chunks: list[Chunk]) -> tuple[Frame, bytes]:
    """A frame of these chunks, padded so that its encoding is a multiple of 256 bytes (S5), and that encoding."""
    bare = encode(Frame(chunks=chunks, padding=b""))  # its last byte is the head of the empty padding
    gap = -len(bare) % limits.FRAME_PAD_BYTES
    if gap == 24:  # no padding makes an item longer by exactly 24: its head grows there
        gap += limits.FRAME_PAD_BYTES
    head = 0 if gap < 24 else 1 if gap < 257 else 2  # bytes by which the head grows
    padding = bytes(gap - head)
    return Frame(chunks=chunks, padding=padding), bare[:-1] + _PADDING_HEADS[head](len(padding)) + padding


_PADDING_HEADS: Final = (
    lambda size: bytes((0x40 + size,)),
    lambda size: bytes((0x58, size)),
    lambda size: b"\x59" + size.to_bytes(2, "big"),
)
