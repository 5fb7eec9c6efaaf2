"""Cocoon: a peer-to-peer market for confidential AI inference.

    from cocoon import Client, ton, trust

    with Client.open(bootstrap=[...], trust=trust.Open()) as cocoon:
        reply = cocoon.chat(model="cocoon-tiny", messages=[...], spend_max=ton("0.02"))
        for text in reply:
            print(text, end="")

`Client` is for ordinary programs, `AsyncClient` for trio, `cocoon.aio.AsyncClient` for asyncio. The names load on
first use, so importing `cocoon` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import aio, errors, trust
    from .api import AsyncClient, Client
    from .errors import CocoonError
    from .types import format_ton, ton

__all__ = ["AsyncClient", "Client", "CocoonError", "__version__", "aio", "errors", "format_ton", "ton", "trust"]

_ATTRIBUTES = {
    "AsyncClient": "api",
    "Client": "api",
    "CocoonError": "errors",
    "format_ton": "types",
    "ton": "types",
}
_MODULES = ("aio", "errors", "trust")


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(import_module(f".{_ATTRIBUTES[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
