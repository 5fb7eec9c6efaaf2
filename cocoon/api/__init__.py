"""The embedded client: `Client` for ordinary programs, `AsyncClient` for trio, `cocoon.aio` for asyncio."""

from __future__ import annotations

from .blocking import Client, Reply
from .native import AsyncClient, AsyncReply
from .terms import Model

__all__ = ["AsyncClient", "AsyncReply", "Client", "Model", "Reply"]
