"""Keys of provider records. A program names content by a SHA-256 digest; on the wire such a key is a multihash.

kad-dht/README.md, "Content provider routing": "the rendezvous point should converge on the minimal thing everyone
agrees on, which is the multihash, not the CID". js-libp2p resets a stream whose key is none. Keys of values
(`/namespace/…`) and of peers (their ids) go over the wire as they are; the distance of any key is over the hash of what
is on the wire.
"""

from __future__ import annotations

from p2p.protobuf import ProtobufInvalid, read_varint

SHA2_256 = b"\x12\x20"  # multihash code and length
DIGEST_BYTES = 32
ED25519_PEER = b"\x00\x24"  # code and length of an ed25519 peer id: the identity multihash of its public key
ED25519_PEER_BYTES = 38
MULTIHASH_DIGEST_BYTES_MAX = 64  # sha2-512; no hash in use is longer


def provider_key(digest: bytes) -> bytes:
    """The multihash of a SHA-256 digest. Raises ValueError for another length: that is a mistake of the caller's."""
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a SHA-256 digest has {DIGEST_BYTES} bytes, not {len(digest)}")
    return SHA2_256 + digest


def is_multihash(key: bytes) -> bool:
    """Whether the bytes are one multihash: code, length, and so many bytes."""
    if key.startswith(ED25519_PEER) and len(key) == ED25519_PEER_BYTES:
        return True  # nearly every one: an answer names twenty peers
    try:
        _, position = read_varint(key, 0, len(key))
        size, position = read_varint(key, position, len(key))
    except ProtobufInvalid:
        return False
    return 0 < size <= MULTIHASH_DIGEST_BYTES_MAX and position + size == len(key)
