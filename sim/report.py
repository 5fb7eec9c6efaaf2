"""One HTML page for a run or a sweep, with everything in it: no script, no style sheet, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .errors import RunError
from .folder import MARK, RunFolder
from .opening import Opened
from .plots import draw_all, save, svg_text
from .statistics import flat
from .table import LIST_PARTS, number

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111827 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } td, th { padding: .15rem .8rem .15rem 0 }
th { text-align: left; color: #6b7280; font-weight: normal } td.n { text-align: right }
figure { margin: 1.2rem 0 } figure svg { max-width: 100%; height: auto } figcaption { color: #6b7280; font-size: .9rem }
.cut { background: #fef3c7; padding: .6rem 1rem } pre { overflow-x: auto; background: #f3f4f6; padding: .8rem }
"""
POINTS_SHOWN_MAX = 1_000


def write_report(folder: Path, *, png: bool = False) -> Path:
    """Plots into `plots/`, and `report.html`. Raises RunError."""
    opened = Opened(folder)
    if opened.manifest["kind"] == "sweep":
        from .sweep import collect

        collect(RunFolder.load(folder))
    figures = []
    for name, caption, figure in draw_all(opened):
        save(figure, folder / "plots" / name, png=png)
        figures.append(f"<figure>{svg_text(figure)}<figcaption>{escape(caption)}</figcaption></figure>")
    target = folder / "report.html"
    text = page(opened, figures)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise RunError(f"{target} cannot be written: {problem.strerror or problem}") from problem
    return target


def page(opened: Opened, figures: list[str]) -> str:
    manifest, scenario = opened.manifest, opened.manifest["scenario"]
    title = f"{scenario['name']}: {scenario['title']}" if scenario["title"] else scenario["name"]
    parts = [f"<h1>{escape(title)}</h1>"]
    if not opened.is_complete:
        why = (opened.path / MARK).read_text(encoding="utf-8", errors="replace").strip()
        parts.append(f'<p class="cut">Cut short, so these figures are partial. {escape(why)}</p>')
    if scenario["doc"]:
        parts.append(f"<p>{escape(scenario['doc'])}</p>")
    parts.append(_facts(manifest))
    parts += [f'<p class="cut">{escape(warning)}</p>' for warning in _summary(opened).get("warnings", ())]
    parts += [*figures, "<h2>Figures</h2>"]
    parts.append(_sweep_table(opened) if manifest["kind"] == "sweep" else _numbers(_summary(opened)))
    parts += ["<h2>Scenario</h2>", f"<pre>{escape(_settings(scenario))}</pre>"]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _summary(opened: Opened) -> Mapping[str, Any]:
    if opened.manifest["kind"] == "sweep" or not (opened.path / "summary.json").is_file():
        return {}
    return opened.json


def _facts(manifest: Mapping[str, Any]) -> str:
    made = manifest["environment"]
    seeds = manifest["seeds"]
    rows = {
        "level": f"{manifest['level']}",
        "seeds": str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}",
        "commit": made["git_commit"] + ("" if made["git_is_clean"] else ", with changes"),
        "sources": made["source_hash"],
        "made": f"{manifest['started']} to {manifest.get('ended', '…')}",
        "with": f"Python {made['python']}, " + ", ".join(f"{name} {one}" for name, one in made["packages"].items()),
        "on": f"{made['cpu']}, {made['platform']}",
        "command": " ".join(manifest.get("command", ())),
    }
    for run in manifest.get("runs", ()):
        rows[f"trace of seed {run['seed']}"] = (
            f"{run['trace_hash']}: {run['events']:,} events, {run['cpu_s']:g} CPU-s, {run['rss_mb']:g} MB"
        )
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def _numbers(summary: Mapping[str, Any]) -> str:
    intervals = summary.get("ci95", {})
    rows = []
    for path, value in flat({key: one for key, one in summary.items() if key not in LIST_PARTS}).items():
        if path in ("level", "seed", "replications") or path.rpartition(".")[2].isdecimal():
            continue
        low, high = intervals.get(path, (None, None))
        between = "" if low is None else f"{number(low)} … {number(high)}"
        rows.append(
            f'<tr><th>{escape(path)}</th><td class="n">{number(value)}</td><td class="n">{escape(between)}</td></tr>'
        )
    return f"<table><tr><th></th><th>mean</th><th>95 % interval</th></tr>{''.join(rows)}</table>"


def _sweep_table(opened: Opened) -> str:
    frame = opened.summary
    if frame.empty:
        return "<p>No point is finished.</p>"
    axes = list(opened.manifest["points"][0])
    changing = [str(one) for one, rows in frame.groupby("metric", sort=False) if rows["mean"].nunique() > 1]
    chosen = [one for one in changing if not one.rpartition(".")[2].isdecimal() and one not in ("cpu_s", "rss_mb")][:8]
    head = "".join(f"<th>{escape(name)}</th>" for name in (*axes, *chosen))
    rows = []
    for point, group in list(frame.groupby("point", sort=True))[:POINTS_SHOWN_MAX]:
        values = [opened.manifest["points"][int(point)][axis] for axis in axes]
        by_metric = dict(zip(group["metric"], group["mean"], strict=True))
        cells = [number(one) for one in (*values, *(by_metric.get(metric) for metric in chosen))]
        rows.append("<tr>" + "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _settings(scenario: Mapping[str, Any]) -> str:
    lines = [f"{path} = {value}" for path, value in _leaves(scenario) if path not in ("doc", "title")]
    return "\n".join(lines)


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, one in value.items() for leaf in _leaves(one, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        return [leaf for index, one in enumerate(value) for leaf in _leaves(one, f"{path}.{index}")]
    return [(path, value)]
