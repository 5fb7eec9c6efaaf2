"""Gossip: what a validator accepts travels, in bursts too, and nothing else does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from p2p import errors
from p2p.interface import GossipMessage, Limits, Node, Subscription, Verdict
from p2p.testing.contract.tools import PATIENCE_S, TOPIC, OpenNode, accept_all, check, key_of, raises, settings


async def next_message(subscription: Subscription) -> GossipMessage:
    with trio.fail_after(PATIENCE_S):
        return await anext(subscription)


@asynccontextmanager
async def chain(open_node: OpenNode, *, limits: Limits | None = None) -> AsyncIterator[tuple[Node, Node, Node]]:
    """a - b - c: what a says reaches c only through b."""
    async with open_node(settings(limits=limits), key=key_of("b")) as b:
        async with open_node(settings(b, limits=limits), key=key_of("a")) as a:
            async with open_node(settings(b, limits=limits), key=key_of("c")) as c:
                for node in (a, c):
                    await node.wait_connected(timeout_s=PATIENCE_S)
                yield a, b, c


async def publish_heard(node: Node, data: bytes, *, neighbours: int = 1) -> None:
    """Publish once the neighbours are known: right after joining nobody is."""
    with trio.fail_after(PATIENCE_S):
        while await node.publish(TOPIC, data) < neighbours:  # noqa: ASYNC110 - nothing to wait on
            await trio.sleep(0.05)


# --- gossip ----------------------------------------------------------------------------------------------


@check
async def gossip_travels_through_peers_that_accept_it(open_node: OpenNode) -> None:
    async with chain(open_node) as (a, b, c):
        subscriptions = {node.peer: await node.subscribe(TOPIC, accept_all) for node in (a, b, c)}
        await publish_heard(a, b"news")
        for node in (a, b, c):
            message = await next_message(subscriptions[node.peer])
            assert (message.topic, message.data, message.source) == (TOPIC, b"news", a.peer)
        assert subscriptions[a.peer].topic == TOPIC
        await publish_heard(a, b"more news")
        message = await next_message(subscriptions[c.peer])
        while message.data == b"news":  # published again while nobody was known
            message = await next_message(subscriptions[c.peer])
        assert message.forwarder == b.peer


@check
async def a_rejected_or_ignored_message_is_neither_delivered_nor_forwarded(open_node: OpenNode) -> None:
    def judge(forwarder: str, data: bytes) -> Verdict:
        if data == b"bug":
            raise RuntimeError("in the validator")
        return {b"bad": Verdict.REJECT, b"old": Verdict.IGNORE}.get(data, Verdict.ACCEPT)

    async with chain(open_node) as (a, b, c):
        await a.subscribe(TOPIC, accept_all)
        middle = await b.subscribe(TOPIC, judge)
        far = await c.subscribe(TOPIC, accept_all)
        await publish_heard(a, b"start")
        await publish_heard(b, b"start", neighbours=2)
        for data in (b"bad", b"old", b"bug", b"good"):
            await a.publish(TOPIC, data)
        for subscription in (middle, far):
            heard: list[bytes] = []
            while not heard or heard[-1] != b"good":
                heard.append((await next_message(subscription)).data)
            assert set(heard) == {b"start", b"good"}
        statistics = b.statistics()
        assert (statistics.gossip_rejected, statistics.gossip_ignored) == (1, 2)


@check
async def a_burst_of_gossip_arrives_whole(open_node: OpenNode) -> None:
    async with chain(open_node) as (a, b, c):
        for node in (a, b):
            await node.subscribe(TOPIC, accept_all)
        far = await c.subscribe(TOPIC, accept_all)
        await publish_heard(a, b"start")
        await publish_heard(b, b"start", neighbours=2)
        for number in range(200):
            await a.publish(TOPIC, b"%d" % number)
        heard: set[bytes] = set()
        while len(heard - {b"start"}) < 200:
            heard.add((await next_message(far)).data)


@check
async def a_slow_subscriber_loses_the_newest_and_the_loss_is_counted(open_node: OpenNode) -> None:
    async with open_node(settings(limits=Limits(gossip_queue_max=5)), key=key_of("a")) as node:
        subscription = await node.subscribe(TOPIC, accept_all)
        for number in range(8):
            assert await node.publish(TOPIC, b"%d" % number) == 0
        assert subscription.dropped == 3
        assert node.statistics().gossip_dropped == 3
        assert [(await next_message(subscription)).data for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        await subscription.aclose()
        await subscription.aclose()
        assert [message async for message in subscription] == []


@check
async def gossip_has_rules_for_the_local_program_too(open_node: OpenNode) -> None:
    async with open_node(settings(limits=Limits(gossip_message_bytes_max=100)), key=key_of("a")) as node:
        first = await node.subscribe(TOPIC, accept_all)
        async with raises(errors.SettingsInvalid):
            await node.subscribe(TOPIC, accept_all)
        async with raises(errors.MessageTooLarge):
            await node.publish(TOPIC, b"x" * 101)
        await first.aclose()
        await (await node.subscribe(TOPIC, accept_all)).aclose()
    async with open_node(settings(gossip=False), key=key_of("b")) as silent:
        async with raises(errors.GossipDisabled):
            await silent.publish(TOPIC, b"x")
        async with raises(errors.GossipDisabled):
            await silent.subscribe(TOPIC, accept_all)
