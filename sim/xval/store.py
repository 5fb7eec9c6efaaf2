"""What was measured so far: one JSON line per cell and seed, appended as it is done. A run that was killed goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "measured.jsonl"


class Store:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self._lines: dict[tuple[str, int], dict[str, Any]] = {}
        self._is_cut = False  # a run was killed while it wrote its last line
        if self._path.exists():
            text = self._path.read_text(encoding="utf-8")
            self._is_cut = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                self._lines[entry["cell"], entry["seed"]] = entry

    def has(self, cell: str, seed: int) -> bool:
        return (cell, seed) in self._lines

    def put(self, cell: str, entry: dict[str, Any]) -> None:
        entry = {"cell": cell} | entry
        self._lines[cell, entry["seed"]] = entry
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._is_cut + json.dumps(entry) + "\n")
        self._is_cut = False

    def of(self, cell: str) -> Sequence[dict[str, Any]]:
        """In the order of seeds."""
        return [entry for (name, _), entry in sorted(self._lines.items()) if name == cell]
