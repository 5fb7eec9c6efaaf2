"""What a command may print: data on standard output, talk on standard error, and errors with what to do next."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from ..errors import CocoonError

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130

# Names, errors and answers come from strangers: on a terminal, nothing but a line end and a tab may steer it.
_STEERING: Final = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

_BOLD, _RED, _DIM, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


class Console:
    """The two streams of a command. `json_output` silences everything on standard output but objects."""

    def __init__(self, *, json_output: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.json_output = json_output
        self._out = out if out is not None else sys.stdout
        self._err = err if err is not None else sys.stderr
        self._out_steers, self._err_steers = self._out.isatty(), self._err.isatty()
        self._err_colour = self._err_steers and "NO_COLOR" not in os.environ

    @property
    def is_terminal(self) -> bool:
        """A person reads our talk."""
        return self._err_steers

    def say(self, text: str = "") -> None:
        """Talk: progress, hints, headings."""
        self._talk(text)

    def progress(self, text: str) -> None:
        """Talk that matters only while it happens; dimmed on a terminal."""
        self._talk(text, style=_DIM)

    def notice(self, text: str) -> None:
        """Talk that must not be overlooked."""
        self._talk(text, style=_BOLD)

    def _talk(self, text: str, *, label: str = "", style: str = "") -> None:
        shown = text.translate(_STEERING) if self._err_steers else text
        if style and self._err_colour:
            shown = f"{style}{label}{_PLAIN} {shown}" if label else f"{style}{shown}{_PLAIN}"
        elif label:
            shown = f"{label} {shown}"
        print(shown, file=self._err, flush=True)

    def line(self, text: str) -> None:
        """Data for people. Nothing in JSON mode."""
        self.text(text + "\n")

    def text(self, piece: str) -> None:
        """A piece of streamed data for people, without a line end. Nothing in JSON mode."""
        if not self.json_output:
            self._out.write(piece.translate(_STEERING) if self._out_steers else piece)
            self._out.flush()

    def data(self, value: Mapping[str, Any]) -> None:
        """Data for programs: one object on one line. Nothing outside JSON mode. A missing figure (NaN) is null."""
        if self.json_output:
            plain = json.dumps(_without_nan(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            print(plain, file=self._out, flush=True)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
        """Data for people in columns; those in `right` are aligned to the right."""
        cells = [list(headings), *[list(row) for row in rows]]
        widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
        for row in cells:
            padded = [
                cell.rjust(width) if column in right else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            self.line("  ".join(padded).rstrip())

    def explain(self, error: BaseException) -> int:
        """Print what went wrong and what to do; the exit code for it."""
        from ..causes import single_cause
        from ..errors import CocoonError

        cause = single_cause(error)
        if isinstance(cause, KeyboardInterrupt):
            self.say("interrupted")
            return EXIT_INTERRUPTED
        if isinstance(cause, CocoonError):
            message, advice, code, name = str(cause), cause.advice, cause.exit_code, cause.code
            blame = cause.blame.value
        else:
            (message, advice, code, name), blame = _unforeseen(cause), "local"
        if self.json_output:
            self.data({"error": {"code": name, "message": message, "advice": advice, "blame": blame}})
        self._talk(message, label="error:", style=_RED)
        if advice:
            self.say(advice)
        return code

    def explain_briefly(self, error: CocoonError) -> None:
        """What went wrong, where a command goes on without it. Nothing on standard output."""
        self._talk(str(error), label="warning:", style=_RED)
        if error.advice:
            self.say(error.advice)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value


def _unforeseen(error: BaseException) -> tuple[str, str, int, str]:
    """A foreign error: its type and place only, because its text may hold anything."""
    from ..logs import describe, place

    where = place(error)
    at = f" at {where}" if where else ""
    advice = "This is a fault in the program. Run it again with --debug for details."
    return f"{describe(error)}{at}", advice, EXIT_FAILED, "internal_error"
