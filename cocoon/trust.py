"""What a client asks a provider to prove before it sends a prompt. Public names; use as `trust.Open()`.

There is no default: a program says which level it wants, in words that a reviewer can find.

    from cocoon import Client, ton, trust
    Client.open(bootstrap=[...], trust=trust.PolicyFile("policy.toml"))

Strongest first: `confidential` (Intel TDX and an NVIDIA GPU in confidential mode), `cpu-confidential` (TDX), both by a
policy file that says which images are accepted; `simulated` (a software TEE, on the devnet only: it protects nothing
and shows everything); `open` (no evidence). What each proves and what it does not is in `docs/trust-policy.md`.

Not here: how evidence is verified (`cocoon.attest`), which is imported only when a client is opened.
"""

from __future__ import annotations

import os
import time
import tomllib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigError
from .types import Network, TrustLevel

if TYPE_CHECKING:
    from .attest import policy as attest_policy
    from .attest.roots import Anchors

__all__ = ["LABELS", "Open", "PolicyFile", "Simulated", "TrustPolicy", "from_label"]

LABELS = (TrustLevel.OPEN.value, TrustLevel.SIMULATED.value, "FILE.toml")
"""What `--trust` accepts: two words, or a policy file."""

POLICY_FILE_BYTES_MAX = 4 * 1024 * 1024  # of each file that a policy names


class TrustPolicy(ABC):
    """Base of what a client can be opened with."""

    @property
    @abstractmethod
    def level(self) -> TrustLevel:
        """The weakest level that this policy accepts."""

    @property
    def warning(self) -> str:
        """What a user has to know of this choice; empty when there is nothing to warn of."""
        return ""

    @property
    def may_change(self) -> bool:
        """Whether `rules` may say something else later: a running client then asks again from time to time."""
        return False

    @abstractmethod
    def rules(self, network: Network) -> attest_policy.TrustPolicy:
        """The rules in full, for one network. Raises `ConfigError` or `AttestationError`."""

    def software_anchors(self, network: Network) -> Anchors | None:
        """Anchors of a software TEE, where this policy accepts one."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Open(TrustPolicy):
    """Accept providers that prove nothing: **the operator of a provider can read the prompt and the answer**.

    The session is still sealed on the way and the receipts are still signed. For development, test models and
    public text.
    """

    @property
    def level(self) -> TrustLevel:
        """`open`."""
        return TrustLevel.OPEN

    @property
    def warning(self) -> str:
        """Who can read what."""
        return "trust level open: no enclave protects this; the operator of a provider can read prompts and answers"

    def rules(self, network: Network) -> attest_policy.TrustPolicy:
        """No demands."""
        from .attest.policy import TrustPolicy as Rules

        return Rules(level=TrustLevel.OPEN, network=network)

    def software_anchors(self, network: Network) -> Anchors | None:
        """Who accepts providers that prove nothing accepts a software TEE as well, where there are such: the devnet."""
        from .adapters.tee.software import software_anchors

        return software_anchors(network) if network is Network.DEVNET else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated(TrustPolicy):
    """Accept only providers in a software TEE, on the devnet: every check runs, and **nothing is protected**."""

    @property
    def level(self) -> TrustLevel:
        """`simulated`."""
        return TrustLevel.SIMULATED

    @property
    def warning(self) -> str:
        """What it is worth."""
        return (
            "trust level simulated: every check of a confidential session runs, on a software TEE that protects "
            "nothing; the operator of a provider can read prompts and answers"
        )

    def rules(self, network: Network) -> attest_policy.TrustPolicy:
        """The one release of the software TEE. Raises `ConfigError` outside the devnet."""
        from .adapters.tee.software import software_release
        from .attest.images import ImagePolicy
        from .attest.policy import TrustPolicy as Rules

        self._need_devnet(network)
        return Rules(level=TrustLevel.SIMULATED, network=network, images=ImagePolicy(releases=(software_release(),)))

    def software_anchors(self, network: Network) -> Anchors | None:
        """The software TEE's roots. Raises `ConfigError` outside the devnet."""
        from .adapters.tee.software import software_anchors

        self._need_devnet(network)
        return software_anchors(network)

    def _need_devnet(self, network: Network) -> None:
        if network is not Network.DEVNET:
            raise ConfigError(
                f"simulated evidence is refused on {network.label}",
                advice="Use --network devnet, or a policy file for real hardware (docs/trust-policy.md).",
            )


@dataclass(frozen=True, slots=True)
class PolicyFile(TrustPolicy):
    """A policy in a TOML file: level, accepted images, TCB rules, ages, platforms (`docs/trust-policy.md`).

    Files that it names are found beside it. All are read when the client is opened, and again every half minute: a
    change closes all sessions, and while they cannot be read nothing is accepted.
    """

    path: str | os.PathLike[str]

    @property
    def may_change(self) -> bool:
        """Lists get longer while a client runs."""
        return True

    @property
    def level(self) -> TrustLevel:
        """As the file says. Raises `ConfigError` when it does not, or cannot be read."""
        try:
            label = tomllib.loads(self._text()).get("level")
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{self.path} is not TOML: {error}") from error
        for level in TrustLevel:
            if level.value == label:
                return level
        raise ConfigError(f"{self.path} names no trust level", advice='Write level = "confidential" as its first line.')

    def rules(self, network: Network) -> attest_policy.TrustPolicy:
        """The file's rules. Raises `ConfigError`, and `AttestationError` for a release that is not signed."""
        from .attest.policy_file import parse_policy

        folder = Path(self.path).parent
        return parse_policy(
            self._text(), network=network, read=lambda name: _read(folder / name), now_s=int(time.time())
        )

    def _text(self) -> str:
        return _read(Path(self.path)).decode("utf-8", errors="replace")


def from_label(label: str | None) -> TrustPolicy:
    """The policy for a word of the command line or the configuration. Raises `ConfigError`, also for None."""
    advice = (
        "Choose --trust FILE.toml (a policy for TDX and H100 evidence, see docs/trust-policy.md), --trust simulated "
        "(devnet: a software TEE that protects nothing), or --trust open (no evidence: the provider's operator can "
        "read the prompt and the answer)."
    )
    if label is None:
        raise ConfigError("no trust level was chosen, and there is no default", advice=advice)
    if label == TrustLevel.OPEN.value:
        return Open()
    if label == TrustLevel.SIMULATED.value:
        return Simulated()
    if label in (TrustLevel.CONFIDENTIAL.value, TrustLevel.CPU_CONFIDENTIAL.value):
        raise ConfigError(
            f"level {label} needs a policy file: which images are accepted is yours to say",
            advice=f'Write level = "{label}" and the accepted images into a file (docs/trust-policy.md), '
            "and pass --trust FILE.toml.",
        )
    if label.endswith(".toml"):
        return PolicyFile(label)
    raise ConfigError(f"no such trust level: {label[:32]!r}", advice=advice)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > POLICY_FILE_BYTES_MAX:
            raise ConfigError(f"{path} is larger than {POLICY_FILE_BYTES_MAX // 1024 // 1024} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the policy file {path} cannot be read: {error.strerror}", advice="Check --trust FILE.toml."
        ) from error
