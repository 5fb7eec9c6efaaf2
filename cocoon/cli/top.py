"""`cocoon top`: `cocoon status`, live in the terminal, with what happened in the last seconds. `q` or Ctrl-C ends.

With `--json` one object per second and line, for other programs.
"""

from __future__ import annotations

import argparse
from collections import deque
from typing import TYPE_CHECKING, Final

from ..config import Home
from ..errors import ConfigError
from .console import Console
from .status import NOTHING, lines_of, statuses

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..status import Status

HISTORY: Final = 60  # points of a curve
BARS: Final = " ▁▂▃▄▅▆▇█"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon top`."""
    parser.add_argument("--home", metavar="DIR", help="where keys, models and the database live")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between two looks (default: 1)")
    parser.add_argument("--count", type=int, metavar="N", help="end after so many looks")


def run(args: argparse.Namespace, console: Console) -> int:
    """Until Ctrl-C."""
    if not 0.1 <= args.every <= 3_600:
        raise ConfigError("--every must be between 0.1 and 3600 seconds")
    from .running import run_program

    home = Home.locate(args.home)
    return run_program(lambda: _watch(home, console, every_s=args.every, count=args.count), is_service=True)


async def _watch(home: Home, console: Console, *, every_s: float, count: int | None) -> int:
    import msgspec
    import trio

    curves = Curves()
    looks = 0
    if console.json_output:
        while count is None or looks < count:
            found, silent = await statuses(home)
            console.data({"processes": [msgspec.to_builtins(one) for one in found], "silent": silent})
            looks += 1
            if count is None or looks < count:
                await trio.sleep(every_s)
        return 0
    from rich.console import Console as RichConsole
    from rich.live import Live

    with Live(console=RichConsole(), screen=console.is_terminal, auto_refresh=False) as live:
        while count is None or looks < count:
            found, silent = await statuses(home)
            curves.add(found)
            live.update(picture(found, silent, curves), refresh=True)
            looks += 1
            if count is None or looks < count:
                await trio.sleep(every_s)
    return 0


class Curves:
    """The last minute of each process: tokens per look."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._points: dict[int, deque[int]] = {}

    def add(self, found: list[Status]) -> None:
        """One more look."""
        for one in found:
            total = tokens_of(one)
            points = self._points.setdefault(one.pid, deque(maxlen=HISTORY))
            points.append(max(0, total - self._last.get(one.pid, total)))
            self._last[one.pid] = total

    def of(self, pid: int) -> str:
        """A curve in one line, its highest point at the end."""
        points = self._points.get(pid, ())
        most = max(points, default=0)
        line = "".join(BARS[-(-point * (len(BARS) - 1) // most)] if most else BARS[0] for point in points)
        return f"{line:>{HISTORY}}  {most} at most"


def tokens_of(status: Status) -> int:
    """Tokens that it made, or received."""
    if status.serving is not None:
        return status.serving.completion_tokens
    return status.spending.completion_tokens if status.spending is not None else 0


def picture(found: list[Status], silent: list[str], curves: Curves) -> RenderableType:
    """What the terminal shows. Texts of strangers are text, never markup."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    panels: list[RenderableType] = []
    for one in found:
        title, *rest = lines_of(one)
        body = Text("\n".join(rest))
        if one.role != "node":
            body.append(f"\n  {'tokens':<10} {curves.of(one.pid)}")
        panels.append(
            Panel(body, title=Text(title), title_align="left", border_style="red" if one.idle_because else "green")
        )
    if silent:
        panels.append(Text(f"silent: {', '.join(silent)}"))
    return Group(*panels) if panels else Text(NOTHING)
