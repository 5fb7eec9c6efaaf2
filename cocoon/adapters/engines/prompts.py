"""What every engine does with a prompt before it runs: its ids, whether it fits, and not to make it twice.

A provider counts a prompt before it accepts the request and runs it afterwards: `PreparedPrompts` keeps it in between.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from ...errors import ConfigError, InvalidRequest
from ...ports.engine import GenerationRequest

PREPARED_MAX: Final = 64  # prompts that were counted and may be generated next
CONTEXT_TOKENS_MIN: Final = 16


def checked_slots(slots: int, most: int) -> int:
    """`slots`, if an engine can have so many. Raises `ConfigError`."""
    if not 1 <= slots <= most:
        raise ConfigError(f"slots must be between 1 and {most}, not {slots}")
    return slots


def context_of(name: str, *, trained: int, wanted: int | None, unless_told: int) -> int:
    """Tokens of prompt and answer together; `trained` is 0 where the model does not say. Raises `ConfigError`."""
    trained = trained or unless_told
    if wanted is None:
        return min(trained, unless_told)
    if not CONTEXT_TOKENS_MIN <= wanted <= trained:
        raise ConfigError(
            f"context_tokens is {wanted}, but {name} was trained for {trained}",
            advice=f"Choose between {CONTEXT_TOKENS_MIN} and {trained}.",
        )
    return wanted


def given_ids(prompt: object, vocabulary_size: int) -> list[int]:
    """A prompt that came as token ids. Raises `InvalidRequest` for anything else."""
    ids = prompt if isinstance(prompt, list) else []
    if ids and all(type(one) is int and 0 <= one < vocabulary_size for one in ids):
        return list(ids)
    raise InvalidRequest("prompt must be text or a list of token ids of this model", param="prompt")


def room_after(prompt: list[int], request: GenerationRequest, context_tokens_max: int) -> int:
    """Tokens that the context leaves for the answer. Raises `InvalidRequest` when that is none."""
    room = context_tokens_max - len(prompt)
    if room <= 0:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens; this model's context holds {context_tokens_max}, answer included",
            param="messages" if request.endpoint == "chat.completions" else "prompt",
            kind="context_length_exceeded",
        )
    return room


class PreparedPrompts:
    """The newest prompts that were counted, by the request itself. Whoever takes one has it alone."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[int, tuple[GenerationRequest, list[int]]] = OrderedDict()

    def keep(self, request: GenerationRequest, prompt: list[int]) -> None:
        """Until it is taken, or `PREPARED_MAX` newer ones have come."""
        self._prompts[id(request)] = (request, prompt)  # holding the request keeps its id its own
        while len(self._prompts) > PREPARED_MAX:
            self._prompts.popitem(last=False)

    def take(self, request: GenerationRequest) -> list[int] | None:
        """The prompt, if it is here."""
        _, prompt = self._prompts.pop(id(request), (None, None))
        return prompt

    def clear(self) -> None:
        """Forget all."""
        self._prompts.clear()
