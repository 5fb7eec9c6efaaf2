"""Finds the model that was asked for, and makes sure that it is the one it was.

    cocoon-tiny                     shipped with the program; a test model, for trying the software, not for answers
    path/to/model.gguf              a file of yours
    path/to/folder                  safetensors, tokenizer and config, for GPU engines (`model_folder`)
    hf:OWNER/REPO/FILE@REVISION     downloaded into the store, resumable (`model_download`)

On first use the file's SHA-256 is written to a record; every later use hashes the file again and refuses another
content. The head is checked before that (`gguf`), so that a damaged file gets a sentence and not a crash. What comes
out is a `LocatedModel`: path, name, manifest and model id.

Not here: loading (`engines`), fetching from peers, and which of the network's names to trust (`cocoon.market.catalogue`
decides, from the pins that `pinned` gives).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import trio

from ..errors import ConfigError, ModelFileError, ModelNotFound
from ..market.catalogue import ModelRef
from ..types import Digest
from ..wire import limits
from .gguf import ModelHead, read_head
from .model_download import fetch
from .model_folder import folder_manifest
from .model_manifest import ModelManifest, manifest_of, model_id

SHIPPED: Final = Path(__file__).parent.parent / "data" / "models"
HUB: Final = "https://huggingface.co"
HUB_VARIABLE: Final = "HF_ENDPOINT"  # the hub's own variable for mirrors
RECORD_BYTES_MAX: Final = 64 * 1024
PROGRESS_GAP_S: Final = 0.5
_HASH_PIECE: Final = 4 * 1024 * 1024
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_SPLIT: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedModel:
    """A model file that was checked against its record."""

    path: Path
    model: ModelRef  # name and model id
    manifest: ModelManifest
    head: ModelHead | None  # of a GGUF file
    source: str  # as it was asked for
    test_model: bool  # for trying the software, not for answers
    first_use: bool  # its hash was recorded just now

    @property
    def label(self) -> str:
        """For a person: name, and a warning if it is a test model."""
        return (
            f"{self.model.name} (test model: for trying the software, not for answers)"
            if self.test_model
            else (self.model.name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file in a repository of the hub."""

    owner: str
    repository: str
    file: str  # may lie in a folder
    revision: str

    def url(self, hub: str) -> str:
        """Where it is."""
        return f"{hub.rstrip('/')}/{self.owner}/{self.repository}/resolve/{self.revision}/{self.file}"

    @staticmethod
    def parse(text: str) -> HubFile:
        """`hf:OWNER/REPO/FILE@REVISION`; without a revision, `main`. Raises `ConfigError`."""
        place, _, revision = text.removeprefix("hf:").partition("@")
        parts = place.split("/")
        revision = revision or "main"
        bad = len(parts) < 3 or len(parts) > 6 or not all(_PART.match(part) for part in (*parts, revision))
        if bad or not parts[-1].lower().endswith(".gguf"):
            raise ConfigError(f"not a file of the hub: {text[:200]!a}", advice="Write hf:OWNER/REPO/FILE.gguf@REVISION")
        if _SPLIT.search(parts[-1]):
            raise ConfigError(
                "models split over several files are not supported", advice="Choose a file that is whole."
            )
        return HubFile(owner=parts[0], repository=parts[1], file="/".join(parts[2:]), revision=revision)


