"""How models write tool calls, and how to read them back while they stream.

A model's chat template tells which of the known formats it was trained on. For each: the grammar that holds the
model to a call of an offered tool, and a reader that splits the text into what the user sees and OpenAI's tool-call
deltas. A template of no known format gets no tools (`Feature.TOOLS` stays off): a call that cannot be read back
would reach the user as text.

    hermes   <tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>     Qwen 2.5 and 3, Hermes, cocoon-tiny
    llama3   {"name": …, "parameters": {…}}                              Llama 3.1 and later, whole answer
    mistral  [TOOL_CALLS][{"name": …, "arguments": {…}}]                   Mistral, Nemo
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...errors import InvalidRequest
from . import grammar

HEAD_CHARS_MAX: Final = 512  # `{"name": "…", "arguments": ` with a name of 64 characters, and some slack
CALLS_MAX: Final = 32  # of one answer; the rest stays text


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One way to write calls."""

    name: str
    begin: str  # before the first call
    between: str  # between two calls
    end: str  # after the last one
    arguments: str  # the key of the arguments
    bare: bool = False  # no marker: a call is an answer that is one JSON object
    special: tuple[str, ...] = ()  # markers that may be control tokens, to be written out as text


HERMES: Final = ToolFormat(
    name="hermes",
    begin="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    end="\n</tool_call>",
    arguments="arguments",
    special=("<tool_call>", "</tool_call>"),
)
LLAMA3: Final = ToolFormat(name="llama3", begin="", between="", end="", arguments="parameters", bare=True)
MISTRAL: Final = ToolFormat(
    name="mistral", begin="[TOOL_CALLS][", between=", ", end="]", arguments="arguments", special=("[TOOL_CALLS]",)
)


def detect(template: str) -> ToolFormat | None:
    """The format a chat template teaches, or None."""
    if "tools" not in template:
        return None
    if "<tool_call>" in template and "<function=" not in template and "arguments" in template:
        return HERMES
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return MISTRAL
    if "<|python_tag|>" in template and '"parameters"' in template:
        return LLAMA3
    return None


# --- grammar -----------------------------------------------------------------------------------------------


def tool_grammar(
    form: ToolFormat,
    tools: Sequence[Mapping[str, Any]],
    *,
    must: bool,
    named: str | None,
    parallel: bool,
    otherwise: Mapping[str, Any] | None,
) -> str:
    """A grammar for an answer that calls (`must`) or may call one of the tools.

    `named` leaves only that tool; `otherwise` is a JSON schema for an answer that does not call. Raises
    `InvalidRequest`.
    """
    functions = [tool["function"] for tool in tools if named is None or tool["function"]["name"] == named]
    if not functions:
        raise InvalidRequest("tool_choice names a function that is not among the tools", param="tool_choice")
    rules = []
    for index, function in enumerate(functions):
        head = '{"name": ' + json.dumps(function["name"]) + f', "{form.arguments}": '
        rules.append(f"call{index}: {grammar.literal(head)} args{index} {grammar.literal('}')}\n")
        rules.append(grammar.json_rule(f"args{index}", function.get("parameters"), f"tools[{index}]"))
    rules.append(grammar.choice_rule("call", [f"call{index}" for index in range(len(functions))]))
    several = f" ({grammar.literal(form.between)} call)*" if parallel and form.between else ""
    begin, end = (grammar.literal(part) + " " if part else "" for part in (form.begin, form.end))
    rules.append(f"calls: {begin}call{several} {end}\n")
    answers = ["calls"]
    if not must and otherwise is not None:
        rules.append(grammar.json_rule("json", otherwise, "response_format"))
        answers.append("json")
    elif not must:
        rules.append(_free_text(form))
        answers.append("TEXT")
        if not form.bare:
            answers.append("TEXT calls")
    return grammar.HEADER + grammar.choice_rule("start", answers) + "".join(rules)


def _free_text(form: ToolFormat) -> str:
    if form.bare:
        return "TEXT: /[^{](?s:.*)/\n"
    return grammar.text_without("TEXT", [form.begin.strip()])


# --- reading -----------------------------------------------------------------------------------------------


