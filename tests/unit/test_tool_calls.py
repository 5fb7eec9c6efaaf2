"""Tool calls are read back from text however it is cut into pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.adapters.engines import tool_calls
from cocoon.adapters.engines.tool_calls import HERMES, LLAMA3, MISTRAL, ToolCallReader, ToolFormat, detect
from cocoon.errors import InvalidRequest

CASES = {
    "hermes one": (
        HERMES,
        '<tool_call>\n{"name": "f", "arguments": {"a": "}<"}}\n</tool_call>',
        "",
        [("f", {"a": "}<"})],
    ),
    "hermes text before": (
        HERMES,
        'I look.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        "I look.",
        [("f", {})],
    ),
    "hermes two": (
        HERMES,
        (
            '<tool_call>\n{"name": "f", "arguments": {"x": [1, {"y": "\\""}]}}\n</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
        ),
        "",
        [("f", {"x": [1, {"y": '"'}]}), ("g", {})],
    ),
    "hermes compact": (HERMES, '<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>', "", [("f", {"a": 1})]),
    "hermes only text": (HERMES, "2 < 3, <tool> and {}", "2 < 3, <tool> and {}", []),
    "hermes marker without a call": (HERMES, "a <tool_call> b", "a <tool_call> b", []),
    "hermes marker at the end": (HERMES, "a <tool_ca", "a <tool_ca", []),
    "llama3 call": (LLAMA3, '{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
    "llama3 text": (LLAMA3, 'Hello {"name": "f"}', 'Hello {"name": "f"}', []),
    "llama3 other JSON": (LLAMA3, '{"city": "Paris"}', '{"city": "Paris"}', []),
    "mistral two": (
        MISTRAL,
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"b": "é"}}]',
        "",
        [("f", {}), ("g", {"b": "é"})],
    ),
}


def read(form: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, object]], list[str]]:
    reader = ToolCallReader(form)
    text, found, ids = "", {}, []
    for piece in pieces:
        more, deltas = reader.feed(piece)
        text += more
        for delta in deltas:
            if "id" in delta:
                found[delta["index"]] = [delta["function"]["name"], ""]
                ids.append(delta["id"])
            found[delta["index"]][1] += delta["function"]["arguments"]
    text += reader.finish()
    return text, [(name, json.loads(arguments)) for name, arguments in found.values()], ids


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_calls_are_read_whole_and_letter_by_letter(case: tuple[ToolFormat, str, str, list[object]]) -> None:
    form, written, text, calls = case
    for pieces in ([written], list(written)):
        got_text, got_calls, ids = read(form, pieces)
        assert (got_text, got_calls) == (text, calls)
        assert len(set(ids)) == len(calls)


@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(0, 200), max_size=8))
def test_it_does_not_matter_where_the_pieces_are_cut(name: str, cuts: list[int]) -> None:
    form, written, text, calls = CASES[name]
    at = sorted({0, len(written), *(cut % len(written) for cut in cuts)})
    pieces = [written[a:b] for a, b in itertools.pairwise(at)]
    assert read(form, pieces)[:2] == (text, calls)


@given(st.sampled_from([HERMES, LLAMA3, MISTRAL]), st.lists(st.text(alphabet='<tol_ca>{}"name:,[] \\é', max_size=12)))
def test_any_text_is_survived_and_text_without_calls_is_unchanged(form: ToolFormat, pieces: list[str]) -> None:
    reader = ToolCallReader(form)
    text = "".join(reader.feed(piece)[0] for piece in pieces) + reader.finish()
    if not reader.calls:
        assert text == "".join(pieces)


def test_the_chat_template_tells_the_format() -> None:
    assert detect("{{ tools }} <tool_call> arguments") is HERMES
    assert detect("{{ tools }} [TOOL_CALLS]") is MISTRAL
    assert detect('{{ tools }} <|python_tag|> "parameters"') is LLAMA3
    assert detect("{{ messages }}") is None
    assert detect("{{ tools }} something new") is None
    assert detect("{{ tools }} <tool_call><function=x> arguments") is None


def test_a_named_tool_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not among the tools"):
        tool_calls.tool_grammar(
            HERMES,
            [{"type": "function", "function": {"name": "f"}}],
            must=True,
            named="g",
            parallel=True,
            otherwise=None,
        )
