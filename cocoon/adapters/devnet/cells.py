"""Cells that only a chain itself writes: proofs, updates, augmented dictionaries, bags with several roots.

pytoniq-core reads all of these but writes none. Values in, cells out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from pytoniq_core import Cell, begin_cell
from pytoniq_core.boc.tvm_bitarray import TvmBitarray
from pytoniq_core.crypto.crc import crc32c

Leaf = TypeVar("Leaf")

PRUNED: Final = 1
MERKLE_PROOF: Final = 3
MERKLE_UPDATE: Final = 4
CELLS_MAX: Final = 0xFFFF  # in one of our bags: two bytes per reference


def exotic(data: bytes, refs: list[Cell], kind: int) -> Cell:
    """A cell of a special type."""
    bits = TvmBitarray(1023)
    bits.frombytes(data)
    return Cell(bits, refs, kind)


def pruned(cell: Cell) -> Cell:
    """What is left of a cell that a proof leaves out: its hash and depth."""
    return exotic(b"\1\1" + cell.get_hash(0) + cell.get_depth(0).to_bytes(2, "big"), [], PRUNED)


def with_refs(cell: Cell, change: Callable[[int, Cell], Cell]) -> Cell:
    """The same cell with its references changed."""
    return Cell(cell.bits, [change(index, ref) for index, ref in enumerate(cell.refs)], cell.type_)


def merkle_proof(cell: Cell) -> Cell:
    """The root of a proof."""
    return exotic(b"\3" + cell.get_hash(0) + cell.get_depth(0).to_bytes(2, "big"), [cell], MERKLE_PROOF)


def merkle_update(old: Cell, new: Cell) -> Cell:
    """From one state to the next, with both cut to their hashes."""
    hashes = old.get_hash(0) + new.get_hash(0)
    depths = old.get_depth(0).to_bytes(2, "big") + new.get_depth(0).to_bytes(2, "big")
    return exotic(b"\4" + hashes + depths, [pruned(old), pruned(new)], MERKLE_UPDATE)


def bag_of_cells(roots: list[Cell]) -> bytes:
    """A bag with any number of roots."""
    order: list[Cell] = []
    seen: set[bytes] = set()
    for root in roots:
        _visit(root, order, seen)
    order.reverse()
    assert len(order) <= CELLS_MAX
    index = {cell._hash: place for place, cell in enumerate(order)}
    body = b"".join(
        cell._descriptors + cell._data_bytes + b"".join(index[ref._hash].to_bytes(2, "big") for ref in cell.refs)
        for cell in order
    )
    head = (
        b"\xb5\xee\x9c\x72\x42\x04"  # with a checksum; two bytes per reference, four per offset
        + len(order).to_bytes(2, "big")
        + len(roots).to_bytes(2, "big")
        + b"\0\0"
        + len(body).to_bytes(4, "big")
        + b"".join(index[root._hash].to_bytes(2, "big") for root in roots)
    )
    return head + body + bytes(crc32c(head + body))


def _visit(root: Cell, order: list[Cell], seen: set[bytes]) -> None:
    """Append the tree so that every cell comes after those below it."""
    stack = [(root, False)]
    while stack:
        cell, is_done = stack.pop()
        if is_done:
            order.append(cell)
        elif cell._hash not in seen:
            seen.add(cell._hash)
            stack.append((cell, True))
            stack.extend((ref, False) for ref in reversed(cell.refs))


def store_coins(builder: Any, amount_nano: int = 0) -> Any:
    """A `CurrencyCollection` without extra currencies."""
    return builder.store_coins(amount_nano).store_bit(0)


def augmented(
    items: Mapping[int, Leaf],
    *,
    key_bits: int,
    put_leaf: Callable[[Any, Leaf], None],
    amount_of: Callable[[Leaf], int],
    put_extra: Callable[[Any, int], None],
) -> tuple[Cell, int]:
    """A `HashmapAug` whose extra is a sum; its root and the sum. At least one item."""

    def node(keys: list[int], depth: int) -> tuple[Cell, int]:
        left = key_bits - depth
        mask = (1 << left) - 1
        first, last = keys[0] & mask, keys[-1] & mask
        length = left if len(keys) == 1 else left - (first ^ last).bit_length()
        builder = begin_cell()
        _put_label(builder, first >> (left - length) if length else 0, length, left)
        if length == left:
            leaf = items[keys[0]]
            put_extra(builder, amount_of(leaf))
            put_leaf(builder, leaf)
            return builder.end_cell(), amount_of(leaf)
        bit = left - length - 1
        sides = [node([key for key in keys if key >> bit & 1 == side], depth + length + 1) for side in (0, 1)]
        total = sides[0][1] + sides[1][1]
        builder.store_ref(sides[0][0]).store_ref(sides[1][0])
        put_extra(builder, total)
        return builder.end_cell(), total

    return node(sorted(items), 0)


def cut_to_key(root: Cell, key: int, *, key_bits: int) -> Cell:
    """A dictionary with everything cut away that does not lie on the way to `key`; the leaf's references too."""
    part = root.begin_parse()
    label, length = _read_label(part, key_bits)
    left = key_bits - length
    if left == 0 or label != (key >> left) & ((1 << length) - 1):
        return with_refs(root, lambda _, ref: pruned(ref))
    side = key >> (left - 1) & 1
    return with_refs(root, lambda index, ref: cut_to_key(ref, key, key_bits=left - 1) if index == side else pruned(ref))


def _put_label(builder: Any, label: int, length: int, left: int) -> None:
    width = left.bit_length()
    is_same = length > 0 and label in (0, (1 << length) - 1)
    short, long, same = 2 * length + 2, 2 + width + length, 3 + width if is_same else 1 << 30
    if short <= long and short <= same:
        builder.store_bits("0" + "1" * length + "0")
    elif same < long:
        builder.store_bits("11").store_bit(label & 1).store_uint(length, width)
        return
    else:
        builder.store_bits("10").store_uint(length, width)
    if length:
        builder.store_uint(label, length)


def _read_label(part: Any, left: int) -> tuple[int, int]:
    width = left.bit_length()
    if not part.load_bit():
        length = 0
        while part.load_bit():
            length += 1
    elif not part.load_bit():
        length = part.load_uint(width)
    else:
        bit, length = part.load_bit(), part.load_uint(width)
        return ((1 << length) - 1 if bit else 0), length
    return (part.load_uint(length) if length else 0), length