class ToolCallReader:
    """Splits generated text into content and calls. Feed it pieces; text that may still become a call is held.

    What looks like a call and is none (no grammar was in force, or the tokens ran out) is given back as text, so
    nothing that was generated is lost.
    """

    def __init__(
        self, form: ToolFormat, *, new_id: Callable[[], str] = lambda: "call_" + secrets.token_hex(12)
    ) -> None:
        self._form = form
        self._marker = form.begin.strip()
        self._new_id = new_id
        self._held = ""
        self._scan: _Arguments | None = None
        self._started = False  # anything but white space was seen
        self.calls = 0

    def feed(self, piece: str) -> tuple[str, list[dict[str, Any]]]:
        """(text for the user, tool-call deltas)."""
        self._held += piece
        text: list[str] = []
        deltas: list[dict[str, Any]] = []
        while self._step(text, deltas):
            pass
        return "".join(text), deltas

    def finish(self) -> str:
        """What was held back and is plain text after all."""
        rest, self._held = self._held, ""
        if self._scan is not None or self.calls:
            return ""  # the end of a call cut off by the token limit, or white space and marks after the last one
        return rest

    def _step(self, text: list[str], deltas: list[dict[str, Any]]) -> bool:
        """One move; False when more input is needed."""
        if self._scan is not None:
            return self._arguments(deltas)
        if self.calls and not self._form.bare:
            return self._next_call(deltas)
        if self._form.bare:
            return self._bare(text, deltas)
        at = self._held.find(self._marker)
        if at < 0:
            cut = len(self._held) - _overlap(self._held, self._marker)
            cut = len(self._held[:cut].rstrip())  # white space before a call belongs to the format, not to the text
            if cut:
                text.append(self._held[:cut])
                self._held = self._held[cut:]
            return False
        head = self._head(at + len(self._marker))
        if head is None:
            return False
        if head is False:  # a marker without a call behind it
            cut = at + len(self._marker)
            text.append(self._held[:cut])
            self._held = self._held[cut:]
            return True
        text.append(self._held[:at].rstrip())
        self._open(head, deltas)
        return True

    def _bare(self, text: list[str], deltas: list[dict[str, Any]]) -> bool:
        if self.calls:
            return False
        if not self._started:
            stripped = self._held.lstrip().removeprefix("<|python_tag|>")
            if not stripped:
                return False
            if stripped.startswith("{"):
                head = self._head(self._held.index("{"))
                if head is None:
                    return False
                if head is not False:
                    self._open(head, deltas)
                    return True
            self._started = True
        text.append(self._held)
        self._held = ""
        return False

    def _next_call(self, deltas: list[dict[str, Any]]) -> bool:
        """After a call: another one, or nothing more of interest."""
        if self.calls >= CALLS_MAX:
            return False
        start = self._held.find("{")
        if start < 0:
            return False
        head = self._head(start)
        if head is None or head is False:
            return False
        self._open(head, deltas)
        return True

    def _head(self, start: int) -> tuple[str, int] | bool | None:
        """(name, where the arguments begin); None to wait for more; False when it is no call."""
        pattern = _HEADS[self._form.arguments]
        match = pattern.match(self._held, start)
        if match is not None:
            try:
                name = json.loads(match.group(1))
            except ValueError:
                return False
            return name, match.end()
        rest = self._held[start:]
        if len(rest) > HEAD_CHARS_MAX or not _PREFIX[self._form.arguments].match(rest):
            return False
        return None

    def _open(self, head: tuple[str, int] | bool, deltas: list[dict[str, Any]]) -> None:
        assert isinstance(head, tuple)
        name, at = head
        deltas.append(
            {
                "index": self.calls,
                "id": self._new_id(),
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }
        )
        self._scan = _Arguments()
        self._held = self._held[at:]
        self.calls += 1

    def _arguments(self, deltas: list[dict[str, Any]]) -> bool:
        assert self._scan is not None
        end = self._scan.feed(self._held)
        piece = self._held if end is None else self._held[:end]
        if piece:
            deltas.append({"index": self.calls - 1, "function": {"arguments": piece}})
        self._held = "" if end is None else self._held[end:]
        if end is None:
            return False
        self._scan = None
        return True


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-size:]):
            return size
    return 0


class _Arguments:
    """Finds the end of one JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._string = False
        self._escape = False

    def feed(self, piece: str) -> int | None:
        """Index after the object's last brace in `piece`, or None while it is open."""
        for index, char in enumerate(piece):
            if self._escape:
                self._escape = False
            elif self._string:
                self._string = char != '"'
                self._escape = char == "\\"
            elif char == '"':
                self._string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return index + 1
        return None


_NAME: Final = r'("(?:[^"\\]|\\.){1,80}")'


def _head_pattern(key: str) -> re.Pattern[str]:
    return re.compile(
        r"\s*(?:<\|python_tag\|>)?\[?\s*\{\s*\"name\"\s*:\s*" + _NAME + r"\s*,\s*\"" + key + r"\"\s*:\s*(?=\{)"
    )


def _prefix_pattern(key: str) -> re.Pattern[str]:
    """Matches every beginning of a head, so that a reader knows whether waiting can help."""
    parts = [r"\s*", r"\[?", r"\s*", r"\{", r"\s*", '"', "n", "a", "m", "e", '"', r"\s*", ":", r"\s*", '"']
    parts += [r"(?:[^\"\\]|\\.){0,80}\\?", '"', r"\s*", ",", r"\s*", '"', *key, '"', r"\s*", ":", r"\s*"]
    pattern = "$"
    for part in reversed(parts):
        pattern = f"(?:$|{part}{pattern})"
    return re.compile(pattern)


_HEADS: Final = {key: _head_pattern(key) for key in ("arguments", "parameters")}
_PREFIX: Final = {key: _prefix_pattern(key) for key in ("arguments", "parameters")}
