"""An inference engine with one loaded model. One worker owns the engine; the roles see only this."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..types import Digest, Feature, FinishReason, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What is loaded, and what it can do."""

    name: str  # "llama.cpp"
    version: str
    engine_digest: Digest  # of name and version
    context_tokens_max: int  # per request: prompt and output together
    slots: int  # requests that decode at once
    vocabulary_size: int
    features: Feature


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How busy it is."""

    running: int
    queued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """The beginning of an answer that another provider of the same model gave, to be continued (rule S9).

    Both come from a stranger by way of the client. An engine takes the ids only as far as their own text goes, and
    only if they are tokens of the model and none of them controls it.
    """

    token_ids: tuple[int, ...] = field(repr=False)
    text: str = field(repr=False)  # what the user has seen of them


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One generation, already normalised and bounded by `cocoon.serve.openai`.

    `body` holds OpenAI's field names with one spelling each: `messages` or `prompt`, `max_tokens` (always set),
    `temperature`, `top_p`, `seed`, `stop` (list), `logprobs` (bool), `top_logprobs`, `tools`, `tool_choice`,
    `parallel_tool_calls`, `response_format`, `frequency_penalty`, `presence_penalty`, `logit_bias`.
    """

    endpoint: str  # "chat.completions" or "completions"
    body: Mapping[str, Any] = field(repr=False)
    cache_tag: bytes = field(default=b"", repr=False)  # KV reuse only between requests with the same tag (S7)
    continued: Continued | None = None  # part of the prompt, counted and billed as such


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """One token's log probability (nats), and its alternatives as (id, bytes, nats)."""

    token_id: int
    token: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of output: whole tokens, and the text that is certain by now (text may lag behind tokens)."""

    text: str = field(default="", repr=False)
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    logprobs: tuple[Logprob, ...] = field(default=(), repr=False)
    tool_calls: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)  # OpenAI tool-call deltas


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event of a generation."""

    finish_reason: FinishReason
    usage: Usage


EngineEvent = Delta | Finished


class Engine(Protocol):
    """A loaded model."""

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        ...

    async def count_prompt_tokens(self, request: GenerationRequest) -> int:
        """Tokens of the prompt under the model's own chat template.

        With `continued`, the ids that are kept of it count as well. Raises `InvalidRequest` when the template or
        tokenizer refuses it (unknown role, bad tool schema), or the beginning is not one of this model's.
        """
        ...

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Run it. The iterator yields deltas, then one `Finished`.

        Leaving the context, or cancelling inside it, frees the slot within one token. Raises `InvalidRequest`,
        `EngineError`.
        """
        ...

    def load(self) -> EngineLoad:
        """Requests running and waiting now."""
        ...

    async def aclose(self) -> None:
        """Stop everything and free the memory."""
        ...
