"""The embedded client: the same promises in plain Python, trio and asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio

from cocoon import Client, aio, ton, trust
from cocoon.api import AsyncClient
from cocoon.client.interface import OfferView, ReceiptView, ReplySummary
from cocoon.errors import CocoonError, ConfigError, InvalidRequest, LocalProtocolError, NoProvider, StreamBroken
from cocoon.ports import Delta
from cocoon.types import FinishReason, PeerId, Prices, TrustLevel, Usage

HELLO = [{"role": "user", "content": "Hello"}]
SPEND = ton("0.02")


def offer(name: str = "cocoon-tiny", provider: str = "P1", output_nano: int = 5) -> OfferView:
    return OfferView(
        digest=bytes(32),
        model=name.encode().ljust(32, b"\0"),
        model_name=name,
        provider=PeerId(provider),
        operator=bytes(32),
        addresses=(),
        prices=Prices(input_nano=1, cached_input_nano=1, output_nano=output_nano),
        context_tokens_max=512,
        output_tokens_max=256,
        first_token_p50_ms=10,
        tokens_per_s_p50=50,
        slots=4,
        running=0,
        queued=0,
        features=(),
        trust=TrustLevel.OPEN,
        region="",
        age_s=1.0,
        expires_in_s=100.0,
    )


RECEIPT = ReceiptView(
    verified=True,
    session=bytes(32),
    request_id=1,
    prompt_tokens=3,
    cached_tokens=0,
    completion_tokens=2,
    due_nano=7,
    signature=bytes(64),
    body=b"",
)


class ScriptedReply:
    provider = PeerId("P1")
    trust = TrustLevel.OPEN
    prompt_tokens = 3
    first_token_ms = 1.5
    attempts = ()

    def __init__(self, script: list[Any]) -> None:
        self._steps = deque(script)
        self.offer = offer()

    decisions = ()

    def __aiter__(self) -> ScriptedReply:
        return self

    async def __anext__(self) -> Delta:
        await trio.lowlevel.checkpoint()
        if not self._steps:
            raise StopAsyncIteration
        step = self._steps.popleft()
        if isinstance(step, BaseException):
            raise step
        if step is ...:
            await trio.sleep_forever()
        return step if isinstance(step, Delta) else Delta(text=step)

    @property
    def summary(self) -> ReplySummary:
        return ReplySummary(
            finish_reason=FinishReason.STOP,
            usage=Usage(prompt_tokens=3, completion_tokens=2),
            receipt=RECEIPT,
            cost_nano=7,
        )


class ScriptedRole:
    """Answers every request with the same script, and notes when a request was left early."""

    peer = PeerId("ME")

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.left = threading.Event()
        self.bodies: list[Mapping[str, Any]] = []

    @asynccontextmanager
    async def generate(self, endpoint: str, body: Mapping[str, Any], *, spend_max_nano: int) -> AsyncIterator[Any]:
        self.bodies.append({"endpoint": endpoint, "spend": spend_max_nano, **body})
        if self.script and isinstance(self.script[0], NoProvider):
            async with trio.open_nursery():
                raise self.script[0]
        finished = False
        try:
            async with trio.open_nursery():  # as a real role would: what it raises arrives in a group
                yield ScriptedReply(self.script)
                finished = True
        finally:
            if not finished:
                self.left.set()

    async def offers(self, model: str | None = None, *, wait_s: float = 0.0) -> tuple[OfferView, ...]:
        return (offer(), offer(provider="P2", output_nano=3), offer("other"))

    def connections(self) -> tuple[()]:
        return ()

    def dial_failures(self) -> tuple[()]:
        return ()


def opening(role: ScriptedRole) -> Callable[[], AbstractAsyncContextManager[AsyncClient]]:
    return lambda: AsyncClient.over(role)


# --- plain Python ------------------------------------------------------------------------------------------


def test_a_reply_streams_and_then_knows_its_facts() -> None:
    role = ScriptedRole("Co", "coon")
    with Client.over(opening(role)) as cocoon:
        reply = cocoon.chat(model="cocoon-tiny", messages=HELLO, spend_max=SPEND, temperature=0)
        assert "".join(reply) == "Cocoon" == reply.text
        assert reply.usage.total_tokens == 5
        assert reply.receipt.verified
        assert (reply.cost, reply.provider, reply.trust) == (7, "P1", TrustLevel.OPEN)
        assert reply.finish_reason is FinishReason.STOP
        assert reply.first_token_ms == 1.5
    assert role.bodies == [
        {
            "endpoint": "chat.completions",
            "spend": 20_000_000,
            "model": "cocoon-tiny",
            "messages": HELLO,
            "temperature": 0,
        }
    ]


def test_completions_and_listings_work_too() -> None:
    with Client.over(opening(ScriptedRole("x"))) as cocoon:
        assert cocoon.complete(model="cocoon-tiny", prompt="a", spend_max=0).finish().text == "x"
        models = {model.name: model for model in cocoon.models()}
        assert models["cocoon-tiny"].providers == 2
        assert models["cocoon-tiny"].cheapest.output_nano == 3
        assert len(cocoon.offers()) == 3
        assert cocoon.peer == "ME"


def test_facts_before_the_end_are_refused_with_advice() -> None:
    with Client.over(opening(ScriptedRole(*["x"] * 10_000))) as cocoon:  # far from its end when it is asked
        reply = cocoon.chat(model="m", messages=HELLO, spend_max=SPEND)
        with pytest.raises(LocalProtocolError, match="not ended") as early:
            _ = reply.usage
        assert "finish()" in early.value.advice


def test_an_error_before_the_first_text_is_raised_by_chat_alone() -> None:
    with Client.over(opening(ScriptedRole(NoProvider("nobody")))) as cocoon:
        with pytest.raises(NoProvider, match="nobody"):
            cocoon.chat(model="m", messages=HELLO, spend_max=SPEND)
        assert len(cocoon.offers()) == 3  # the client lives


def test_a_provider_that_dies_midway_is_raised_by_the_iteration_and_the_client_lives() -> None:
    role = ScriptedRole("half", StreamBroken("the provider is gone"))
    with Client.over(opening(role)) as cocoon:
        reply = cocoon.chat(model="m", messages=HELLO, spend_max=SPEND)
        with pytest.raises(StreamBroken, match="gone"):
            list(reply)
        assert reply.text == "half"
        role.script = ["whole"]
        assert cocoon.chat(model="m", messages=HELLO, spend_max=SPEND).finish().text == "whole"


def test_leaving_a_reply_early_cancels_at_the_provider() -> None:
    role = ScriptedRole("a", ...)
    with Client.over(opening(role)) as cocoon:
        with cocoon.chat(model="m", messages=HELLO, spend_max=SPEND) as reply:
            assert next(reply) == "a"
        assert role.left.wait(5)
        assert list(reply) == []


def test_closing_the_client_ends_running_replies() -> None:
    role = ScriptedRole("a", ...)
    cocoon = Client.over(opening(role))
    reply = cocoon.chat(model="m", messages=HELLO, spend_max=SPEND)
    assert next(reply) == "a"
    cocoon.close()
    assert role.left.is_set()
    with pytest.raises(CocoonError):
        next(reply)
    with pytest.raises(LocalProtocolError, match="closed"):
        cocoon.offers()
    cocoon.close()


def test_tool_calls_are_put_together() -> None:
    pieces = [
        Delta(tool_calls=({"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}},)),
        Delta(tool_calls=({"index": 0, "function": {"arguments": '{"a"'}},)),
        Delta(tool_calls=({"index": 0, "function": {"arguments": ":1}"}},)),
    ]
    with Client.over(opening(ScriptedRole(*pieces))) as cocoon:
        reply = cocoon.chat(model="m", messages=HELLO, spend_max=SPEND).finish()
    assert reply.tool_calls == ({"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"bootstrap": ["x"]}, "trust=trust.Open()"),
        ({"bootstrap": ["x"], "trust": "open"}, "trust.Open()"),
        ({"trust": trust.Open()}, "bootstrap"),
        ({"trust": trust.Open(), "bootstrap": ["x"], "network": "fakenet"}, "devnet"),
    ],
)
def test_a_client_opens_only_on_stated_terms(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Client.open(**arguments)
    assert told in refused.value.diagnostics()


def test_leaving_out_trust_is_a_type_error_as_well() -> None:
    with pytest.raises(TypeError, match="no default"):
        Client.open(bootstrap=["x"])


@pytest.mark.parametrize("spend", [None, 0.02, "0.02", -1, True])
def test_spend_max_is_an_amount_or_nothing_is_sent(spend: Any) -> None:
    role = ScriptedRole("x")
    with Client.over(opening(role)) as cocoon, pytest.raises(ConfigError) as refused:
        cocoon.chat(model="m", messages=HELLO, spend_max=spend)
    assert 'ton("0.02")' in refused.value.advice
    assert role.bodies == []


def test_parameters_that_contradict_a_reply_are_refused() -> None:
    with Client.over(opening(ScriptedRole("x"))) as cocoon, pytest.raises(InvalidRequest, match="stream"):
        cocoon.chat(model="m", messages=HELLO, spend_max=SPEND, stream=True)


# --- trio --------------------------------------------------------------------------------------------------


def test_trio_programs_have_the_same_methods() -> None:
    async def main() -> None:
        async with AsyncClient.over(ScriptedRole("Co", "coon")) as cocoon:
            reply = await cocoon.chat(model="m", messages=HELLO, spend_max=SPEND)
            assert [piece async for piece in reply] == ["Co", "coon"]
            assert reply.receipt.verified
            assert (await (await cocoon.complete(model="m", prompt="a", spend_max=0)).finish()).text == "Cocoon"
            assert len(await cocoon.models()) == 2

    trio.run(main)


def test_a_trio_reply_left_early_cancels_and_the_callers_own_error_comes_out_alone() -> None:
    role = ScriptedRole("a", ...)

    async def fail_inside() -> None:
        async with AsyncClient.over(role) as cocoon:
            async with await cocoon.chat(model="m", messages=HELLO, spend_max=SPEND) as reply:
                async for _ in reply:
                    raise KeyError("mine")

    with pytest.raises(KeyError):
        trio.run(fail_inside)
    assert role.left.is_set()


def test_a_group_that_the_caller_raises_stays_a_group() -> None:
    async def main() -> None:
        with pytest.raises(ExceptionGroup, match="mine"):
            async with AsyncClient.over(ScriptedRole("a")):
                raise ExceptionGroup("mine", [KeyError("x"), ValueError("y")])

    trio.run(main)


def test_cancelling_a_trio_chat_cancels_the_request() -> None:
    role = ScriptedRole("a", ...)

    async def main() -> None:
        async with AsyncClient.over(role) as cocoon:
            with trio.move_on_after(0.05) as scope:
                reply = await cocoon.chat(model="m", messages=HELLO, spend_max=SPEND)
                async with reply:
                    async for _ in reply:
                        pass
            assert scope.cancelled_caught

    trio.run(main)
    assert role.left.is_set()


# --- asyncio -----------------------------------------------------------------------------------------------


def test_asyncio_programs_have_the_same_methods() -> None:
    async def main() -> None:
        async with aio.AsyncClient.over(opening(ScriptedRole("Co", "coon"))) as cocoon:
            reply = await cocoon.chat(model="m", messages=HELLO, spend_max=SPEND)
            assert "".join([piece async for piece in reply]) == "Cocoon"
            assert reply.usage.total_tokens == 5
            assert len(await cocoon.models()) == 2
            both = await asyncio.gather(
                cocoon.complete(model="m", prompt="a", spend_max=0), cocoon.complete(model="m", prompt="b", spend_max=0)
            )
            assert [(await one.finish()).text for one in both] == ["Cocoon", "Cocoon"]

    asyncio.run(main())


def test_cancelling_an_asyncio_task_cancels_the_request() -> None:
    role = ScriptedRole("a", ...)

    async def read(cocoon: aio.AsyncClient) -> None:
        async with await cocoon.chat(model="m", messages=HELLO, spend_max=SPEND) as reply:
            async for _ in reply:
                pass

    async def main() -> None:
        async with aio.AsyncClient.over(opening(role)) as cocoon:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read(cocoon), 0.2)
            assert await asyncio.to_thread(role.left.wait, 5)
            role.script = ["whole"]
            assert (await (await cocoon.chat(model="m", messages=HELLO, spend_max=SPEND)).finish()).text == "whole"

    asyncio.run(main())


def test_asyncio_errors_are_single_and_typed() -> None:
    async def main() -> None:
        async with aio.AsyncClient.over(opening(ScriptedRole(NoProvider("nobody")))) as cocoon:
            with pytest.raises(NoProvider):
                await cocoon.chat(model="m", messages=HELLO, spend_max=SPEND)
        with pytest.raises(ConfigError, match="trust has no default"):
            async with aio.AsyncClient.open(bootstrap=["x"]):
                pass

    asyncio.run(main())