class ModelStore:
    """Models under one folder of the user's data: downloads, records of hashes, pins."""

    def __init__(self, folder: Path, *, hub: str | None = None) -> None:
        self._folder = folder
        self._hub = hub or os.environ.get(HUB_VARIABLE) or HUB

    async def locate(self, wanted: str, progress: Progress | None = None) -> LocatedModel:
        """The model that `wanted` means, downloaded if need be, its hash checked, its id pinned.

        Raises `ModelNotFound` (no such name; near matches), `ModelFileError` (missing, damaged, not the one recorded,
        disk full), `Unavailable` (hub not reachable), `ConfigError` (malformed). Cancelling keeps what has arrived.
        """
        tell = progress or (lambda _: None)
        return await trio.to_thread.run_sync(self._locate, wanted, tell)

    def pinned(self) -> tuple[ModelRef, ...]:
        """Names that may be used without a digest (rule G5): shipped models and those that were used here."""
        found = list(shipped_models())
        pins = _read_record(self._pins_path) or {}
        for name, digests in pins.items():
            if isinstance(digests, list):
                found += [ModelRef(name=name, digest=bytes.fromhex(one)) for one in digests if _is_digest(one)]
        return tuple(found)

    # --- blocking from here on -----------------------------------------------------------------------------

    def _locate(self, wanted: str, tell: Progress) -> LocatedModel:
        if wanted.startswith("hf:"):
            return self._hub_file(wanted, tell)
        shipped = _shipped(wanted)
        if shipped is not None:
            return _locate_shipped(wanted, shipped, tell)
        path = Path(wanted).expanduser()
        if not path.exists() and not _looks_like_path(wanted):
            raise _unknown(wanted, [ref.name for ref in self.pinned()])
        if path.is_dir():
            return self._folder_model(path.resolve(), wanted, tell)
        head = read_head(path)
        path = path.resolve()
        record = self._folder / "records" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
        return self._checked(path, head, record, source=wanted, expected=None, tell=tell)

    def _hub_file(self, wanted: str, tell: Progress) -> LocatedModel:
        place = HubFile.parse(wanted)
        target = self._folder / "hub" / place.owner / place.repository / place.revision / place.file
        expected = None
        if not target.exists():
            shown = 0.0

            def on_progress(have: int, total: int) -> None:
                nonlocal shown
                if monotonic() - shown >= PROGRESS_GAP_S or have == total:
                    shown = monotonic()
                    percent = 100 * have // total
                    _say(tell, f"downloading {target.name}: {have / 1e6:.0f} of {total / 1e6:.0f} MB ({percent} %)")

            fetched = fetch(place.url(self._hub), target, progress=on_progress, check=trio.from_thread.check_cancelled)
            expected = fetched.announced_sha256
        record = target.with_name(target.name + ".record.json")
        try:
            return self._checked(target, read_head(target), record, source=wanted, expected=expected, tell=tell)
        except ModelFileError as error:
            if expected is not None or not record.exists():
                # Never used, and not what it should be: the next try downloads it anew.
                target.unlink(missing_ok=True)
                raise ModelFileError(f"{error}", advice="The file was removed; try again to download it.") from error
            raise

    def _checked(
        self, path: Path, head: ModelHead, record: Path, *, source: str, expected: str | None, tell: Progress
    ) -> LocatedModel:
        """Compare with the record, or make it."""
        found = _hash(path, head.size, tell)
        known = _read_record(record)
        first = known is None
        wanted = expected if known is None else known.get("sha256")
        if wanted is not None and wanted != found.hex():
            fix = (
                "Get it again from where it came."
                if known is None
                else f"Put the right file back. If you replaced it on purpose, remove {record}"
            )
            raise ModelFileError(
                f"{path} is not the file it was: expected SHA-256 {str(wanted)[:64]}, found {found.hex()}", advice=fix
            )
        manifest = manifest_of(head, found)
        ref = ModelRef(name=_name_of(path.stem, head.architecture), digest=model_id(manifest))
        if known is None:
            _write_record(record, {"source": source, "path": os.fspath(path), "sha256": found.hex(), "size": head.size})
        self._pin(ref)
        return LocatedModel(
            path=path, model=ref, manifest=manifest, head=head, source=source, test_model=False, first_use=first
        )

    def _folder_model(self, path: Path, wanted: str, tell: Progress) -> LocatedModel:
        """As `_checked`, for a folder: its record holds the digest of all files together."""
        manifest = folder_manifest(path, lambda file, size: _hash(file, size, tell))
        record = self._folder / "records" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
        known = _read_record(record)
        if known is not None and known.get("sha256") != manifest.weights.hex():
            raise ModelFileError(
                f"the files in {path} are not what they were",
                advice=f"Put the right ones back. If you replaced them on purpose, remove {record}",
            )
        ref = ModelRef(name=_name_of(path.name, manifest.architecture), digest=model_id(manifest))
        if known is None:
            value = {"source": wanted, "path": os.fspath(path), "sha256": manifest.weights.hex(), "size": manifest.size}
            _write_record(record, value)
        self._pin(ref)
        return LocatedModel(
            path=path,
            model=ref,
            manifest=manifest,
            head=None,
            source=wanted,
            test_model=False,
            first_use=known is None,
        )

    @property
    def _pins_path(self) -> Path:
        return self._folder / "pins.json"

    def _pin(self, ref: ModelRef) -> None:
        pins = _read_record(self._pins_path) or {}
        digests = pins.setdefault(ref.name, [])
        if ref.digest.hex() not in digests:
            digests.append(ref.digest.hex())
            _write_record(self._pins_path, pins)


