"""What the three clients have in common: their arguments, checked once, and the values they return.

Not here: anything that waits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..client.interface import OfferView, ReplySummary
from ..config import Home
from ..errors import ConfigError, InvalidRequest, LocalProtocolError
from ..trust import TrustPolicy
from ..types import Digest, Nano, Network, Prices, Usage

OPEN_TIMEOUT_S: Final = 10.0  # a dial takes at most 5 s; this leaves room for two
OFFERS_WAIT_S: Final = 5.0  # gossip reaches a new neighbour within two heartbeats of a second


class MissingArgument(ConfigError, TypeError):
    """An argument without a default was left out. A `TypeError` too, as for every other function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTerms:
    """How to open a client. Every field was checked."""

    bootstrap: tuple[str, ...]
    trust: TrustPolicy
    network: Network
    timeout_s: float
    home: Home
    pays: bool = True  # from the home's spending account, if there is one


def open_terms(
    *,
    bootstrap: Iterable[str],
    trust: TrustPolicy | None,
    network: str,
    timeout_s: float,
    home: str | os.PathLike[str] | None,
    account: str = "auto",
) -> OpenTerms:
    """Raises `ConfigError`, also for a `trust` that was left out."""
    if trust is None:
        raise MissingArgument(
            "trust has no default: say what providers must prove",
            advice="Pass trust=trust.Open() (from cocoon import trust) to accept providers without hardware evidence, "
            "whose operators can read the prompt.",
        )
    if not isinstance(trust, TrustPolicy):
        raise ConfigError(f"not a trust policy: {type(trust).__name__}", advice="Use cocoon.trust, e.g. trust.Open().")
    if account not in ("auto", "none"):
        raise ConfigError(f"account is auto or none, not {str(account)[:40]!r}")
    if isinstance(bootstrap, str):
        bootstrap = (bootstrap,)
    addresses = tuple(bootstrap)
    if not addresses:
        raise ConfigError(
            "no bootstrap address was given, so there is no way into the network",
            advice="Pass bootstrap=[multiaddr, ...]; `cocoon demo` and `cocoon node` print theirs.",
        )
    return OpenTerms(
        bootstrap=addresses,
        trust=trust,
        network=Network.from_label(network),
        timeout_s=float(timeout_s),
        home=Home.locate(home),
        pays=account == "auto",
    )


def spend_limit(spend_max: Nano | None) -> Nano:
    """The ceiling of one request, in nanoTON. Raises `ConfigError`, also when it was left out."""
    if spend_max is None:
        raise MissingArgument(
            "spend_max has no default: say what this request may cost at most",
            advice='Pass spend_max=ton("0.02") (from cocoon import ton); ton("0") takes free providers only.',
        )
    if isinstance(spend_max, bool) or not isinstance(spend_max, int) or spend_max < 0:
        raise ConfigError("spend_max is not an amount of nanoTON", advice='Make it with ton: spend_max=ton("0.02").')
    return spend_max


def chat_body(model: str, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's request body. Raises `InvalidRequest` for a parameter that the reply object would contradict."""
    return {"model": model, "messages": list(messages), **_params(params)}


def completion_body(model: str, prompt: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the older endpoint."""
    return {"model": model, "prompt": prompt, **_params(params)}


def _params(params: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("stream", "stream_options", "n"):
        if name in params:
            raise InvalidRequest(
                f"{name} has no meaning here", param=name, advice="Every reply streams, and is one answer."
            )
    return dict(params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that the network offers now."""

    name: str
    digest: Digest
    providers: int
    cheapest: Prices
    context_tokens_max: int


def models_of(offers: Iterable[OfferView]) -> tuple[Model, ...]:
    """The models behind these offers, by name."""
    grouped: dict[tuple[str, Digest], list[OfferView]] = {}
    for offer in offers:
        grouped.setdefault((offer.model_name, offer.model), []).append(offer)
    return tuple(
        Model(
            name=name,
            digest=digest,
            providers=len({offer.provider for offer in found}),
            cheapest=min((offer.prices for offer in found), key=lambda prices: (prices.output_nano, prices.input_nano)),
            context_tokens_max=max(offer.context_tokens_max for offer in found),
        )
        for (name, digest), found in sorted(grouped.items())
    )


class ToolCalls:
    """Assembles OpenAI's tool-call deltas into whole calls."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}

    def add(self, delta: Mapping[str, Any]) -> None:
        """One delta, as it came."""
        call = self._calls.setdefault(int(delta.get("index", 0)), {"id": "", "type": "function", "function": {}})
        for name in ("id", "type"):
            if delta.get(name):
                call[name] = delta[name]
        function = call["function"]
        for name, value in (delta.get("function") or {}).items():
            if name == "name":
                function["name"] = value
            else:
                function[name] = function.get(name, "") + (value or "")

    def whole(self) -> tuple[dict[str, Any], ...]:
        """The calls so far, in order."""
        return tuple(self._calls[index] for index in sorted(self._calls))


def ended(summary: ReplySummary | None) -> ReplySummary:
    """The summary. Raises `LocalProtocolError` before the end."""
    if summary is None:
        raise LocalProtocolError(
            "the reply has not ended yet", advice="Iterate it to the end, or call finish(), and ask again."
        )
    return summary


def usage_dict(usage: Usage) -> dict[str, int]:
    """OpenAI's three numbers."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
