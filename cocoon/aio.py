"""`cocoon.aio.AsyncClient`: the client for asyncio programs. Same methods as `cocoon.Client`, awaited."""

from __future__ import annotations

from .api.bridge import AsyncClient, AsyncReply

__all__ = ["AsyncClient", "AsyncReply"]
