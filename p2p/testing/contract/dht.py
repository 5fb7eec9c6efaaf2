"""The DHT: providers and values are found through others, and its absence is told."""

from __future__ import annotations

from p2p import errors
from p2p.identity import peer_id_of_seed
from p2p.interface import DhtMode
from p2p.testing.contract.tools import PATIENCE_S, OpenNode, bare, check, key_of, raises, settings


@check
async def providers_are_found_through_a_third_peer(open_node: OpenNode) -> None:
    key = key_of("a model")
    async with open_node(settings(), key=key_of("server")) as server:
        async with (
            open_node(settings(server), key=key_of("provider")) as provider,
            open_node(settings(server, dht_mode=DhtMode.CLIENT), key=key_of("client")) as client,
        ):
            for node in (provider, client):
                await node.wait_connected(timeout_s=PATIENCE_S)
            assert await client.find_providers(key, count_max=10) == ()
            await provider.provide(key)
            (found,) = await client.find_providers(key, count_max=10)
            assert found.peer == provider.peer
            assert found.addresses == (bare(provider),)
            assert await provider.find_providers(key, count_max=10) == (), "a provider does not find itself"
            assert (await client.find_peer(provider.peer)).addresses == (bare(provider),)
            await client.connect(found.peer, found.addresses)
            async with raises(errors.PeerNotFound, within_s=40):
                await client.find_peer(peer_id_of_seed(key_of("stranger")))
            async with raises(errors.SettingsInvalid):
                await client.find_providers(b"short", count_max=1)
            await client.provide(key)
            both = await server.find_providers(key, count_max=10)
            assert {info.peer for info in both} == {provider.peer, client.peer}
            assert len(await server.find_providers(key, count_max=1)) == 1


@check
async def a_dht_without_peers_says_so(open_node: OpenNode) -> None:
    async with open_node(settings(), key=key_of("lonely")) as node:
        async with raises(errors.DhtFailed):
            await node.provide(key_of("k"))
        async with raises(errors.DhtFailed):
            await node.find_providers(key_of("k"), count_max=1)


class Newest:
    """Values are numbers in ASCII; the largest is the newest."""

    def validate(self, key: bytes, value: bytes) -> None:
        if not value.isdigit():
            raise errors.RecordInvalid("not a number")

    def select(self, key: bytes, values: list[bytes]) -> int:
        return max(range(len(values)), key=lambda place: int(values[place]))


@check
async def values_are_kept_by_others_and_the_best_one_wins(open_node: OpenNode) -> None:
    validators = {"contract": Newest()}
    key = b"/contract/clock"
    async with open_node(settings(validators=validators), key=key_of("server")) as server:
        async with (
            open_node(settings(server, validators=validators), key=key_of("writer")) as writer,
            open_node(settings(server, dht_mode=DhtMode.CLIENT, validators=validators), key=key_of("reader")) as reader,
        ):
            for node in (writer, reader):
                await node.wait_connected(timeout_s=PATIENCE_S)
            assert await reader.get_value(key) is None
            await writer.put_value(key, b"7")
            assert await reader.get_value(key) == b"7"
            await reader.put_value(key, b"12")
            assert await writer.get_value(key) == b"12"
            assert await server.get_value(key) == b"12"
            for bad_key, value in (
                (key, b"not a number"),
                (key, b"3"),
                (key, b"9" * 9000),
                (b"/other/x", b"1"),
                (b"bare", b"1"),
                (b"/contract/" + b"x" * 200, b"1"),
            ):
                async with raises(errors.RecordInvalid):
                    await reader.put_value(bad_key, value)
            async with raises(errors.RecordInvalid):
                await reader.get_value(b"/other/x")
            assert await writer.get_value(key) == b"12", "what was refused has changed nothing"


@check
async def a_value_that_nobody_takes_or_can_be_asked_for_is_an_error(open_node: OpenNode) -> None:
    validators = {"contract": Newest()}
    async with open_node(settings(validators=validators), key=key_of("lonely")) as node:
        async with raises(errors.DhtFailed):
            await node.put_value(b"/contract/x", b"1")
        async with raises(errors.DhtFailed):
            await node.get_value(b"/contract/y")
    async with open_node(settings(), key=key_of("ignorant")) as server:
        async with open_node(settings(server, validators=validators), key=key_of("writer")) as writer:
            await writer.wait_connected(timeout_s=PATIENCE_S)
            async with raises(errors.DhtFailed):
                await writer.put_value(b"/contract/x", b"1")
