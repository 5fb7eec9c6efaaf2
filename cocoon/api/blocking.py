"""`Client`: the client for ordinary programs, without `async`. May be used from several threads.

with Client.open(bootstrap=[...], trust=trust.Open()) as cocoon:
    reply = cocoon.chat(model="cocoon-tiny", messages=[...], spend_max=ton("0.02"))
    for text in reply:
        print(text, end="")
    print(reply.usage, reply.receipt)
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar

from ..client.interface import OfferView
from ..errors import Unavailable
from ..trust import TrustPolicy
from ..types import Nano
from .native import AsyncClient, AsyncReply
from .terms import OFFERS_WAIT_S, OPEN_TIMEOUT_S, Model, open_terms, spend_limit
from .thread import ClientThread, ReplyFacts, ThreadedClient

T = TypeVar("T")


class Client(ThreadedClient):
    """A client peer in a thread of its own. Made by `Client.open`; close it, or use it in a `with` block."""

    @classmethod
    def open(
        cls,
        *,
        bootstrap: Iterable[str] = (),
        trust: TrustPolicy | None = None,
        network: str = "devnet",
        home: str | os.PathLike[str] | None = None,
        timeout_s: float = OPEN_TIMEOUT_S,
        account: str = "auto",
    ) -> Client:
        """Join the network as a fresh client peer.

        `bootstrap` are multiaddrs that end in `/p2p/<peer>`. `trust` (from `cocoon.trust`) has no default. `home`
        is where models are pinned by name, and where the spending account is (`cocoon account open`) that pays; with
        `account="none"`, or without one, free offers only are used. One client at a time pays from a home. Raises
        `ConfigError`, `LocalProtocolError` when another client pays from this account, and
        `Unavailable` when no bootstrap peer answers within `timeout_s`.
        """
        terms = open_terms(
            bootstrap=bootstrap, trust=trust, network=network, timeout_s=timeout_s, home=home, account=account
        )
        return cls.over(
            lambda: AsyncClient.open(
                bootstrap=terms.bootstrap,
                trust=terms.trust,
                network=terms.network.label,
                home=terms.home.path,
                timeout_s=terms.timeout_s,
                account="auto" if terms.pays else "none",
            )
        )

    @classmethod
    def over(cls, opening: Callable[[], AbstractAsyncContextManager[AsyncClient]]) -> Client:
        """A client over whatever trio client `opening()` opens in the thread."""
        thread = ClientThread()
        try:
            return cls(thread, thread.start(opening).result())
        except BaseException:
            thread.stop()
            raise

    def close(self) -> None:
        """Leave the network. Replies still running are cancelled."""
        self._thread.stop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def chat(
        self, *, model: str, messages: Sequence[Mapping[str, Any]], spend_max: Nano | None = None, **params: Any
    ) -> Reply:
        """Ask a model; returns once a provider has accepted.

        `messages` and `params` are OpenAI's (temperature, max_tokens, tools, ...). `spend_max` in nanoTON has no
        default: `ton("0.02")`. Raises `InvalidRequest`, `ModelNotFound`, `NoProvider`, `PriceTooHigh`,
        `AttestationError`, `Refused`, `Unavailable`. Ctrl-C meanwhile cancels at the provider as well.
        """
        limit = spend_limit(spend_max)

        async def start() -> AsyncReply:
            return await self._client.chat(model=model, messages=messages, spend_max=limit, **params)

        return Reply(self._thread, wait(self._thread, start))

    def complete(self, *, model: str, prompt: str, spend_max: Nano | None = None, **params: Any) -> Reply:
        """Continue a text, without a chat template. Else as `chat`."""
        limit = spend_limit(spend_max)

        async def start() -> AsyncReply:
            return await self._client.complete(model=model, prompt=prompt, spend_max=limit, **params)

        return Reply(self._thread, wait(self._thread, start))

    def models(self, *, wait_s: float = OFFERS_WAIT_S) -> tuple[Model, ...]:
        """What the network offers now, by name; waits up to `wait_s` for the first offer."""

        async def ask() -> tuple[Model, ...]:
            return await self._client.models(wait_s=wait_s)

        return wait(self._thread, ask)

    def offers(self, model: str | None = None, *, wait_s: float = OFFERS_WAIT_S) -> tuple[OfferView, ...]:
        """Current offers, cheapest first; waits up to `wait_s` for the first."""

        async def ask() -> tuple[OfferView, ...]:
            return await self._client.offers(model, wait_s=wait_s)

        return wait(self._thread, ask)


class Reply(ReplyFacts):
    """A running answer: iterate for its text. Made by `Client.chat`."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The text that has come since; waits for some. Raises `StreamBroken` when the provider died."""
        text = wait(self._thread, self._reply.take)
        if text is None:
            raise StopIteration
        return text

    def finish(self) -> Reply:
        """Read to the end; the reply itself, so that `reply.finish().text` is the whole answer."""
        wait(self._thread, self._reply.finish)
        return self

    def close(self) -> None:
        """Leave: the provider stops within a token."""
        wait(self._thread, self._reply.aclose)

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait(thread: ClientThread, call: Callable[[], Awaitable[T]]) -> T:
    """The result of `call()` in the client's thread; an interrupt here cancels it there."""
    future = thread.submit(call)
    try:
        return future.result()
    except CancelledError:
        raise Unavailable("the client was closed meanwhile") from None
    except BaseException:
        future.cancel()
        raise
