"""`cocoon chat`: talk to a model in the terminal.

Answers stream; the conversation is kept until `/new` or `/quit`. Ctrl-C stops one answer, not the program. With
something else than a terminal on standard input, or with a MESSAGE, it asks once and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidRequest, ModelNotFound, NoProvider
from ..types import format_ton, ton
from .console import Console
from .options import add_bootstrap, add_common, add_trust, chosen_trust, needed_bootstrap, setup
from .views import answer_object, brief_peer

if TYPE_CHECKING:
    from ..api import Client, Reply

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
    add_common(parser)
    add_bootstrap(parser)
    add_trust(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Until `/quit`, or one answer."""
    prepared = setup(args, gateway__spend_request_max_ton=args.spend_max)
    trust = chosen_trust(prepared.config)
    bootstrap = needed_bootstrap(prepared.config)
    from ..api import Client

    console.progress("joining the network …")
    with (
        _terminated(),
        Client.open(
            bootstrap=bootstrap, trust=trust, network=prepared.config.network, home=prepared.home.path
        ) as client,
    ):
        model = args.model or _only_model(client)
        spend_max_nano = ton(prepared.config.gateway.spend_request_max_ton)
        params = {"max_tokens": args.max_tokens, "temperature": args.temperature}
        conversation = Conversation(
            client,
            console,
            model=model,
            system=args.system,
            spend_max_nano=spend_max_nano,
            params={name: value for name, value in params.items() if value is not None},
        )
        if args.message is not None:
            conversation.ask(args.message)
        elif not sys.stdin.isatty():
            conversation.ask(sys.stdin.read(MESSAGE_BYTES_MAX))
        else:
            console.notice(f"{model} · {trust.warning or f'trust level {trust.level.value}'}")
            console.say(f"each answer may cost at most {format_ton(spend_max_nano)} TON · {HELP}")
            _talk(conversation, console)
    return 0


class Conversation:
    """The messages so far, and how to ask the next one."""

    def __init__(
        self,
        client: Client,
        console: Console,
        *,
        model: str,
        system: str | None,
        spend_max_nano: int,
        params: dict[str, Any],
    ) -> None:
        self._client = client
        self._console = console
        self._model = model
        self._spend_max_nano = spend_max_nano
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
        self._turns.append({"role": "user", "content": text})
        reply: Reply | None = None
        try:
            reply = self._begin()
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
        self._keep(reply)
        self._console.line("")
        self._console.data({"event": "answer", **answer_object(reply)})
        if self._console.is_terminal:
            self._console.progress(_summary(reply))

    def _begin(self) -> Reply:
        """Start the answer; a conversation that has grown too long loses its oldest turn, as often as needed."""
        while True:
            try:
                return self._client.chat(
                    model=self._model,
                    messages=self._start + self._turns,
                    spend_max=self._spend_max_nano,
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
