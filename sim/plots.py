"""Plots of a run or a sweep, as SVG (and PNG): only what its summary and rows have.

`matplotlib` is imported when the first plot is drawn. Figures are made without `pyplot`: no window, no global state.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RunError
from .opening import Opened
from .statistics import Interval, interval

ROWS_DRAWN_MAX = 200_000  # of one table: a curve of more looks the same
METRICS_DRAWN_MAX = 12  # of a sweep
BLUE, GREY = "#2563eb", "#9ca3af"


def draw_all(opened: Opened) -> Iterator[tuple[str, str, Any]]:
    """(name, caption, figure) of every plot that there is something for."""
    if opened.manifest["kind"] == "sweep":
        yield from _sweep_plots(opened)
        return
    summary = opened.json if (opened.path / "summary.json").is_file() else {}  # cut short before its first run ended
    for make in (_delays, _sent, _delay_curve, _hops, _requests, _first_token, _prices, _settled):
        if (plot := make(opened, summary)) is not None:
            yield plot


def svg_text(figure: Any) -> str:
    """For inlining in HTML: no XML head, no metadata, and the same bytes for the same figure."""
    import matplotlib as mpl

    made = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "cocoon", "svg.fonttype": "path"}):
        figure.savefig(made, format="svg", metadata={"Date": None})
    text = made.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def save(figure: Any, path: Path, *, png: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".svg").write_text(svg_text(figure), encoding="utf-8")
        if png:
            figure.savefig(path.with_suffix(".png"), format="png", dpi=150)
    except OSError as problem:
        raise RunError(f"{path} cannot be written: {problem.strerror or problem}") from problem


Plot = tuple[str, str, Any] | None


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _runs(opened: Opened, summary: Mapping[str, Any]) -> dict[str, list[float]]:
    """Each number's low and high, where the summary has an interval."""
    intervals: Mapping[str, list[float]] = summary.get("ci95", {})
    return {path: list(both) for path, both in intervals.items()}


def _bars(axes: Any, names: Sequence[Any], values: Sequence[float], between: Sequence[list[float] | None]) -> None:
    errors = [
        [max(0.0, value - both[0]) if both else 0.0 for value, both in zip(values, between, strict=True)],
        [max(0.0, both[1] - value) if both else 0.0 for value, both in zip(values, between, strict=True)],
    ]
    has_errors = any(map(any, errors))
    axes.bar(names, values, color=BLUE, yerr=errors if has_errors else None, capsize=2, ecolor="#111827")


