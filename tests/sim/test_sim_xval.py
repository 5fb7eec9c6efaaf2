"""The fast level held against the real machines: two cells of the grid here, all sixteen by `python -m sim xval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.xval import main
from sim.xval.cells import GRID, Cell, named
from sim.xval.measure import KS_MAX, SHARES, judge, kolmogorov_smirnov, measure, steps
from sim.xval.store import FILE, Store
from sim.xval.table import page
from tests.conftest import HowFar


@pytest.mark.parametrize("name", ["plain-200", "bandwidth-200"])
def test_on_the_same_mesh_the_fast_level_delivers_when_the_real_routers_do(name: str, how_far: HowFar) -> None:
    cell = named(name)[0]
    entry = measure(cell.scenario(), seed=1)
    verdict = judge([entry])
    assert verdict.conditioned_holds, (verdict.conditioned, verdict.ks)
    assert verdict.ks < KS_MAX
    assert entry["timely"]["replay"] == entry["timely"]["real"]
    # Of its own network one seed says little; counts and degrees must be of the same size all the same.
    for figure in ("p50", "p90", "message", "ihave", "graft", "degree"):
        assert abs(verdict.free[figure]) < 0.2, (figure, verdict.free[figure])
    how_far(f"fast level against the real one, {name}", 1, 20, "seeds")


def test_the_grid_has_sixteen_cells() -> None:
    assert len(GRID) == 16
    assert len({cell.name for cell in GRID}) == 16
    for cell in GRID:
        assert cell.scenario().nodes["honest"].count == cell.nodes


def test_cells_are_named_by_kind_size_or_both() -> None:
    assert named("") == GRID
    assert [cell.name for cell in named("plain")] == ["plain-200", "plain-500", "plain-1000", "plain-2000"]
    assert {cell.nodes for cell in named("500")} == {500}
    assert named("loss-1000") == (Cell("loss", 1_000),)
    with pytest.raises(ValueError, match="no cell 'fog'"):
        named("plain,fog")


def test_the_distance_of_distributions_is_that_of_kolmogorov_and_smirnov() -> None:
    chance = np.random.default_rng(1)
    a, b = chance.random(400), 0.1 + chance.random(300)
    at = np.concatenate([a, b])
    wanted = max(abs((a <= x).mean() - (b <= x).mean()) for x in at)
    assert kolmogorov_smirnov(a, b) == pytest.approx(wanted)
    assert kolmogorov_smirnov(a, a) == 0.0
    assert kolmogorov_smirnov(a, a + 10) == 1.0


def entry_of(seed: int, *, shift: float) -> dict[str, Any]:
    real = np.random.default_rng(seed).normal(100.0, 20.0, 5_000).clip(1)
    fast = real + shift
    figures = {name: float(np.percentile(real, 100 * share)) for name, share in SHARES.items()} | {"message": 10.0}
    shifted = {name: value + shift for name, value in figures.items() if name in SHARES} | {"message": 10.0}
    return {
        "seed": seed,
        "real": figures,
        "replay": shifted,
        "ks": kolmogorov_smirnov(real, fast),
        "steps": {"real": steps(real), "replay": steps(fast)},
        "free": [shifted],
        "cpu_s": {"level1": 1.0, "replay": 0.01, "free": 0.01},
    }


def test_an_error_of_five_percent_is_a_no() -> None:
    good = judge([entry_of(seed, shift=0.2) for seed in range(20)])
    assert good.conditioned_holds
    assert good.free_holds
    wrong = judge([entry_of(seed, shift=6.0) for seed in range(20)])
    assert not wrong.conditioned_holds
    assert not wrong.free_holds
    few = judge([entry_of(seed, shift=0.2) for seed in range(5)])
    assert few.conditioned_holds
    assert not few.free_holds  # fewer seeds than a verdict needs


def test_measurements_outlive_a_kill(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("plain-200", entry_of(1, shift=0.0))
    store.put("plain-200", entry_of(2, shift=0.0))
    with (tmp_path / FILE).open("a", encoding="utf-8") as file:
        file.write('{"cell": "plain-200", "seed": 3, "ste')
    again = Store(tmp_path)
    assert [entry["seed"] for entry in again.of("plain-200")] == [1, 2]
    assert again.has("plain-200", 2)
    assert not again.has("plain-200", 3)
    again.put("plain-200", entry_of(3, shift=0.0))
    assert [entry["seed"] for entry in Store(tmp_path).of("plain-200")] == [1, 2, 3]


def test_the_command_prints_what_is_there_without_measuring_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    for seed in (1, 2):
        store.put("plain-200", _whole(entry_of(seed, shift=0.1)))
    assert main(["--cells", "plain-200", "--seeds", "2", "--out", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["plain-200"]["seeds"] == 2
    assert said["plain-200"]["conditioned"]["holds"] is True
    target = tmp_path / "page.md"
    arguments = ["--cells", "plain-200", "--seeds", "2", "--out", str(tmp_path), "--write", str(target)]
    assert main(arguments) == 0
    text = target.read_text(encoding="utf-8")
    assert "plain-200" in text
    assert "not measured yet: bandwidth-200" in text


def test_a_cell_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--cells", "nowhere", "--out", str(tmp_path)])
    assert stopped.value.code == 2


def test_the_page_says_no_where_a_cell_misses() -> None:
    verdicts = {"plain-200": judge([_whole(entry_of(seed, shift=6.0)) for seed in range(20)])}
    assert "**no**" in page(verdicts, machine="a test")


def _whole(entry: dict[str, Any]) -> dict[str, Any]:
    """With every count that the page shows."""
    counts = dict.fromkeys(("ihave", "iwant", "graft", "prune", "duplicates", "degree", "deliveries"), 5.0)
    return entry | {"real": entry["real"] | counts, "free": [run | counts for run in entry["free"]]}
