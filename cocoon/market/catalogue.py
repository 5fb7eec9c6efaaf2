"""Which model a name means: a local, pinned list and nothing else (rule G5).

`name` resolves when exactly one pinned entry has it; `name@digest` takes the digest in full, or enough of it to be
one pinned entry. What the network calls its models is only ever a suggestion, shown with its digest.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ..errors import ConfigError, InvalidRequest, ModelNotFound
from ..types import DIGEST_BYTES, Digest
from ..wire import limits

SUGGESTIONS_MAX: Final = 3
NETWORK_NAMES_MAX: Final = 256  # of the network's names, this many are compared with a misspelt one
_REFERENCE_CHARS_MAX: Final = limits.MODEL_NAME_CHARS_MAX + 1 + 2 * DIGEST_BYTES
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]*\Z")
_HEX: Final = re.compile(r"[0-9a-f]{8,64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model by name and manifest digest."""

    name: str
    digest: Digest

    def __str__(self) -> str:
        return f"{self.name}@{self.digest.hex()}"


class Catalogue:
    """The pinned models. Immutable; `with_entries` gives a larger one."""

    __slots__ = ("_by_name",)

    def __init__(self, entries: Iterable[ModelRef] = ()) -> None:
        self._by_name: dict[str, tuple[ModelRef, ...]] = {}
        for entry in entries:
            if len(entry.name) > limits.MODEL_NAME_CHARS_MAX or not _NAME.match(entry.name):
                raise ConfigError(f"not a model name: {entry.name[:80]!a}")
            if len(entry.digest) != DIGEST_BYTES:
                raise ConfigError(f"the digest of {entry.name} has {len(entry.digest)} bytes; SHA-256 has 32")
            known = self._by_name.get(entry.name, ())
            if entry not in known:
                self._by_name[entry.name] = (*known, entry)

    @property
    def entries(self) -> tuple[ModelRef, ...]:
        """All, in the order of their first name."""
        return tuple(entry for entries in self._by_name.values() for entry in entries)

    def with_entries(self, entries: Iterable[ModelRef]) -> Catalogue:
        """These as well."""
        return Catalogue((*self.entries, *entries))

    def name_of(self, digest: Digest) -> str | None:
        """The first pinned name of a digest."""
        return next((entry.name for entry in self.entries if entry.digest == digest), None)

    def resolve(self, reference: str, *, seen: Iterable[ModelRef] = ()) -> ModelRef:
        """The model that `name` or `name@digest` means.

        `seen` are names that the network uses; they only make the error more helpful. Raises `ModelNotFound` (with
        near matches) or `InvalidRequest` (ambiguous, lists all; or not a reference at all).
        """
        name, at, digest = reference.strip().partition("@")
        if len(reference) > _REFERENCE_CHARS_MAX or not _NAME.match(name):
            raise InvalidRequest(f"not a model name: {reference[:80]!a}", param="model", kind="model_not_found")
        pinned = self._by_name.get(name, ())
        if at:
            return self._resolve_digest(name, digest.lower(), pinned)
        if len(pinned) == 1:
            return pinned[0]
        if pinned:
            raise InvalidRequest(
                f"{name!r} names {len(pinned)} models",
                param="model",
                kind="model_ambiguous",
                advice="Say which: " + " or ".join(map(str, pinned)),
            )
        raise self._not_found(name, seen)

    def _resolve_digest(self, name: str, digest: str, pinned: tuple[ModelRef, ...]) -> ModelRef:
        if not _HEX.match(digest):
            raise InvalidRequest(
                f"not a digest: {digest[:80]!a}",
                param="model",
                kind="model_not_found",
                advice="Write name@ and 8 to 64 hex digits of the manifest's SHA-256.",
            )
        if len(digest) == 2 * DIGEST_BYTES:
            return ModelRef(name=name, digest=bytes.fromhex(digest))  # pinned by the caller itself
        matches = [entry for entry in pinned if entry.digest.hex().startswith(digest)]
        if len(matches) == 1:
            return matches[0]
        listed = " or ".join(map(str, matches or pinned)) or "the digest in full"
        raise InvalidRequest(
            f"{name}@{digest} names {len(matches) or 'no'} pinned model{'s' if len(matches) > 1 else ''}",
            param="model",
            kind="model_ambiguous" if matches else "model_not_found",
            advice=f"Write {listed}.",
        )

    def _not_found(self, name: str, seen: Iterable[ModelRef]) -> ModelNotFound:
        advice = []
        near = difflib.get_close_matches(name, self._by_name, n=SUGGESTIONS_MAX, cutoff=0.5)
        if near:
            advice.append("Did you mean " + " or ".join(near) + "?")
        offered: dict[str, list[ModelRef]] = {}
        for entry, _ in zip(seen, range(NETWORK_NAMES_MAX), strict=False):
            offered.setdefault(entry.name, []).append(entry)
        close = difflib.get_close_matches(name, offered, n=SUGGESTIONS_MAX, cutoff=0.5)
        refs = [str(entry) for match in close for entry in offered[match][:SUGGESTIONS_MAX]][:SUGGESTIONS_MAX]
        if refs:
            advice.append("Others on the network offer, unverified: " + ", ".join(refs))
        if not advice and self._by_name:
            advice.append("Known models: " + ", ".join(list(self._by_name)[:10]))
        return ModelNotFound(
            f"no model named {name!r}", param="model", kind="model_not_found", advice="\n".join(advice)
        )
