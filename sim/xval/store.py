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
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # the last line of a run that was killed while it wrote
                self._lines[entry["cell"], entry["seed"]] = entry

    def has(self, cell: str, seed: int) -> bool:
        return (cell, seed) in self._lines

    def put(self, cell: str, entry: dict[str, Any]) -> None:
        entry = {"cell": cell} | entry
        self._lines[cell, entry["seed"]] = entry
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def of(self, cell: str) -> Sequence[dict[str, Any]]:
        """In the order of seeds."""
        return [entry for (name, _), entry in sorted(self._lines.items()) if name == cell]
