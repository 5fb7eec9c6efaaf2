"""TON dictionaries read with suspicion: every entry of a small one, or one entry of a proof with the rest cut away.

A cut branch is an error where the entry would be, never an absence, and depth is bounded by the key's length. Labels
are as block.tlb has them (`hml_short`, `hml_long`, `hml_same`). Reading only.
"""

from __future__ import annotations

from typing import Any

from pytoniq_core import Cell

from ...errors import ProofInvalid

_ORDINARY = -1


def lookup(root: Cell, key: int, *, key_bits: int) -> Any | None:
    """The slice of an entry's leaf (for an augmented dictionary: extra first), or None when it is provably absent.

    Raises `ProofInvalid` when the place where it would be was cut away.
    """
    cell, left = root, key_bits
    while True:
        part, label, length = _open(cell, left)
        left -= length
        if label != (key >> left) & ((1 << length) - 1):
            return None
        if left == 0:
            return part
        left -= 1
        cell = part.preload_ref((key >> left) & 1)


def entries(root: Cell, *, key_bits: int, count_max: int) -> dict[int, Any]:
    """All entries, key → slice. Raises `ProofInvalid` when a part is cut away or there are too many."""
    found: dict[int, Any] = {}
    open_cells = [(root, 0, key_bits)]
    while open_cells:
        cell, prefix, left = open_cells.pop()
        part, label, length = _open(cell, left)
        left -= length
        prefix = prefix << length | label
        if left == 0:
            if len(found) >= count_max:
                raise ProofInvalid(f"a dictionary of more than {count_max} entries")
            found[prefix] = part
            continue
        open_cells += [(part.preload_ref(bit), prefix << 1 | bit, left - 1) for bit in (0, 1)]
    return found


def _open(cell: Cell, bits_left: int) -> tuple[Any, int, int]:
    """A node's slice behind its label, the label, and the label's length."""
    if cell.type_ != _ORDINARY:
        raise ProofInvalid("the proof was cut where the answer is")
    part = cell.begin_parse()
    width = bits_left.bit_length()
    if not part.load_bit():
        length = 0
        while part.load_bit():
            length += 1
        label = part.load_uint(length) if length else 0
    elif not part.load_bit():
        length = part.load_uint(width) if width else 0
        label = part.load_uint(length) if length else 0
    else:
        bit = part.load_bit()
        length = part.load_uint(width) if width else 0
        label = (1 << length) - 1 if bit else 0
    if length > bits_left:
        raise ProofInvalid("a dictionary label that is longer than its key")
    return part, label, length
