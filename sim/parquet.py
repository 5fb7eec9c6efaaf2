"""Rows to parquet files while a simulation runs: bounded memory, and what was written stays when a run is cut short.

    with ParquetSink(folder, seed=7, tables=("deliveries",), rows_max=10**6) as sink:
        sink.row("deliveries", message=1, node=2, t_ns=…, delay_ns=…)

A table is `folder/<table>/seed=<seed>/rows.parquet`, so that all seeds read as one data set with a column `seed`.
Columns and their types are those of a table's first batch. A disk that is full ends the run with `RunError`; whole row
groups that were written before can be read all the same, because the file is closed in an orderly way if that is
possible, and the folder is marked as incomplete by `run.py` in any case.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .errors import RunError

BATCH_ROWS = 65_536  # rows kept in memory per table (about 20 MB), and in a row group


class ParquetSink:
    def __init__(self, folder: Path, *, seed: int, tables: tuple[str, ...], rows_max: int) -> None:
        self.folder = folder
        self.seed = seed
        self.rows: dict[str, int] = dict.fromkeys(tables, 0)  # given, written or not
        self.rows_max = rows_max
        self._waiting: dict[str, list[dict[str, Any]]] = {table: [] for table in tables}
        self._writers: dict[str, Any] = {}

    def wants(self, table: str) -> bool:
        return table in self._waiting

    def row(self, table: str, **columns: int | float | str | bytes) -> None:
        waiting = self._waiting.get(table)
        if waiting is None:
            return
        self.rows[table] += 1
        if self.rows[table] > self.rows_max:
            return
        waiting.append(columns)
        if len(waiting) >= BATCH_ROWS:
            self._flush(table)

    def skipped(self) -> dict[str, int]:
        """Rows beyond `rows_max`: counted, not written."""
        return {table: count - self.rows_max for table, count in self.rows.items() if count > self.rows_max}

    def close(self) -> None:
        for table in self._waiting:
            self._flush(table)
        self._close_files()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.close()
        except RunError:
            self._close_files()
            if kind is None:
                raise

    def _close_files(self) -> None:
        problem: OSError | None = None
        while self._writers:
            _, writer = self._writers.popitem()
            try:
                writer.close()
            except OSError as refused:
                problem = refused
        if problem is not None:
            raise RunError(f"{self.folder}: rows cannot be written: {problem}") from problem

    def _flush(self, table: str) -> None:
        rows = self._waiting[table]
        if not rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._waiting[table] = []
        writer = self._writers.get(table)
        names = list(rows[0]) if writer is None else writer.schema.names
        if any(len(row) != len(names) or row.keys() != rows[0].keys() for row in rows) or set(names) != set(rows[0]):
            raise RunError(f"the rows of table {table} have not all the columns {names}")
        try:
            columns = {name: [row[name] for row in rows] for name in names}
            if writer is None:
                batch = pa.table(columns)
                path = self.folder / table / f"seed={self.seed}" / "rows.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = self._writers[table] = pq.ParquetWriter(path, batch.schema, compression="zstd")
            else:
                batch = pa.table(columns, schema=writer.schema)
            writer.write_table(batch, row_group_size=BATCH_ROWS)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as problem:
            raise RunError(f"a column of table {table} has changed its type: {problem}") from problem
        except OSError as problem:
            raise RunError(f"{self.folder}: rows of table {table} cannot be written: {problem}") from problem
