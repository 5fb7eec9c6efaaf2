"""The DHT: providers are found through others, and its absence is told."""

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
