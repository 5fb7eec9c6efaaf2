"""The bench's figures as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .suite import Outcome, Row

_COLUMNS = (
    "streams", "target", "tok/s", "ratio", "first token p50/p99", "added p50/p99", "gap p50/p99",
    "CPU s/1,000 tok", "RSS MiB", "failed", "altered",
)  # fmt: skip


def table(outcome: Outcome, *, burst: bool) -> str:
    """All rows, then start-up times, the profile, and what was left out."""
    rows = [_COLUMNS, *(_cells(outcome, row) for row in outcome.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [f"{_TITLES[outcome.engine]} (times in ms; starts {'together' if burst else 'spread'})"]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("ready after: " + ", ".join(f"{name} {ready_s:.1f} s" for name, ready_s in outcome.ready_s.items()))
    lines += [f"left out: {each}" for each in outcome.left_out]
    for process, counts in sorted(outcome.profile.items()):
        total = sum(counts.values()) or 1
        shares = sorted(counts.items(), key=lambda item: -item[1])
        lines.append(f"{process} CPU: " + ", ".join(f"{part} {100 * count / total:.0f} %" for part, count in shares))
    return "\n".join(lines) + "\n"


_TITLES = {
    "paced": "Invented tokens: 50/s per stream, the first after 20 ms",
    "tiny": "cocoon-tiny on llama.cpp, one thread",
}


def _cells(outcome: Outcome, row: Row) -> tuple[str, ...]:
    cell = row.cell
    is_raw = cell.target == "raw engine"
    return (
        str(cell.streams),
        cell.target,
        f"{cell.tokens_per_s:,.0f}",
        "1" if is_raw else f"{row.tokens_per_s_ratio:.2f}",
        f"{cell.first_token_p50_ms:.1f}/{cell.first_token_p99_ms:.0f}",
        "–" if is_raw else f"{row.added_first_token_p50_ms:+.1f}/{row.added_first_token_p99_ms:+.0f}",
        f"{cell.gap_p50_ms:.1f}/{cell.gap_p99_ms:.0f}",
        _cpu(outcome, row),
        " + ".join(f"{name} {mib:.0f}" for name, mib in row.rss_mib.items()),
        str(cell.failed),
        str(cell.altered),
    )


def _cpu(outcome: Outcome, row: Row) -> str:
    """Ours without the engine, which runs inside the provider: what it costs alone at this load is taken off."""
    parts = dict(row.cpu_per_1000)
    engine = outcome.engine_cpu_per_1000[row.cell.streams]
    if row.cell.target == "raw engine":
        return f"{parts['raw']:.3f} (engine alone {engine:.3f})"
    own = parts.pop("raw", None)
    if own is not None:
        return f"{sum(parts.values()):.3f}"
    provider = max(0.0, parts["provider"] - engine)
    return f"{parts['gateway'] + provider:.3f} (gateway {parts['gateway']:.3f}, provider {provider:.3f})"
