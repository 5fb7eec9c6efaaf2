"""Stop words in streamed text: cut at the first one, and never show a part of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopWords:
    """Feed it pieces in order. What may begin a stop word is held back, in whole pieces.

    In whole ones because what the user has seen must be the text of whole tokens: another provider can then go on with
    the answer at any moment (rule S9). So at most one stop word's length and one piece are held.
    """

    __slots__ = ("_held", "_words", "hit")

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(word for word in words if word)
        self._held: list[str] = []
        self.hit = False  # a stop word was found; nothing comes after it

    def feed(self, piece: str) -> str:
        """The text that is certain by now."""
        if not self._words or self.hit:
            return "" if self.hit else piece
        self._held.append(piece)
        text = "".join(self._held)
        found = [at for at in (text.find(word) for word in self._words) if at >= 0]
        if found:
            self.hit = True
            self._held.clear()
            return text[: min(found)]
        hold = max(
            (size for word in self._words for size in range(1, len(word)) if text.endswith(word[:size])), default=0
        )
        rest, certain = len(text), 0
        while certain < len(self._held) and rest - len(self._held[certain]) >= hold:
            rest -= len(self._held[certain])
            certain += 1
        del self._held[:certain]
        return text[: len(text) - rest]

    @property
    def pending(self) -> bool:
        """Whether text is held back."""
        return any(self._held)

    def finish(self) -> str:
        """What was held and began no stop word after all."""
        rest = "".join(self._held)
        self._held.clear()
        return rest
