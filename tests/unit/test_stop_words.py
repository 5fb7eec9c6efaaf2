"""Stop words in a stream: the same text as without streaming, and whole tokens at every moment."""

from __future__ import annotations

import random

import pytest

from cocoon.adapters.engines.fields import kept_beginning
from cocoon.adapters.engines.stops import StopWords
from cocoon.ports.engine import Continued

PIECES = ["a", "b", "ab", "ba", "xab", "a\nb", "\n", "", "é", "bab"]
WORDS = [["ab\n"], ["aab", "bb"], ["xabx", "é\n\n"], ["a"], [], ["\n\n", "nothing of this"]]


def cut(text: str, words: list[str]) -> str:
    found = [at for at in (text.find(word) for word in words) if at >= 0]
    return text[: min(found)] if found else text


@pytest.mark.parametrize("words", WORDS)
def test_a_stream_is_cut_where_the_whole_text_would_be_and_may_move_at_any_token(words: list[str]) -> None:
    source = random.Random(repr(words))
    for _ in range(300):
        ids = [source.randrange(len(PIECES)) for _ in range(source.randrange(1, 12))]
        stops, shown = StopWords(words), ""
        for number, token_id in enumerate(ids):
            shown += stops.feed(PIECES[token_id])
            if stops.hit:
                break
            assert not any(word in shown for word in words)
            beginning = Continued(token_ids=tuple(ids[: number + 1]), text=shown)
            kept = kept_beginning(beginning, lambda one: PIECES[one].encode())
            assert "".join(PIECES[one] for one in kept) == shown, "another provider could not go on here"
        shown += stops.finish()
        assert not stops.pending
        whole = "".join(PIECES[one] for one in ids)
        if stops.hit:
            assert any(word in whole for word in words)
            assert whole.startswith(shown)
            assert not any(word in shown for word in words)
        else:
            assert shown == whole == cut(whole, words)


def test_no_more_is_held_than_a_stop_word_and_a_piece() -> None:
    stops, given, shown = StopWords(["aaaa!"]), 0, 0
    for piece in ["aaa"] * 50:
        given += len(piece)
        shown += len(stops.feed(piece))
        assert given - shown <= len("aaaa!") + len(piece)
