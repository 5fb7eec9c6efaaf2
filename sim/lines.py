"""On which line of a TOML file a key stands, so that an error can point at it. `tomllib` does not tell.

The text is known to be valid TOML (tomllib has read it), so this looks only at keys, headers, and where values end.
Keys inside inline tables and arrays are not listed: ask for the nearest parent (`line_of`).
"""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

_PART = re.compile(r"""[ \t]*(?:([A-Za-z0-9_-]+)|"((?:[^"\\]|\\.)*)"|'([^']*)')[ \t]*""")


def line_map(text: str) -> dict[Path, int]:
    """Path of each key and header → its line, from 1. Members of arrays of tables have their index in the path."""
    return _Scanner(text).scan()


def line_of(lines: dict[Path, int], path: Path) -> int:
    """Of the key or its nearest parent that is listed; 1 when there is none."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.table: Path = ()
        self.last: dict[Path, int] = {}  # arrays of tables: the index of their last member

    def scan(self) -> dict[Path, int]:
        text = self.text
        while self.at < len(text):
            char = text[self.at]
            if char in " \t\r\n":
                self.at += 1
            elif char == "#":
                self._skip_line()
            elif char == "[":
                self._header()
            else:
                line = self._line()
                path = self.table + self._key()
                self.at += 1  # the equals sign
                for length in range(len(self.table) + 1, len(path) + 1):
                    self.lines.setdefault(path[:length], line)
                self._value()
        return self.lines

    def _line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1

    def _skip_line(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end + 1

    def _key(self) -> Path:
        parts: list[str] = []
        while match := _PART.match(self.text, self.at):
            parts.append(next(group for group in match.groups() if group is not None))
            self.at = match.end()
            if self.text[self.at : self.at + 1] != ".":
                break
            self.at += 1
        return tuple(parts)

    def _header(self) -> None:
        line = self._line()
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        names = self._key()
        path: Path = ()
        for number, name in enumerate(names):
            path += (name,)
            self.lines.setdefault(path, line)
            if is_array and number == len(names) - 1:
                self.last[path] = self.last.get(path, -1) + 1
            if path in self.last:
                path += (self.last[path],)
                self.lines.setdefault(path, line)
        self.table = path
        self.at += 2 if is_array else 1

    def _value(self) -> None:
        """Moves behind the value: to the end of its last line."""
        text, depth = self.text, 0
        while self.at < len(text):
            char = text[self.at]
            if char in "\"'":
                self._string(char)
                continue
            if char == "#":
                end = text.find("\n", self.at)
                self.at = len(text) if end < 0 else end
                continue
            if char == "\n" and depth == 0:
                return
            depth += (char in "[{") - (char in "]}")
            self.at += 1

    def _string(self, quote: str) -> None:
        text = self.text
        fence = quote * 3 if text.startswith(quote * 3, self.at) else quote
        self.at += len(fence)
        while self.at < len(text) and not text.startswith(fence, self.at):
            self.at += 2 if text[self.at] == "\\" and quote == '"' else 1
        self.at += len(fence)
        while len(fence) == 3 and text[self.at : self.at + 1] == quote:
            self.at += 1  # up to two quotes may stand before the closing three
