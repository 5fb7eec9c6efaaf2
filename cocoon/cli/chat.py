"""`cocoon chat`: talk to a model in the terminal.

Answers stream; the conversation is kept until `/new` or `/quit`. Ctrl-C stops one answer, not the program. With
something else than a terminal on standard input, or with a MESSAGE, it asks once and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidRequest, LocalProtocolError, ModelNotFound, NoProvider
from ..types import Nano, format_ton, ton
from .console import Console
from .options import (
    SPENT_FILE,
    Setup,
    add_account,
    add_bootstrap,
    add_chain,
    add_common,
    add_trust,
    chosen_trust,
    needed_bootstrap,
    setup,
)
from .views import answer_object, brief_peer

if TYPE_CHECKING:
    from ..api import AsyncClient, Client, Reply
    from ..gateway.spend import Reservation
    from ..trust import TrustPolicy

MESSAGE_BYTES_MAX: Final = 1024 * 1024  # a request holds at most this much
HELP: Final = "/new forgets the conversation · /quit or Ctrl-D ends · Ctrl-C stops an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon chat`."""
    parser.add_argument("message", nargs="?", metavar="MESSAGE", help="ask this, print the answer, and end")
    parser.add_argument("--model", metavar="NAME", help="default: the only model on offer, if there is only one")
    parser.add_argument("--system", metavar="TEXT", help="a system message to start with")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="the longest answer")
    parser.add_argument("--temperature", type=float, metavar="T", default=0.0, help="default: 0, the likeliest words")
    parser.add_argument("--spend-max", metavar="TON", help="what one answer may cost at most (default: 0.02)")
    parser.add_argument("--spend-day-max", metavar="TON", help="all answers of a day together (default: 1)")
    add_account(parser)
    add_chain(parser)
    add_common(parser)
    add_bootstrap(parser)
    add_trust(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Until `/quit`, or one answer."""
    prepared = setup(args, gateway__spend_request_max_ton=args.spend_max, gateway__spend_day_max_ton=args.spend_day_max)
    trust = chosen_trust(prepared.config)
    bootstrap = needed_bootstrap(prepared.config)
    from ..api import Client

    spending = DaySpending(prepared)
    console.progress("joining the network …")
    with _terminated(), Client.over(lambda: _opened(prepared, console, bootstrap, trust)) as client:
        model = args.model or _only_model(client)
        params = {"max_tokens": args.max_tokens, "temperature": args.temperature}
        conversation = Conversation(
            client,
            console,
            model=model,
            system=args.system,
            spending=spending,
            params={name: value for name, value in params.items() if value is not None},
        )
        if args.message is not None:
            conversation.ask(args.message)
        elif not sys.stdin.isatty():
            conversation.ask(sys.stdin.read(MESSAGE_BYTES_MAX))
        else:
            console.notice(f"{model} · {trust.warning or f'trust level {trust.level.value}'}")
            console.say(f"{spending} · {HELP}")
            _talk(conversation, console)
    return 0


@contextlib.asynccontextmanager
async def _opened(
    prepared: Setup, console: Console, bootstrap: tuple[str, ...], trust: TrustPolicy
) -> AsyncIterator[AsyncClient]:
    """A client that pays from the home's account, if there is one. Raises as `AsyncClient.open`."""
    from ..adapters.clock import SystemClock, entropy
    from ..adapters.store import SqliteStore
    from ..api import AsyncClient
    from ..api.native import Border
    from ..api.opening import open_role
    from ..api.terms import OPEN_TIMEOUT_S, open_terms
    from .paying import opened_account

    terms = open_terms(
        bootstrap=bootstrap,
        trust=trust,
        network=prepared.config.network,
        timeout_s=OPEN_TIMEOUT_S,
        home=prepared.home.path,
    )
    border = Border()
    async with border, contextlib.AsyncExitStack() as stack:
        payment = await stack.enter_async_context(opened_account(prepared, console))
        store = None
        if payment is not None:
            path = prepared.home.create().database_path
            store = await stack.enter_async_context(await SqliteStore.open(path, clock=SystemClock(), entropy=entropy))
        role = await stack.enter_async_context(open_role(terms, store=store, payment=payment))
        client = await stack.enter_async_context(AsyncClient.over(role))
        with border.body():
            yield client


class DaySpending:
    """The caps of one answer and of one day, shared with a gateway of the same home."""

    def __init__(self, prepared: Setup) -> None:
        from ..adapters.clock import SystemClock
        from ..gateway.spend import DayFile, SpendLedger

        gateway, home = prepared.config.gateway, prepared.home.create()
        file = DayFile(home.path / SPENT_FILE)
        self._clock = SystemClock()
        self._request_max_nano = ton(gateway.spend_request_max_ton)
        self._day_max_nano = ton(gateway.spend_day_max_ton)
        self._ledger = SpendLedger(
            request_max_nano=self._request_max_nano,
            day_max_nano=self._day_max_nano,
            restored=file.load(),
            persist=file.save,
        )

    def __str__(self) -> str:
        """For people."""
        return (
            f"an answer may cost at most {format_ton(self._request_max_nano)} TON, a day "
            f"{format_ton(self._day_max_nano)} TON"
        )

    def begin(self) -> Reservation:
        """What the next answer may cost. Raises `SpendCapReached`, `StoreError`."""
        now = self._clock.now()
        reservation = self._ledger.reserve(most_nano=self._request_max_nano, now=now)
        if reservation.is_reduced and not reservation.amount_nano and self._request_max_nano:
            self._ledger.settle(reservation, 0, now=now)
            raise self._ledger.cap_reached()
        return reservation

    def end(self, reservation: Reservation, cost_nano: Nano) -> None:
        """What it did cost."""
        self._ledger.settle(reservation, cost_nano, now=self._clock.now())


class Conversation:
    """The messages so far, and how to ask the next one."""

    def __init__(
        self,
        client: Client,
        console: Console,
        *,
        model: str,
        system: str | None,
        spending: DaySpending,
        params: dict[str, Any],
    ) -> None:
        self._client = client
        self._console = console
        self._model = model
        self._spending = spending
        self._params = params
        self._start = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []

    def forget(self) -> None:
        """Start anew."""
        self._turns.clear()

    def ask(self, text: str) -> None:
        """Stream one answer. Interrupted, what has come by then stays in the conversation."""
        text = text.strip()
        if not text:
            raise InvalidRequest("the message is empty", param="messages")
        reservation = self._spending.begin()
        self._turns.append({"role": "user", "content": text})
        reply: Reply | None = None
        try:
            reply = self._begin(reservation.amount_nano)
            for piece in reply:
                self._console.text(piece)
                self._console.data({"event": "text", "text": piece})
        except KeyboardInterrupt:
            if reply is not None:
                reply.close()
            self._keep(reply)
            raise
        except BaseException:
            self._keep(reply)
            raise
        finally:
            self._spending.end(reservation, _cost_nano(reply, reservation))
        self._keep(reply)
        self._console.line("")
        self._console.data({"event": "answer", **answer_object(reply)})
        if self._console.is_terminal:
            self._console.progress(_summary(reply))

    def _begin(self, spend_max_nano: Nano) -> Reply:
        """Start the answer; a conversation that has grown too long loses its oldest turn, as often as needed."""
        while True:
            try:
                return self._client.chat(
                    model=self._model,
                    messages=self._start + self._turns,
                    spend_max=spend_max_nano,
                    **self._params,
                )
            except InvalidRequest as error:
                if error.kind != "context_length_exceeded" or len(self._turns) < 3:
                    raise
                del self._turns[:2]
                self._console.progress("(the conversation is too long for the model: its oldest turn was dropped)")

    def _keep(self, reply: Reply | None) -> None:
        if reply is not None and reply.text:
            self._turns.append({"role": "assistant", "content": reply.text})
        else:
            self._turns.pop()  # nothing came: the question can be asked again


def _cost_nano(reply: Reply | None, reservation: Reservation) -> Nano:
    """What an answer did cost; of one that was stopped, what it could have cost at most."""
    if reply is None:
        return 0
    try:
        return reply.cost
    except LocalProtocolError:  # it has not ended: the provider may still show a last receipt
        return reservation.amount_nano


def _talk(conversation: Conversation, console: Console) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # line editing and history for input()
    from ..errors import CocoonError

    while True:
        try:
            line = input("\n> ").strip()
            if line in ("/quit", "/exit"):
                return
            if line == "/new":
                conversation.forget()
                console.say("forgotten")
            elif line.startswith("/"):
                console.say(HELP)
            elif line:
                conversation.ask(line)
        except EOFError:
            console.say()
            return
        except KeyboardInterrupt:
            console.say("\n(stopped; /quit ends)")
        except CocoonError as error:
            console.say()
            console.explain(error)


def _only_model(client: Client) -> str:
    names = [model.name for model in client.models()]
    if len(names) == 1:
        return names[0]
    if not names:
        raise NoProvider("nobody on the network offers a model now", advice="Try again, or see `cocoon peers`.")
    raise ModelNotFound("several models are on offer", param="model", advice=f"Choose: --model {' | '.join(names)}")


def _summary(reply: Reply) -> str:
    first = f"{reply.first_token_ms:.0f} ms to the first token" if reply.first_token_ms is not None else "no token"
    return (
        f"{brief_peer(reply.provider)} · {reply.usage.completion_tokens} tokens · {first} · "
        f"{format_ton(reply.cost)} TON · trust: {reply.trust.value} · "
        f"receipt {'verified' if reply.receipt.verified else 'NOT verified'}"
    )


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends the program in order, as Ctrl-C would."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