def _delays(opened: Opened, summary: Mapping[str, Any]) -> Plot:
    delays = (summary.get("gossip") or {}).get("delay_ms") or {}
    bins = delays.get("bins_100ms")
    if not bins or not any(bins):
        return None
    width = opened.manifest["scenario"]["metrics"]["delay_bin_ms"]
    last = max(number for number, count in enumerate(bins) if count) + 1
    figure, axes = _figure("Delay of a message to a node", "ms", "deliveries")
    between = _runs(opened, summary)
    names = [f"{number * width:g}" for number in range(last)]
    _bars(axes, names, bins[:last], [between.get(f"gossip.delay_ms.bins_100ms.{number}") for number in range(last)])
    if last > 12:
        axes.set_xticks(range(0, last, last // 10))
    return (
        "delay-histogram",
        "Deliveries by their delay, publishers left out; bars of error are 95 % intervals.",
        figure,
    )


def _sent(opened: Opened, summary: Mapping[str, Any]) -> Plot:
    sent = (summary.get("gossip") or {}).get("sent") or {}
    sent = {kind: count for kind, count in sent.items() if kind not in ("rpcs", "bytes")}
    if not any(sent.values()):
        return None
    figure, axes = _figure("Gossip messages sent", "", "count")
    between = _runs(opened, summary)
    _bars(axes, list(sent), list(sent.values()), [between.get(f"gossip.sent.{kind}") for kind in sent])
    axes.set_yscale("symlog", linthresh=10)
    return "gossip-sent", "Messages sent in the whole run, by kind, on a logarithmic scale.", figure


def _delay_curve(opened: Opened, _: Mapping[str, Any]) -> Plot:
    columns = _columns(opened, "deliveries", ("seed", "delay_ns"))
    if columns is None:
        return None
    import numpy as np

    figure, axes = _figure("Share of deliveries by then", "ms", "share")
    for seed in sorted(set(columns["seed"].tolist()))[:20]:
        delays = np.sort(columns["delay_ns"][columns["seed"] == seed]) / 1e6
        shares = np.arange(1, len(delays) + 1) / len(delays)
        step = max(1, len(delays) // 2_000)
        axes.plot(delays[::step], shares[::step], color=BLUE, linewidth=1, alpha=0.6)
    axes.set_ylim(0, 1.01)
    return "delay-curve", "Each line is one seed.", figure


def _hops(opened: Opened, _: Mapping[str, Any]) -> Plot:
    columns = _columns(opened, "lookups", ("seed", "hops"))
    if columns is None:
        return None
    import numpy as np

    seeds = sorted(set(columns["seed"].tolist()))
    most = int(columns["hops"].max()) + 1
    each: list[Any] = [np.bincount(columns["hops"][columns["seed"] == seed], minlength=most) for seed in seeds]
    counted = [interval([float(one[hop]) for one in each]) for hop in range(most)]
    figure, axes = _figure("Hops of a DHT lookup", "hops", "lookups per seed")
    _bars(axes, list(range(most)), [one.mean for one in counted], [_both(one) for one in counted])
    return "dht-hops", "Length of the chain of answers that led to the closest node.", figure


def _prices(opened: Opened, _: Mapping[str, Any]) -> Plot:
    columns = _columns(opened, "trades", ("t_ns", "paid_nano", "tokens"))
    if columns is None or not (answered := columns["tokens"] > 0).any():
        return None
    figure, axes = _figure("Price of each answer", "virtual seconds", "TON per 10⁶ output tokens")
    price = columns["paid_nano"][answered] / columns["tokens"][answered] * 1e6 / 1e9
    axes.plot(_seconds(columns["t_ns"][answered]), price, ".", color=BLUE, markersize=2, alpha=0.4)
    axes.set_ylim(bottom=0)
    return "trade-prices", "What was paid, prompts included, over all seeds.", figure


def _requests(opened: Opened, _: Mapping[str, Any]) -> Plot:
    columns = _columns(opened, "trades", ("t_ns", "status", "seed"))
    if columns is None:
        return None
    import numpy as np

    figure, axes = _figure("What became of requests", "virtual seconds", "requests a second, per seed")
    seconds, seeds = _seconds(columns["t_ns"]), len(set(columns["seed"].tolist()))
    width = max(1.0, round(float(seconds.max() - seconds.min()) / 60))
    edges = np.arange(seconds.min() // width * width, seconds.max() + width, width)
    for status in sorted(set(columns["status"].tolist())):
        counts, _edges = np.histogram(seconds[columns["status"] == status], edges)
        axes.step(edges[:-1], counts / width / seeds, where="post", label=status, linewidth=1.2)
    axes.legend(frameon=False, fontsize=8)
    return "requests", "Declined are those whose price or wait was not worth it to the client.", figure


def _first_token(opened: Opened, _: Mapping[str, Any]) -> Plot:
    columns = _columns(opened, "trades", ("t_ns", "first_token_ms"))
    if columns is None or not (answered := columns["first_token_ms"] >= 0).any():
        return None
    import numpy as np

    figure, axes = _figure("Time to the first token", "virtual seconds", "s")
    seconds, waits = _seconds(columns["t_ns"][answered]), columns["first_token_ms"][answered] / 1e3
    width = max(5.0, round(float(seconds.max() - seconds.min()) / 30))
    buckets = (seconds // width).astype(int)
    places = sorted(set(buckets.tolist()))
    for share, style in ((50, "-"), (95, "--"), (99, ":")):
        values = [float(np.percentile(waits[buckets == place], share)) for place in places]
        axes.plot([place * width for place in places], values, style, color=BLUE, label=f"p{share}", linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return "first-token", "Of requests that were answered, by the time of asking, over all seeds.", figure


def _settled(opened: Opened, _: Mapping[str, Any]) -> Plot:
    columns = _columns(opened, "payments", ("t_ns", "amount_nano", "kind"))
    if columns is None:
        return None
    import numpy as np

    figure, axes = _figure("Money moved", "virtual seconds", "TON, all seeds together")
    for kind in sorted(set(columns["kind"].tolist())):
        chosen = columns["kind"] == kind
        times, amounts = columns["t_ns"][chosen], columns["amount_nano"][chosen].astype(float)
        order = np.argsort(times, kind="stable")
        axes.step(_seconds(times[order]), np.cumsum(amounts[order]) / 1e9, where="post", label=kind)
    axes.legend(frameon=False, fontsize=8)
    return "payments", "Sums so far.", figure


def _seconds(times_ns: Any) -> Any:
    """Virtual seconds since the start of the run."""
    from .kernel import EPOCH_NS

    return (times_ns - EPOCH_NS) / 1e9


def _columns(opened: Opened, table: str, names: Sequence[str]) -> dict[str, Any] | None:
    """As numpy arrays; None when the run has no such rows, or they have not these columns."""
    if table not in opened.tables:
        return None
    try:
        data = opened.dataset(table)
    except RunError:  # no file of it is whole
        return None
    if not set(names) <= set(data.schema.names):
        return None
    rows = data.head(ROWS_DRAWN_MAX, columns=list(names))
    if rows.num_rows == 0:
        return None
    return {name: rows.column(name).to_numpy(zero_copy_only=False) for name in names}


def _both(one: Interval) -> list[float] | None:
    return None if one.count < 2 else [one.low, one.high]


def _sweep_plots(opened: Opened) -> Iterator[tuple[str, str, Any]]:
    """Each number that changes, over the first axis that has numbers; one line per value of the second."""
    frame = opened.summary
    points = opened.manifest["points"]
    numeric = [axis for axis in points[0] if all(_is_number(one[axis]) for one in points)] if points else []
    if frame.empty or not numeric:
        return
    axis = max(numeric, key=lambda name: len({one[name] for one in points}))
    others = [name for name in points[0] if name != axis and len({one[name] for one in points}) > 1]
    is_latin = len({one[axis] for one in points}) == len(points) and len(points[0]) > 1
    drawn = 0
    for metric, rows in frame.groupby("metric", sort=False):
        is_listed = str(metric).rpartition(".")[2].isdecimal()
        if is_listed or rows["mean"].nunique() < 2 or drawn >= METRICS_DRAWN_MAX:
            continue
        drawn += 1
        figure, axes = _figure(str(metric), axis, "mean and 95 % interval")
        groups = rows.groupby(others[0], sort=True) if others and not is_latin else [("", rows)]
        for name, group in groups:
            ordered = group.groupby(axis, sort=True)[["mean", "low", "high"]].mean()
            label = f"{others[0]} = {name}" if name != "" else None
            style = "o" if is_latin else "o-"
            lines = axes.plot(ordered.index, ordered["mean"], style, markersize=3, label=label)
            if not is_latin and ordered["low"].notna().any():
                axes.fill_between(ordered.index, ordered["low"], ordered["high"], alpha=0.2, color=lines[0].get_color())
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8)
        yield "sweep-" + re.sub(r"[^a-z0-9]+", "-", str(metric).lower()), "", figure


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
