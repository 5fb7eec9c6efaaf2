"""What a run or a sweep left, as pandas and Arrow: `sim.open("runs/first")`.

run = sim.open("runs/first")
run.frame("deliveries").groupby("seed").delay_ns.quantile(0.99)
run.summary                      # each number with its 95 % interval
run.dataset("deliveries")        # pyarrow: larger than memory is fine
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import RunError
from .folder import RunFolder
from .scenario import TABLES, Scenario


class Opened:
    """Read-only. `manifest` is everything needed to repeat; `is_complete` is false for what was cut short."""

    def __init__(self, path: str | Path) -> None:
        self._folder = RunFolder.load(path)
        self.path = self._folder.path
        self.manifest: dict[str, Any] = self._folder.manifest
        self.is_complete = self._folder.is_complete

    @property
    def scenario(self) -> Scenario:
        return self._folder.scenario()

    @property
    def json(self) -> dict[str, Any]:
        """The summary as `--json` printed it."""
        value: dict[str, Any] = self._folder.read_json("summary.json")
        return value

    @property
    def tables(self) -> list[str]:
        return [name for name in TABLES if (self.path / name).is_dir()]

    @property
    def summary(self) -> Any:
        """pandas: metric, mean, low, high, deviation, count (and the axes of a sweep)."""
        return self._parquet("summary.parquet")

    @property
    def results(self) -> Any:
        """pandas: one row per run of a sweep."""
        return self._parquet("results.parquet")

    def dataset(self, table: str) -> Any:
        """A pyarrow data set over all seeds, with the column `seed`. Raises RunError when there are no such rows."""
        import pyarrow.dataset as ds

        if not (self.path / table).is_dir():
            raise RunError(f"{self.path} has no rows of {table}: it has {', '.join(self.tables) or 'none'}")
        files = sorted((self.path / table).glob("seed=*/rows.parquet"))
        if not self.is_complete:  # a process that was killed leaves a file without its end
            files = [file for file in files if _is_whole(file)]
        if not files:
            raise RunError(f"{self.path} has no rows of {table} that can be read: it was cut short")
        return ds.dataset(
            [str(file) for file in files],
            format="parquet",
            partitioning="hive",
            partition_base_dir=str(self.path / table),
        )

    def arrow(self, table: str) -> Any:
        return self.dataset(table).to_table()

    def frame(self, table: str) -> Any:
        """pandas."""
        return self.arrow(table).to_pandas()

    def _parquet(self, name: str) -> Any:
        import pandas as pd

        try:
            return pd.read_parquet(self.path / name)
        except FileNotFoundError:
            raise RunError(f"{self.path} has no {name}") from None

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "INCOMPLETE"
        return f"<{self.manifest['kind']} {self.manifest['scenario']['name']}, {state}, {self.path}>"


def _is_whole(file: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError):
        return False
    return True
