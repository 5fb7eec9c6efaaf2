"""Stop words in streamed text: cut at the first one, and never show a part of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopWords:
    """Feed it pieces in order. At most one stop word's length is held back."""

    __slots__ = ("_held", "_words", "hit")

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(word for word in words if word)
        self._held = ""
        self.hit = False  # a stop word was found; nothing comes after it

    def feed(self, piece: str) -> str:
        """The text that is certain by now."""
        if not self._words or self.hit:
            return "" if self.hit else piece
        text = self._held + piece
        found = [at for at in (text.find(word) for word in self._words) if at >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)]
        hold = max(
            (size for word in self._words for size in range(1, len(word)) if text.endswith(word[:size])), default=0
        )
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    @property
    def pending(self) -> bool:
        """Whether text is held back."""
        return bool(self._held)

    def finish(self) -> str:
        """What was held and began no stop word after all."""
        rest, self._held = self._held, ""
        return rest
