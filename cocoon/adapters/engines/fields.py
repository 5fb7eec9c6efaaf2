"""What every engine reads out of an OpenAI body in the same way: messages, tools, grammars, logprobs. Pure functions.

What differs between engines (names of sampling fields, ranges of seeds) is in the file of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...errors import InvalidRequest
from ...ports.engine import Continued, GenerationRequest
from . import grammar, tool_calls
from .tool_calls import ToolFormat

TEMPERATURE: Final = 1.0  # OpenAI's defaults, not the engines'
TOP_P: Final = 1.0
TOP_LOGPROBS_MAX: Final = 20
_BEGINNING: Final = "cocoon_continue"


def chat_body(request: GenerationRequest) -> dict[str, Any]:
    """What the chat template needs of the request: messages, and the tools unless none may be called."""
    messages = request.body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", param="messages")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("system", "user", "assistant", "tool"):
            # Templates skip roles that they do not know: the message would be lost without a word.
            raise InvalidRequest(f"messages[{index}].role is unknown", param=f"messages[{index}].role")
    body: dict[str, Any] = {"messages": messages}
    tools = request.body.get("tools")
    if tools and request.body.get("tool_choice", "auto") != "none":
        body["tools"] = tools
        if request.body.get("parallel_tool_calls") is not None:
            body["parallel_tool_calls"] = bool(request.body["parallel_tool_calls"])
    return body


def top_logprobs(body: Mapping[str, Any]) -> int | None:
    """How many alternatives are wanted beside each token; None: no logprobs. Raises `InvalidRequest`."""
    if not body.get("logprobs"):
        return None
    top = body.get("top_logprobs") or 0
    if isinstance(body["logprobs"], int) and not isinstance(body["logprobs"], bool):
        top = max(top, body["logprobs"])  # the completions endpoint's older spelling
    if not 0 <= top <= TOP_LOGPROBS_MAX:
        raise InvalidRequest(f"top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}", param="top_logprobs")
    return int(top)


def biases(given: Mapping[str, float], vocabulary_size: int) -> list[tuple[int, float]]:
    """(token id, bias) of each entry. Raises `InvalidRequest`."""
    out: list[tuple[int, float]] = []
    for key, bias in given.items():
        token_id = int(key)
        if token_id >= vocabulary_size:
            raise InvalidRequest(f"logit_bias names a token beyond the {vocabulary_size} there are", param="logit_bias")
        out.append((token_id, bias))
    return out


def grammar_rules(body: Mapping[str, Any], form: ToolFormat | None) -> tuple[str, ToolFormat | None]:
    """(grammar or "", how to read tool calls or None)."""
    schema = schema_of(body)
    tools: Sequence[Mapping[str, Any]] = body.get("tools") or ()
    choice = body.get("tool_choice", "auto")
    if not tools or choice == "none":
        return (grammar.json_grammar(schema, "response_format") if schema is not None else ""), None
    if form is None:
        raise InvalidRequest(
            "this model's chat template has no tools, or writes calls in a way that is not supported",
            param="tools",
            kind="unsupported_parameter",
        )
    named = choice["function"]["name"] if isinstance(choice, Mapping) else None
    rules = tool_calls.tool_grammar(
        form,
        tools,
        must=choice == "required" or named is not None,
        named=named,
        parallel=body.get("parallel_tool_calls", True) is not False,
        otherwise=schema,
    )
    return rules, form


def schema_of(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON schema that the answer must follow, if any."""
    wanted = body.get("response_format")
    if not wanted or wanted.get("type") == "text":
        return None
    if wanted["type"] == "json_object":
        return grammar.ANY_OBJECT
    schema: Mapping[str, Any] = wanted["json_schema"]["schema"]
    return schema or grammar.ANY_OBJECT


def kept_beginning(continued: Continued | None, pieces: Callable[[int], bytes | None]) -> list[int]:
    """The ids of a beginning that go on, as part of the prompt (rule S9).

    `pieces` gives the bytes of a token, and None for ids that are no token or control the model. Ids are kept as far as
    the shown text goes: what is behind it was held back or cut a character, and is made again. Raises `InvalidRequest`
    when the ids and the text do not belong together.
    """
    if continued is None:
        return []
    shown = continued.text.encode()
    size, kept = 0, 0
    for number, token_id in enumerate(continued.token_ids):
        piece = pieces(token_id)
        if piece is None:
            raise InvalidRequest("the beginning holds an id that is no word of this model", param=_BEGINNING)
        if size >= len(shown) and piece:
            break  # not shown yet
        if not shown.startswith(piece, size):
            break  # a part of it was shown, or none: told apart below
        size += len(piece)
        kept = number + 1
    if size != len(shown):
        raise InvalidRequest("the beginning's text is not that of its tokens", param=_BEGINNING)
    return list(continued.token_ids[:kept])


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request's wishes, checked, in no engine's words."""

    max_tokens: int
    temperature: float
    top_p: float
    frequency_penalty: float
    presence_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    biases: tuple[tuple[int, float], ...]
    top_logprobs: int | None  # None: no logprobs; 0: of the chosen token only
    rules: str = field(repr=False)  # llguidance grammar, "" for none
    tools: ToolFormat | None  # how to read calls out of the answer; None: it is all text

    @property
    def json_answer(self) -> bool:
        """Whether the whole text must parse as JSON."""
        return bool(self.rules) and self.tools is None


def asked(request: GenerationRequest, form: ToolFormat | None, vocabulary_size: int) -> Asked:
    """Everything but the prompt. Raises `InvalidRequest`."""
    body = request.body
    rules, reader = grammar_rules(body, form)
    return Asked(
        max_tokens=body["max_tokens"],
        temperature=body.get("temperature", TEMPERATURE),
        top_p=body.get("top_p", TOP_P),
        frequency_penalty=body.get("frequency_penalty") or 0.0,
        presence_penalty=body.get("presence_penalty") or 0.0,
        seed=None if body.get("seed") is None else int(body["seed"]),
        stop=tuple(body.get("stop") or ()),
        biases=tuple(biases(body.get("logit_bias") or {}, vocabulary_size)),
        top_logprobs=top_logprobs(body),
        rules=rules,
        tools=reader,
    )
