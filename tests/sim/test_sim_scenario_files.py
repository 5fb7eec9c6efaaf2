"""Scenario files: what a researcher writes, and what is said when it is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.checking import build
from sim.errors import ScenarioError
from sim.lines import line_map, line_of
from sim.loading import SHIPPED, shipped_names
from sim.scenario import ADVERSARIES, Scenario, load
from sim.schema import json_schema
from sim.statistics import flat
from sim.writing import commented_toml, plain

HEAD = 'extends = "gossip-v11"\n\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        load(path, overrides=overrides)
    return str(caught.value)


def test_at_least_fourteen_scenarios_are_shipped_with_eight_attacks_among_them() -> None:
    names = shipped_names()
    assert len(names) >= 14
    assert {"gossip-v10", "gossip-v11", "dht-lookup", "market-baseline"} <= set(names)
    assert {"flash-crowd", "chain-outage", "price-war"} <= set(names)
    assert len([name for name in names if name.startswith("attack-")]) >= 8


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_scenario_loads_and_tells_what_it_shows(name: str) -> None:
    scenario = load(name)
    assert scenario.name == name
    assert scenario.title
    assert scenario.doc
    assert scenario.node_count > 0
    assert scenario.run.replications >= 5
    if name.startswith("attack-"):
        assert scenario.adversaries
        assert all(one.kind in ADVERSARIES for one in scenario.adversaries)


def shipped_numbers() -> list[tuple[str, str]]:
    return [(name, path) for name in shipped_names() for path in flat(plain(load(name)))]


def test_every_number_of_every_shipped_scenario_can_be_set_on_the_command_line() -> None:
    pairs = shipped_numbers()
    assert len(pairs) > 1_000
    for name, path in pairs:
        value = flat(plain(load(name)))[path]
        whole = int(value) if value == int(value) else value
        again = load(name, overrides=[f"{path}={whole}"])
        assert flat(plain(again))[path] == value, (name, path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("until_ms = 5000", "run.until_ms: has another unit: write until_s = 5"),
        ("until_min = 2", "run.until_min: has another unit: write until_s = 120"),
        ("until = 3", "run.until: has no unit: write until_s = 3"),
        ("until_s = '10 s'", 'run.until_s: is "10 s": write until_s = 10 (the unit is in the key\'s name)'),
        ("seed = -3", "run.seed: is -3: write a whole number from 0"),
        ("sed = 3", "run.sed: is unknown: did you mean seed?"),
        ("replications = 2.5", "run.replications: is 2.5: write a whole number"),
        ("level = 'x'", 'run.level: is "x": write a whole number'),
        ("until_s = inf", "run.until_s: is inf: write a finite number"),
        ("until_s = true", "run.until_s: is True: write a number"),
        ("seed = 99999999999999999999", "run.seed: is beyond 64 bits"),
        ("seed = [1]", "run.seed: is [1]: write a whole number"),
    ],
)
def test_an_error_points_at_the_line_and_says_what_to_write(tmp_path: Path, line: str, says: str) -> None:
    path = written(tmp_path, HEAD + "# a comment\n\n[run]\n" + line + "\n")
    assert refused(path).startswith(f"{path}:6: {says}")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[nodes.honest]\ncount = -5\n", 4, "nodes.honest.count: is -5: write a whole number from 0 to 2,000,000"),
        ("[net]\nlatency_ms = [\n  150,\n  10,\n]\n", 4, "write latency_ms = [10.0, 150.0]"),
        ("[net]\nlatency_s = [0.01, 0.15]\n", 4, "has another unit: write latency_ms = [10, 150]"),
        ("[net]\nlatency_ms = 10\n", 4, "write a list, latency_ms = [low, high]"),
        ("[net]\nmodel = 'region8'\n", 4, 'is "region8": write "regions8"'),
        ("[net]\nmodel = 'matrix'\nfile = 'none.csv'\n", 5, "none.csv cannot be read (No such file or directory)"),
        ("[gossip.score]\ngossip_treshold = 3\n", 4, "did you mean gossip_threshold?"),
        ("[gossip]\ndegree = 3\n", 4, "write degree_low <= degree <= degree_high"),
        ("[[adversaries]]\nkind = 'sybil'\n[[adversaries]]\nkind = 'eclips'\n", 6, 'write "eclipse"'),
        ("[[adversaries]]\nshare = 0.1\ncount = 3\n", 5, "stands beside share: write one of the two"),
        ("[[adversaries]]\ngroup = 'nobody'\n", 4, '"nobody" is no group: write one of honest'),
        ("[marked]\n", 3, "did you mean market?"),
        ("[market]\n", 3, "no group has the role provider"),
        ("nodes = 3\n", 3, "nodes: is 3: write a table, [nodes]"),
        ("[nodes.honest.link]\nup_kbit_per_s = 500\n", 4, "write up_mbit_per_s = 0.5"),
        ("[chain]\nfee_ton = 0.01\n", 4, "write fee_nano = 10000000"),
        ("[sweep]\nmethod = 'latin'\n[sweep.axes]\n'net.loss' = { low = 0.1, high = 0 }\n", 3, "sweep.points: is 0"),
    ],
)
def test_an_error_in_any_table_names_its_own_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = written(tmp_path, HEAD + text)
    message = refused(path)
    assert says in message
    assert message.startswith(f"{path}:{line}: ")


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + "[run]\nsed = 1\nuntil_ms = 2\n[net]\nloss = 2\n")
    assert [line.split(": ")[0] for line in refused(path).splitlines()] == [f"{path}:{n}" for n in (4, 5, 7)]


def test_an_error_in_the_base_points_into_the_base(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "gossip-v11"\n[net]\nloss = 7\n', encoding="utf-8")
    assert refused(written(tmp_path, 'extends = "base.toml"\n')).startswith(f"{tmp_path / 'base.toml'}:3: net.loss")


def test_a_file_that_extends_wins_and_tables_are_merged(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(HEAD + "[net]\nloss = 0.5\njitter = 0.2\n", encoding="utf-8")
    mine = load(written(tmp_path, 'extends = "base.toml"\n[net]\nloss = 0.25\n'))
    assert (mine.net.loss, mine.net.jitter, mine.name) == (0.25, 0.2, "mine")
    assert mine.gossip == load("gossip-v11").gossip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('extends = "mine.toml"\n', "leads back to this file"),
        ('extends = "gosip-v11"\n', "did you mean gossip-v11?"),
        ("extends = 3\n", "write the name of one scenario"),
        ("[run\n", "is no TOML"),
        ("a = " + "[" * 5_000 + "]" * 5_000, ""),
        ("x = 1\n" * 3, "is no TOML"),
        ('note = "' + "x" * 2_000_000 + '"', "is larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused_with_a_reason(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(written(tmp_path, text))


def test_a_file_that_is_missing_or_binary_is_refused(tmp_path: Path) -> None:
    assert "did you mean gossip-v1" in refused("gossip-v1")
    assert "no such scenario: shipped are" in refused(tmp_path / "nothing.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is no UTF-8 text" in refused(binary)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("nodes.honst.count=5", "no such group of nodes: there is honest"),
        ("nodes.honest.count=-5", "write a whole number from 0 to 2,000,000"),
        ("net.loss=2", "write a number from 0 to 1"),
        ("net.loss", "write PATH=VALUE"),
        ("=3", "write a path"),
        ("net.loss.more=3", "net.loss is a single value"),
        ("adversaries.0.share=1", "adversaries has 0 members"),
        ("net.latency_s=[0.1,0.2]", "write latency_ms = [100, 200]"),
    ],
)
def test_an_override_that_makes_no_sense_is_named_as_it_was_typed(override: str, says: str) -> None:
    message = refused("gossip-v11", override)
    assert f"--set {override}: " in message
    assert says in message


def test_an_override_changes_one_number_and_nothing_else() -> None:
    changed = load("gossip-v11", overrides=["nodes.honest.count=500", "gossip.protocol=v1.0"])
    base = load("gossip-v11")
    assert changed.nodes["honest"].count == 500
    assert changed.gossip is not None
    assert changed.gossip.protocol == "v1.0"
    assert changed.net == base.net
    assert changed.run == base.run


def test_the_published_schema_is_that_of_the_code() -> None:
    written_down = json.loads((SHIPPED / "scenario.schema.json").read_text(encoding="utf-8"))
    assert written_down == json.loads(json.dumps(json_schema())), "python -m sim list --schema > (that file)"


def test_every_number_has_a_bound_and_every_field_a_line_of_documentation() -> None:
    for name, one in json_schema()["$defs"].items():
        for key, field in one["properties"].items():
            if "$ref" in field or key in ("link", "churn"):
                continue
            assert field.get("description"), f"{name}.{key}"
            if field.get("type") in ("integer", "number") and name != "Axis":
                assert {"minimum", "maximum"} <= field.keys(), f"{name}.{key}"


@pytest.mark.parametrize("name", shipped_names())
def test_a_commented_copy_of_a_scenario_means_the_same(name: str, tmp_path: Path) -> None:
    scenario = load(name)
    path = written(tmp_path, commented_toml(scenario, name=name, file="mine.toml"))
    again = load(path)
    assert plain(again) == plain(scenario)


@pytest.mark.parametrize("name", shipped_names())
def test_a_scenario_in_a_manifest_means_the_same(name: str) -> None:
    scenario = load(name)
    values = json.loads(json.dumps(plain(scenario)))
    again = build(values, where=lambda _: "manifest", folder=scenario.folder)
    assert again == scenario
    assert isinstance(again, Scenario)


def test_scenarios_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load("gossip-v11").net.loss = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_the_line_of_a_key_has_that_key(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    listed = line_map(text)
    for key, line in listed.items():
        name = next(part for part in reversed(key) if isinstance(part, str))
        assert re.search(rf"\b{re.escape(name)}\b", lines[line - 1]), (key, line)
    for key in leaves(tomllib.loads(text)):
        assert line_of(listed, key) >= 1
        parents = [key[:length] for length in range(len(key), 0, -1)]
        assert any(parent in listed for parent in parents), key


def leaves(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [leaf for key, one in value.items() for leaf in leaves(one, (*path, key))]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [leaf for number, one in enumerate(value) for leaf in leaves(one, (*path, number))]
    return [path]


def test_strings_and_comments_do_not_shift_lines() -> None:
    text = '''a = "x # [no]" # [[b]]
"quoted key".'more' = 1
c = """
[fake]
d = 3
"""""
[t]
e = { f = 1, g = [
  "]",
] }
h = 2
[[t.k]]
[t.k.l]
m = 1
[[t.k]]
n = 1
'''
    assert tomllib.loads(text)["c"].endswith('""')
    listed = line_map(text)
    assert listed[("quoted key", "more")] == 2
    assert listed[("t", "h")] == 11
    assert listed[("t", "k", 0, "l", "m")] == 14
    assert listed[("t", "k", 1, "n")] == 16
    assert ("fake",) not in listed


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
sections = st.sampled_from([entry.name for entry in dataclasses.fields(Scenario)] + ["more"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(sections, plain_values, max_size=4))
def test_any_values_whatever_are_a_scenario_or_a_scenario_error(values: dict[str, object]) -> None:
    with contextlib.suppress(ScenarioError):
        assert build(values, where=lambda _: "here", folder=Path()).node_count > 0


def test_help_comes_at_once_and_imports_nothing_heavy() -> None:
    code = "import sys, sim.cli as c; c._parser(); print(sorted(set(sys.modules) & {'numpy','numba','trio','pandas'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
