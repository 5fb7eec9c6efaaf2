"""`/cocoon/blob/1`: small content-addressed files between a provider and the client that chose it.

Served is only what one's own offers and evidence refer to (rule G3); nothing is stored for others. A fetch has one
source, starts where an earlier one stopped, and believes nothing: every blob must hash to its name, and one that
is larger than what the caller expects is dropped at once.

Collateral, RIMs and event logs travel this way once and are kept by their digest; a second session then costs only
the quote and the GPU's report.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import trio

from .errors import LimitExceeded, RemoteProtocolError, Unavailable
from .ports import Network, PeerAddresses, Stream
from .types import Digest, PeerId
from .wire import limits
from .wire.codec import decode_as, encode
from .wire.messages import BlobPiece, BlobQuery

BLOB_PROTOCOL: Final = "/cocoon/blob/1"
FETCH_TIMEOUT_S: Final = 30.0
SERVE_TIMEOUT_S: Final = 60.0
STREAMS_PER_PEER_MAX: Final = 8
CACHE_BYTES_MAX: Final = 64 * 1024 * 1024
PARTIAL_MAX: Final = 16  # interrupted fetches that may be resumed


class BlobShelf:
    """What we serve: set by our own offers and evidence, replaced as those change."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, bytes] = {}

    def put(self, blobs: Iterable[bytes]) -> None:
        """Serve these from now on. Raises `LimitExceeded` for one over 16 MiB."""
        for blob in blobs:
            if len(blob) > limits.BLOB_BYTES_MAX:
                raise LimitExceeded(f"a blob of {len(blob)} bytes; at most {limits.BLOB_BYTES_MAX}")
            digest = hashlib.sha256(blob).digest()
            self._blobs.pop(digest, None)
            self._blobs[digest] = blob
        while sum(map(len, self._blobs.values())) > CACHE_BYTES_MAX:
            del self._blobs[next(iter(self._blobs))]  # the oldest: collateral that newer evidence has replaced

    def serve(self, network: Network) -> None:
        """Answer other peers' queries."""
        network.handle(
            BLOB_PROTOCOL,
            self._answer,
            frame_bytes_max=limits.BLOB_MESSAGE_BYTES_MAX,
            streams_per_peer_max=STREAMS_PER_PEER_MAX,
        )

    async def _answer(self, stream: Stream) -> None:
        with trio.move_on_after(SERVE_TIMEOUT_S):
            data = await stream.receive()
            if data is None:
                return
            query = decode_as(data, BlobQuery, bytes_max=limits.BLOB_MESSAGE_BYTES_MAX)
            blob = self._blobs.get(query.digest, b"")
            offset = query.offset
            while True:
                piece = blob[offset : offset + limits.BLOB_PIECE_BYTES_MAX]
                await stream.send(encode(BlobPiece(total=len(blob), data=piece)))
                offset += len(piece)
                if not piece or offset >= len(blob):
                    return


class BlobFetcher:
    """Gets blobs by digest from a chosen peer, and keeps the ones used last."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._kept: OrderedDict[Digest, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._partial: OrderedDict[tuple[PeerId, Digest], bytearray] = OrderedDict()  # by source: it answers for all

    def cached(self, digest: Digest) -> bytes | None:
        """The blob, if it was fetched before."""
        blob = self._kept.get(digest)
        if blob is not None:
            self._kept.move_to_end(digest)
        return blob

    async def fetch(self, source: PeerAddresses, digest: Digest, *, bytes_max: int) -> bytes:
        """The blob with this SHA-256. Raises `Unavailable` (not had, or interrupted: call again to go on) or
        `RemoteProtocolError` (larger than `bytes_max`, or not the one named)."""
        kept = self.cached(digest)
        if kept is not None:
            return kept
        partial = self._partial.pop((source.peer, digest), bytearray())
        try:
            with trio.move_on_after(FETCH_TIMEOUT_S) as patience:
                await self._read(source, digest, partial, min(bytes_max, limits.BLOB_BYTES_MAX))
            if patience.cancelled_caught:
                raise Unavailable(f"{source.peer} did not send the blob within {FETCH_TIMEOUT_S:.0f} s")
        except Unavailable:
            self._keep_partial((source.peer, digest), partial)
            raise
        blob = bytes(partial)
        if hashlib.sha256(blob).digest() != digest:
            raise RemoteProtocolError(f"{source.peer} sent another blob than the one named")
        self._keep(digest, blob)
        return blob

    async def _read(self, source: PeerAddresses, digest: Digest, into: bytearray, bytes_max: int) -> None:
        stream = await self._network.open_stream(source, BLOB_PROTOCOL, frame_bytes_max=limits.BLOB_MESSAGE_BYTES_MAX)
        try:
            await stream.send(encode(BlobQuery(digest=digest, offset=len(into))))
            while True:
                data = await stream.receive()
                if data is None:
                    raise Unavailable(f"{source.peer} stopped in the middle of a blob")
                piece = decode_as(data, BlobPiece, bytes_max=limits.BLOB_MESSAGE_BYTES_MAX)
                if piece.total == 0:
                    raise Unavailable(f"{source.peer} does not have the blob that its evidence names", retryable=False)
                if piece.total > bytes_max or len(into) + len(piece.data) > piece.total:
                    raise LimitExceeded(f"a blob of {piece.total} bytes; at most {bytes_max} were expected")
                into += piece.data
                if len(into) == piece.total:
                    return
                if not piece.data:
                    raise RemoteProtocolError(f"{source.peer} sent an empty piece")
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()

    def _keep(self, digest: Digest, blob: bytes) -> None:
        if digest in self._kept:
            return  # another fetch of it was quicker
        if digest in self._kept:  # two sessions fetched it at the same time
            return
        self._kept[digest] = blob
        self._kept_bytes += len(blob)
        while self._kept_bytes > CACHE_BYTES_MAX:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped)

    def _keep_partial(self, key: tuple[PeerId, Digest], partial: bytearray) -> None:
        if partial:
            self._partial[key] = partial
            while len(self._partial) > PARTIAL_MAX:
                self._partial.popitem(last=False)