# --- shipped models ----------------------------------------------------------------------------------------


def shipped_models() -> tuple[ModelRef, ...]:
    """The models in the package, by the ids in their manifests. Reads no weights."""
    refs = []
    for folder in sorted(path for path in SHIPPED.iterdir() if path.is_dir()):
        manifest = _read_record(folder / "manifest.json")
        if manifest is not None and _is_digest(manifest.get("model_id")):
            refs.append(ModelRef(name=folder.name, digest=bytes.fromhex(manifest["model_id"])))
    return tuple(refs)


def _shipped(name: str) -> Path | None:
    folder = SHIPPED / name
    return folder if _PART.match(name) and (folder / "manifest.json").is_file() else None


def _locate_shipped(name: str, folder: Path, tell: Progress) -> LocatedModel:
    record = _read_record(folder / "manifest.json") or {}
    path = folder / str(record.get("file"))
    head = read_head(path)
    found = _hash(path, head.size, tell)
    manifest = manifest_of(head, found)
    if found.hex() != record.get("sha256") or model_id(manifest).hex() != record.get("model_id"):
        raise ModelFileError(
            f"the shipped model {name} is damaged: expected SHA-256 {record.get('sha256')}, found {found.hex()}",
            advice="Install cocoon-network again.",
        )
    return LocatedModel(
        path=path,
        model=ModelRef(name=name, digest=model_id(manifest)),
        manifest=manifest,
        head=head,
        source=name,
        test_model=bool(record.get("test_model")),
        first_use=False,
    )


# --- small things ------------------------------------------------------------------------------------------


def _looks_like_path(wanted: str) -> bool:
    return wanted.lower().endswith(".gguf") or wanted.startswith((".", "~", os.sep)) or os.sep in wanted


def _unknown(wanted: str, names: list[str]) -> ModelNotFound:
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
    advice = f"Did you mean {' or '.join(near)}?\n" if near else ""
    return ModelNotFound(
        f"no model named {wanted[:80]!a}",
        param="model",
        kind="model_not_found",
        advice=f"{advice}Give {', '.join(sorted(names))}, a path to a .gguf file, or hf:OWNER/REPO/FILE@REVISION.",
    )


def _name_of(name: str, architecture: str) -> str:
    """What to call a file or folder on the network: its own name, in the letters that offers allow."""
    words = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-._+")
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", architecture)[:32]
    return words[: limits.MODEL_NAME_CHARS_MAX].rstrip("-._+") or f"{plain}-model"


def _hash(path: Path, size: int, tell: Progress) -> Digest:
    """SHA-256 of the file; about 1 GB/s."""
    digest, done, shown = hashlib.sha256(), 0, monotonic()
    try:
        with path.open("rb") as file:
            while piece := file.read(_HASH_PIECE):
                digest.update(piece)
                done += len(piece)
                trio.from_thread.check_cancelled()
                if monotonic() - shown >= PROGRESS_GAP_S:
                    shown = monotonic()
                    _say(tell, f"checking {path.name}: {100 * done // max(1, size)} %")
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    return digest.digest()


def _say(tell: Progress, text: str) -> None:
    trio.from_thread.run_sync(tell, text)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _read_record(path: Path) -> dict[str, Any] | None:
    """The JSON object in a record; None if there is none. A damaged one is an error: it guards something."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    try:
        value = json.loads(data) if len(data) <= RECORD_BYTES_MAX else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelFileError(f"the record {path} is damaged", advice="Remove it if you trust the model file beside it.")
    return value


def _write_record(path: Path, value: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(value, indent=1) + "\n")
        new.replace(path)
    except OSError as error:
        raise ModelFileError(f"cannot write {path}: {error.strerror}") from error
