"""The folder of a run or a sweep: what lies where, and how an incomplete one can be told.

manifest.json        everything needed to repeat: scenario as resolved, seeds, level, commit, versions, trace hashes
INCOMPLETE           there while it runs, and ever after when it was cut short; its text says why
summary.json         what `--json` prints;  summary.parquet: each number with its 95 % interval
checkpoints.json     seed → [[ns, hash], …], one for each virtual second
<table>/seed=<s>/    rows (`sim.open(folder).frame("deliveries")`)
inputs/              the matrix and trace files that the scenario names
plots/, report.html  `python -m sim report`
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from .checking import build
from .errors import RunError
from .scenario import Scenario
from .writing import plain

FORMAT = 1
MARK = "INCOMPLETE"
MANIFEST_BYTES_MAX = 256 * 1024 * 1024


class RunFolder:
    """`create` refuses a folder that holds something else; `load` one that holds nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = {}

    @classmethod
    def create(cls, path: Path, manifest: Mapping[str, Any], *, overwrite: bool = False) -> RunFolder:
        """An earlier run of the very same (scenario, seeds, level) is replaced; any other only when told so."""
        folder = cls(path)
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                if not path.is_dir():
                    raise RunError(f"{path} is a file: --out takes a folder")
                folder._make_room(manifest, overwrite=overwrite)
            path.mkdir(parents=True, exist_ok=True)
            (path / MARK).touch()
            folder.manifest = {"format": FORMAT, "state": "running", "started": now_text(), **manifest}
            folder.write_json("manifest.json", folder.manifest)
        except OSError as problem:
            raise RunError(f"{path} cannot be written: {problem.strerror or problem}") from problem
        return folder

    @classmethod
    def load(cls, path: str | Path) -> RunFolder:
        folder = cls(Path(path))
        folder.manifest = folder.read_json("manifest.json")
        if folder.manifest.get("format") != FORMAT or "scenario" not in folder.manifest:
            raise RunError(f"{path}: its manifest has another format than this version reads ({FORMAT})")
        return folder

    def _make_room(self, manifest: Mapping[str, Any], *, overwrite: bool) -> None:
        if not (self.path / "manifest.json").is_file():
            raise RunError(f"{self.path} holds something that is no run: choose another folder")
        old = self.read_json("manifest.json")
        same = all(old.get(key) == manifest.get(key) for key in ("kind", "scenario", "seeds", "level"))
        if not (same or overwrite):
            raise RunError(f"{self.path} holds another run: choose another folder, or say --overwrite")
        shutil.rmtree(self.path)

    @property
    def is_complete(self) -> bool:
        return not (self.path / MARK).exists()

    def complete(self) -> None:
        self.manifest |= {"state": "complete", "ended": now_text()}
        self.write_json("manifest.json", self.manifest)
        (self.path / MARK).unlink(missing_ok=True)

    def cut_short(self, state: str, why: str) -> None:
        """As much as a disk that may be full allows; the mark itself is there since the start."""
        self.manifest |= {"state": state, "why": why, "ended": now_text()}
        for name, text in ((MARK, why + "\n"), ("manifest.json", json_text(self.manifest))):
            try:
                self.write_text(name, text)
            except RunError:
                return

    def scenario(self) -> Scenario:
        folder = self.path / "inputs"
        return build(self.manifest["scenario"], where=lambda _: str(self.path / "manifest.json"), folder=folder)

    def write_text(self, name: str, text: str) -> None:
        """Whole or not at all, and on the disk when this returns."""
        target, draft = self.path / name, self.path / f".{name.replace('/', '-')}.draft"
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except OSError as problem:
            draft.unlink(missing_ok=True)
            raise RunError(f"{target} cannot be written: {problem.strerror or problem}") from problem

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json_text(value))

    def read_json(self, name: str) -> Any:
        target = self.path / name
        try:
            if target.stat().st_size > MANIFEST_BYTES_MAX:
                raise RunError(f"{target} is larger than any that this version writes")
            return json.loads(target.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} is no folder of a run: {name} is missing") from None
        except OSError as problem:
            raise RunError(f"{target} cannot be read: {problem.strerror or problem}") from problem
        except (ValueError, RecursionError) as problem:
            raise RunError(f"{target} is no JSON: {problem}") from problem


def with_inputs(scenario: Scenario) -> tuple[dict[str, Any], dict[str, Path]]:
    """The scenario as plain values whose file names are those in `inputs/`, and the files to copy there."""
    values = plain(scenario)
    copies: dict[str, Path] = {}
    for table in (values["net"], *(group["churn"] for group in values["nodes"].values())):
        if table["file"]:
            source = Path(scenario.folder, table["file"])
            name = f"{sha256(source.read_bytes()).hexdigest()[:16]}-{source.name}"
            copies[name] = source
            table["file"] = name
    return values, copies


def copy_inputs(folder: Path, copies: Mapping[str, Path]) -> None:
    try:
        for name, source in copies.items():
            (folder / "inputs").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / "inputs" / name)
    except OSError as problem:
        raise RunError(f"{folder} cannot be written: {problem.strerror or problem}") from problem


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
