"""One quote for many challenges: a Merkle tree over clients' nonces (rule S6).

A quote takes about 50 ms to make, so under load a provider commits to the nonces of all waiting clients at once:
S holds the root in place of one nonce, and each client gets the path to its own. Leaves and nodes are hashed in
different domains, so a node can never be shown as somebody's nonce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import StaleEvidence
from ..wire.signing import domain_hash
from . import limits


@dataclass(frozen=True, slots=True, kw_only=True)
class NoncePath:
    """Where a nonce stands in the tree, and the siblings from leaf to root."""

    index: int
    siblings: tuple[bytes, ...]


def committed_nonce(nonce: bytes, *, index: int, path: Sequence[bytes]) -> bytes:
    """What S must hold for our nonce: the nonce itself without a path, else the root above it.

    Raises `StaleEvidence` for a path too long or an index outside the tree.
    """
    if len(path) > limits.NONCE_PATH_MAX or index >> len(path):
        raise StaleEvidence("the nonce's place is outside its tree", reason="nonce.path")
    if not path:
        return nonce
    value = _leaf(nonce)
    for sibling in path:
        value = _node(sibling, value) if index & 1 else _node(value, sibling)
        index >>= 1
    return value


def commit(nonces: Sequence[bytes]) -> tuple[bytes, tuple[NoncePath, ...]]:
    """The root over 1 to 1,024 nonces and each one's path. A single nonce is its own root, with an empty path."""
    assert 1 <= len(nonces) <= 1 << limits.NONCE_PATH_MAX
    if len(nonces) == 1:
        return nonces[0], (NoncePath(index=0, siblings=()),)
    depth = (len(nonces) - 1).bit_length()
    level = [_leaf(nonce) for nonce in nonces]
    level += [level[-1]] * ((1 << depth) - len(level))  # padding repeats the last leaf: it proves nothing new
    paths: list[list[bytes]] = [[] for _ in nonces]
    for height in range(depth):
        for i, path in enumerate(paths):
            path.append(level[(i >> height) ^ 1])
        level = [_node(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return level[0], tuple(NoncePath(index=i, siblings=tuple(path)) for i, path in enumerate(paths))


def _leaf(nonce: bytes) -> bytes:
    return domain_hash("nonce-leaf", nonce)


def _node(left: bytes, right: bytes) -> bytes:
    return domain_hash("nonce-node", left, right)
