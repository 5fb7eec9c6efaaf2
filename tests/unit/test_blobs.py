"""`/cocoon/blob/1` over the memory network."""

from __future__ import annotations

import hashlib
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from cocoon.blobs import BLOB_PROTOCOL, BlobFetcher, BlobShelf
from cocoon.errors import LimitExceeded, RemoteProtocolError, Unavailable
from cocoon.ports import PeerAddresses
from cocoon.wire import limits
from cocoon.wire.codec import encode
from cocoon.wire.messages import BlobPiece
from tests.fakes.little_market import open_market


def name(blob: bytes) -> bytes:
    return hashlib.sha256(blob).digest()


def run(scenario):
    trio.run(scenario, clock=MockClock(autojump_threshold=0))


def at(network) -> PeerAddresses:
    return PeerAddresses(peer=network.peer, addresses=network.addresses())


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 1_000_000])
def test_a_blob_of_any_size_arrives_whole_and_only_once_over_the_wire(size):
    async def scenario():
        async with open_market() as market:
            server, client = await market.network("server"), await market.network("client", listens=False)
            shelf, blob = BlobShelf(), bytes(size)
            shelf.put([blob])
            shelf.serve(server)
            fetcher = BlobFetcher(client)
            assert await fetcher.fetch(at(server), name(blob), bytes_max=size) == blob
            market.wires.crash(server.peer)
            assert await fetcher.fetch(at(server), name(blob), bytes_max=size) == blob

    run(scenario)


def test_what_is_not_on_the_shelf_is_said_to_be_missing():
    async def scenario():
        async with open_market() as market:
            server, client = await market.network("server"), await market.network("client", listens=False)
            BlobShelf().serve(server)
            with pytest.raises(Unavailable, match="does not have"):
                await BlobFetcher(client).fetch(at(server), bytes(32), bytes_max=1_000)

    run(scenario)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([BlobPiece(total=5, data=b"wrong")], RemoteProtocolError),
        ([BlobPiece(total=2_000, data=bytes(1_000))], LimitExceeded),
        ([BlobPiece(total=5, data=b"too much")], LimitExceeded),
        ([BlobPiece(total=500, data=b"")], RemoteProtocolError),
        ([BlobPiece(total=500, data=b"half")], Unavailable),
    ],
)
def test_a_lying_source_is_refused(pieces, error):
    async def scenario():
        async with open_market() as market:
            server, client = await market.network("server"), await market.network("client", listens=False)

            async def lie(stream):
                await stream.receive()
                for piece in pieces:
                    await stream.send(encode(piece))

            server.handle(BLOB_PROTOCOL, lie, frame_bytes_max=limits.BLOB_MESSAGE_BYTES_MAX)
            with pytest.raises(error):
                await BlobFetcher(client).fetch(at(server), name(b"right"), bytes_max=1_000)

    run(scenario)


def test_an_interrupted_fetch_goes_on_where_it_stopped():
    async def scenario():
        async with open_market() as market:
            server, client = await market.network("server"), await market.network("client", listens=False)
            blob = bytes(range(256)) * 2_000
            offsets = []

            async def half(stream):
                from cocoon.wire.codec import decode_as
                from cocoon.wire.messages import BlobQuery

                query = decode_as(await stream.receive(), BlobQuery, bytes_max=1_000)
                offsets.append(query.offset)
                for start in range(query.offset, min(query.offset + 200_000, len(blob)), 50_000):
                    await stream.send(encode(BlobPiece(total=len(blob), data=blob[start : start + 50_000])))

            server.handle(BLOB_PROTOCOL, half, frame_bytes_max=limits.BLOB_MESSAGE_BYTES_MAX)
            fetcher = BlobFetcher(client)
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await fetcher.fetch(at(server), name(blob), bytes_max=len(blob))
            assert await fetcher.fetch(at(server), name(blob), bytes_max=len(blob)) == blob
            assert offsets == [0, 200_000, 400_000]

    run(scenario)


def test_what_one_source_sent_before_it_broke_is_not_blamed_on_the_next():
    async def scenario():
        async with open_market() as market:
            liar, honest = await market.network("liar"), await market.network("honest")
            client = await market.network("client", listens=False)
            blob = bytes(100_000)

            async def begin_wrong(stream):
                await stream.receive()
                await stream.send(encode(BlobPiece(total=len(blob), data=b"x" * 1_000)))

            liar.handle(BLOB_PROTOCOL, begin_wrong, frame_bytes_max=limits.BLOB_MESSAGE_BYTES_MAX)
            shelf = BlobShelf()
            shelf.put([blob])
            shelf.serve(honest)
            fetcher = BlobFetcher(client)
            with pytest.raises(Unavailable):
                await fetcher.fetch(at(liar), name(blob), bytes_max=len(blob))
            assert await fetcher.fetch(at(honest), name(blob), bytes_max=len(blob)) == blob

    run(scenario)


def test_two_fetches_of_one_blob_at_a_time_count_once_towards_what_is_kept(monkeypatch):
    monkeypatch.setattr("cocoon.blobs.CACHE_BYTES_MAX", 250_000)

    async def scenario():
        async with open_market() as market:
            server, client = await market.network("server"), await market.network("client", listens=False)
            blobs = [bytes([n]) * 100_000 for n in range(4)]
            shelf = BlobShelf()
            shelf.serve(server)
            fetcher = BlobFetcher(client)
            for blob in blobs:
                shelf.put([blob])
                async with trio.open_nursery() as nursery:
                    for _ in range(2):
                        nursery.start_soon(partial(fetcher.fetch, at(server), name(blob), bytes_max=len(blob)))
            assert [fetcher.cached(name(blob)) is not None for blob in blobs] == [False, False, True, True]

    run(scenario)
