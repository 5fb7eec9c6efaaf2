"""Summaries for people: aligned text, with 95 % intervals where there were replications."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .statistics import flat

LIST_PARTS = ("bins_100ms", "ci95", "runs")
WIDTH_MAX = 60


def summary_table(name: str, summary: Mapping[str, Any]) -> str:
    """Every number but the histograms, by its dotted path."""
    intervals: Mapping[str, Any] = summary.get("ci95", {})
    runs = summary.get("replications", 1)
    head = f"{name}, level {summary['level']}, " + (
        f"{runs} runs from seed {summary['seed']}: mean and 95 % interval" if runs > 1 else f"seed {summary['seed']}"
    )
    rows = []
    for path, value in flat({key: one for key, one in summary.items() if key not in LIST_PARTS}).items():
        if path in ("level", "seed", "replications") or any(f".{part}" in path for part in LIST_PARTS):
            continue
        if path.rpartition(".")[2].isdecimal():
            continue  # members of a list: plots show them
        low, high = intervals.get(path, (None, None))
        rows.append((path, number(value), "" if low is None else f"[{number(low)}, {number(high)}]"))
    width = max((len(path) for path, *_ in rows), default=0)
    lines = [f"  {path:{width}}  {value:>14}  {between}".rstrip() for path, value, between in rows]
    return "\n".join([head, *lines, f"  {'trace_hash':{width}}  {summary['trace_hash']}"])


def sweep_table(results: Mapping[str, Any]) -> str:
    """One line per point: its values, and the first numbers that differ between points."""
    points = results["points"]
    axes = list(results["axes"])
    varying = [metric for metric in results["metrics"] if len({one["mean"].get(metric) for one in points}) > 1][:4]
    rows = [[*axes, *varying]]
    rows += [
        [number(one["values"][axis]) for axis in axes] + [number(one["mean"].get(metric)) for metric in varying]
        for one in points
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
