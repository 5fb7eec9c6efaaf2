"""The words that every part of Cocoon uses: money, ids, keys, usage. Values only, no behaviour with effects."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import Final, NewType

from .errors import ConfigError

# --- money -----------------------------------------------------------------------------------------------

Nano = int  # nanoTON; never a float
NANO_PER_TON: Final = 1_000_000_000
PRICE_UNIT_TOKENS: Final = 1_000_000  # prices are nanoTON per this many tokens

_TON = re.compile(r"(\d{1,10})(?:\.(\d{1,9}))?\Z")


def ton(amount: str | int) -> Nano:
    """An amount of TON as nanoTON, exactly: `ton("0.02") == 20_000_000`.

    Takes a decimal string with at most nine places, or a whole number of TON; floats are refused because
    they cannot say 0.02 exactly. Raises `ConfigError`.
    """
    if isinstance(amount, bool) or not isinstance(amount, (str, int)):
        raise ConfigError(f"not an exact amount of TON: {amount!r}", advice='Write it as a string: ton("0.02").')
    match = _TON.match(str(amount).strip())
    if match is None:
        raise ConfigError(
            f"not an amount of TON: {str(amount)[:40]!r}",
            advice="Use digits with at most nine decimals: 0.02",
        )
    whole, part = match.groups()
    return int(whole) * NANO_PER_TON + int((part or "").ljust(9, "0"))


def format_ton(amount_nano: Nano) -> str:
    """`20_000_000` → `"0.02"`: exact, without trailing zeros."""
    sign, amount_nano = ("-", -amount_nano) if amount_nano < 0 else ("", amount_nano)
    whole, part = divmod(amount_nano, NANO_PER_TON)
    return f"{sign}{whole}.{part:09d}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """NanoTON per 10⁶ tokens of each kind, and per request."""

    input_nano: Nano
    cached_input_nano: Nano
    output_nano: Nano
    request_nano: Nano = 0


def due_nano(prices: Prices, *, input_tokens: int, cached_tokens: int, output_tokens: int) -> Nano:
    """What a request costs. The one place that rounds: up, in the payee's favour, at most 1 nanoTON a request.

    `cached_tokens` of the `input_tokens` are charged at the cached price.
    """
    total = (
        prices.input_nano * (input_tokens - cached_tokens)
        + prices.cached_input_nano * cached_tokens
        + prices.output_nano * output_tokens
    )
    return prices.request_nano - (-total // PRICE_UNIT_TOKENS)


# --- names -----------------------------------------------------------------------------------------------

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58btc, e.g. `12D3Koo…`."""

Digest = bytes
"""A SHA-256 digest: 32 bytes."""

DIGEST_BYTES: Final = 32
NO_DIGEST: Final = bytes(DIGEST_BYTES)

SECOND_NS: Final = 1_000_000_000
MILLISECOND_NS: Final = 1_000_000


class Network(IntEnum):
    """Which network a signature is for: TON's global id, four bytes in every signed payload."""

    MAINNET = -239
    TESTNET = -3
    DEVNET = -217

    @property
    def label(self) -> str:
        """`mainnet`, `testnet` or `devnet`."""
        return self.name.lower()

    @property
    def wire(self) -> bytes:
        """Four bytes, big-endian, signed."""
        return int(self).to_bytes(4, "big", signed=True)

    @staticmethod
    def from_label(label: str) -> Network:
        """The network of that name; raises `ConfigError` on any other word."""
        for network in Network:
            if network.label == label:
                return network
        raise ConfigError(f"no such network: {label[:32]!r}", advice="Use mainnet, testnet or devnet.")


class TrustLevel(Enum):
    """What a client has proof of, strongest first (`cocoon.attest.policy` decides)."""

    CONFIDENTIAL = "confidential"  # Intel TDX and NVIDIA H100 evidence
    CPU_CONFIDENTIAL = "cpu-confidential"  # Intel TDX evidence
    SIMULATED = "simulated"  # software TEE; devnet only
    OPEN = "open"  # no hardware evidence: the operator can read the prompt

    @property
    def rank(self) -> int:
        """Higher is stronger; `OPEN` is 0."""
        return {"open": 0, "simulated": 1, "cpu-confidential": 2, "confidential": 3}[self.value]

    @property
    def words(self) -> str:
        """What it is worth, for people who read an answer and not the documentation."""
        return {
            "open": "nothing was proven: the operator of the provider can read prompt and answer",
            "simulated": "a software TEE, where every check runs and nothing is protected: "
            "the operator of the provider can read prompt and answer",
            "cpu-confidential": "an Intel TDX guest with an accepted image; no GPU was proven",
            "confidential": "an Intel TDX guest with an accepted image, and an NVIDIA GPU in confidential mode",
        }[self.value]


class TeeKind(IntFlag):
    """TEE bits of an offer."""

    NONE = 0
    SIMULATED = 1
    TDX = 2
    NVIDIA_CC = 4


class Feature(IntFlag):
    """Feature bits of an offer."""

    TOOLS = 1
    JSON_SCHEMA = 2
    LOGPROBS = 4
    EMBEDDINGS = 8
    VISION = 16
    COMPLETIONS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one request. `cached_tokens` is part of `prompt_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class FinishReason(Enum):
    """Why a generation ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Secret:
    """Bytes that must never show in a log, a repr or a traceback. `reveal()` gives them."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The bytes themselves; keep them out of anything that is printed."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret(<{len(self._value)} bytes>)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class PrivateText(str):
    """Text of a user or a model. A plain `str` in every way, but its repr does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"PrivateText(<{len(self)} characters>)"
