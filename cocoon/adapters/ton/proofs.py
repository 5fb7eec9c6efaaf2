"""Checks that a chain server's answers prove themselves: blocks, states, accounts, absence, history.

Trust starts at a masterchain block id that the caller vouches for: agreed by several servers, or proven here from a
key block by the signatures of more than two thirds of its validators. Nothing a server says is parsed before its hash
fits, and the shard is found by the account's own bits, so an answer from another shard proves nothing.

pytoniq-core reads cells and accounts; its own proof checks are not used, because as of 0.2.1 they do not compare a key
block's configuration with that block's hash, count one validator's signature as often as it is repeated, and accept a
missing account without proof. Values in, values out; every failure is `ProofInvalid`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pytoniq_core import Cell
from pytoniq_core.tlb.account import Account
from pytoniq_core.tlb.config import ConfigParam34
from pytoniq_core.tlb.transaction import Transaction

from ...errors import BadSignature, CocoonError, ProofInvalid
from ...wire.signing import verify
from .hashmap import lookup

ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024  # a masterchain configuration is 150 KB, a large account a few MB
VALIDATORS_MAX: Final = 1_024
LINKS_MAX: Final = 64  # of one partial block proof; servers send 16
SHARD_DEPTH_MAX: Final = 60
MASTERCHAIN: Final = -1
WHOLE_SHARD: Final = -(1 << 63)
MERKLE_PROOF, MERKLE_UPDATE = 3, 4
KEY_PREFIX: Final = b"\xc6\xb4\x13\x48"  # TL: pub.ed25519
BLOCK_ID_PREFIX: Final = b"pn\x0b\xc5"  # TL: ton.blockId, what validators sign


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRef:
    """tonNode.blockIdExt."""

    workchain: int
    shard: int
    seqno: int
    root_hash: bytes
    file_hash: bytes

    @staticmethod
    def from_tl(value: Mapping[str, Any]) -> BlockRef:
        """From pytoniq's TL dictionary. Raises `ProofInvalid`."""
        with reading("a block id"):
            block = BlockRef(
                workchain=int(value["workchain"]),
                shard=int(value["shard"]),
                seqno=int(value["seqno"]),
                root_hash=bytes.fromhex(value["root_hash"]),
                file_hash=bytes.fromhex(value["file_hash"]),
            )
            if len(block.root_hash) != 32 or len(block.file_hash) != 32 or not 0 <= block.seqno < 1 << 31:
                raise ProofInvalid("a malformed block id")
            return block

    def to_tl(self) -> dict[str, Any]:
        """As pytoniq wants it."""
        return {
            "workchain": self.workchain,
            "shard": self.shard,
            "seqno": self.seqno,
            "root_hash": self.root_hash.hex(),
            "file_hash": self.file_hash.hex(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHeader:
    """What a proven header says."""

    seqno: int
    time_s: int
    is_key: bool
    state_hash: bytes  # of the state that the block leads to


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenAccount:
    """An account that is there."""

    balance_nano: int
    code: Cell | None  # None: not deployed, or frozen
    data: Cell | None
    last_lt: int
    last_hash: bytes


@contextmanager
def reading(what: str) -> Iterator[None]:
    """The border to the cell library, which raises whatever it trips over: for a server's bytes it means one thing."""
    try:
        yield
    except CocoonError:
        raise
    except Exception as error:
        raise ProofInvalid(f"{what} cannot be read") from error


def part_of(answer: Mapping[str, Any], name: str) -> Any:
    """A field of an answer, which may be an answer to something else."""
    if name not in answer:
        raise ProofInvalid(f"an answer without its {name}")
    return answer[name]


def roots(data: Any, count: int) -> list[Cell]:
    """The roots of a bag of cells that must have so many."""
    if not isinstance(data, bytes) or len(data) > ANSWER_BYTES_MAX:
        raise ProofInvalid("an answer larger than any true one")
    with reading("a bag of cells"):
        found = Cell.from_boc(data)
    if len(found) != count:
        raise ProofInvalid(f"a bag of {len(found)} cells where {count} belong")
    return list(found)


def proven(cell: Cell, expected_hash: bytes) -> Cell:
    """What a Merkle proof shows of the cell with this hash."""
    if cell.type_ != MERKLE_PROOF or len(cell.refs) != 1:
        raise ProofInvalid("not a Merkle proof")
    shown = cell.refs[0]
    if bytes(shown.get_hash(0)) != expected_hash:
        raise ProofInvalid("a proof of something else: the hashes differ")
    return shown


def read_header(block: Cell) -> BlockHeader:
    """The header of a block whose hash is already checked."""
    with reading("a block header"):
        update = block.refs[2]
        if update.type_ != MERKLE_UPDATE:
            raise ProofInvalid("a block without a state update")
        part = block.refs[0].begin_parse()
        if part.load_bytes(4) != b"\x9b\xc7\xa9\x87":
            raise ProofInvalid("a block without a header")
        part.skip_bits(32)
        flags = part.load_uint(8)
        part.skip_bits(8)
        seqno = part.load_uint(32)
        part.skip_bits(32 + 104)
        return BlockHeader(
            seqno=seqno,
            time_s=part.load_uint(32),
            is_key=bool(flags & 2),
            state_hash=bytes(update.refs[1].get_hash(0)),
        )


def check_header(data: Any, block: BlockRef) -> BlockHeader:
    """The header that a bag with one proof shows of this block."""
    (proof,) = roots(data, 1)
    return _header_of(proof, block)


def check_account(answer: Mapping[str, Any], block: BlockRef, account: bytes) -> ProvenAccount | None:
    """What a trusted masterchain block says of an account of the basechain; None: proven to be absent."""
    shard_root = _shard_of(part_of(answer, "shard_proof"), block, account)
    header_proof, state_proof = roots(part_of(answer, "proof"), 2)
    header = read_header(proven(header_proof, shard_root))
    state = proven(state_proof, header.state_hash)
    with reading("a shard state"):
        accounts = state.refs[1].begin_parse()
        if state.refs[1].is_exotic:
            raise ProofInvalid("the proof was cut where the answer is")
        leaf = None
        if accounts.load_bit():
            leaf = lookup(accounts.load_ref(), int.from_bytes(account, "big"), key_bits=256)
    shown = part_of(answer, "state")
    if leaf is None:
        if shown:
            raise ProofInvalid("a state for an account that is proven to be absent")
        return None
    with reading("an account"):
        leaf.skip_bits(5)
        leaf.load_coins()
        leaf.load_maybe_ref()
        proven_root = leaf.load_ref()
        last_hash, last_lt = bytes(leaf.load_bytes(32)), int(leaf.load_uint(64))
    (root,) = roots(shown, 1) if shown else (None,)
    if root is None:
        raise ProofInvalid("an account that exists, without its state")
    if bytes(root.get_hash(0)) != bytes(proven_root.get_hash(0)) or root.level_mask.mask:
        raise ProofInvalid("an account state that is not the proven one")
    with reading("an account"):
        parsed = Account.deserialize(root.begin_parse())
        if parsed is None:
            return None
        init = getattr(parsed.storage.state, "state_init", None)
        return ProvenAccount(
            balance_nano=int(parsed.storage.balance.grams),
            code=None if init is None else init.code,
            data=None if init is None else init.data,
            last_lt=last_lt,
            last_hash=last_hash,
        )


def check_history(data: Any, last_hash: bytes) -> list[Any]:
    """Transactions, newest first, each linked by hash to the one before; pytoniq-core's `Transaction`."""
    if not isinstance(data, bytes) or len(data) > ANSWER_BYTES_MAX:
        raise ProofInvalid("an answer larger than any true one")
    with reading("a list of transactions"):
        cells = Cell.from_boc(data)
    found = []
    expected = last_hash
    for cell in cells:
        if bytes(cell.get_hash(0)) != expected or cell.level_mask.mask:
            raise ProofInvalid("a history with a hole: the hashes do not link")
        with reading("a transaction"):
            transaction = Transaction.deserialize(cell.begin_parse())
            expected = bytes(transaction.prev_trans_hash)
        found.append(transaction)
    return found


def check_links(answer: Mapping[str, Any], known: BlockRef, target: BlockRef) -> tuple[BlockRef, BlockRef]:
    """Follow a partial block proof from a trusted key block; how far it leads, and the newest key block on the way.

    Only forward links count. The configuration that names the validators must be the known block's own, and a
    validator counts once, however often it signed.
    """
    steps = answer.get("steps")
    if not isinstance(steps, list) or len(steps) > LINKS_MAX:
        raise ProofInvalid("a block proof without steps, or with too many")
    at, newest_key = known, known
    for step in steps:
        if not isinstance(step, dict) or "config_proof" not in step or "signatures" not in step:
            raise ProofInvalid("a block proof that leads backwards")
        if BlockRef.from_tl(part_of(step, "from")) != at or at != newest_key:
            raise ProofInvalid("a block proof whose links do not join at key blocks")
        to = BlockRef.from_tl(part_of(step, "to"))
        if to.workchain != MASTERCHAIN or not at.seqno < to.seqno <= target.seqno:
            raise ProofInvalid("a block proof that leads elsewhere")
        (dest_proof,) = roots(part_of(step, "dest_proof"), 1)
        header = _header_of(dest_proof, to)
        (config_proof,) = roots(step["config_proof"], 1)
        _check_signatures(step["signatures"], _validators(proven(config_proof, at.root_hash)), to)
        at = to
        if header.is_key:
            newest_key = to
    return at, newest_key


def _header_of(proof: Cell, block: BlockRef) -> BlockHeader:
    header = read_header(proven(proof, block.root_hash))
    if header.seqno != block.seqno:
        raise ProofInvalid("a block with another number than its id says")
    return header


def _shard_of(data: Any, block: BlockRef, account: bytes) -> bytes:
    """The root hash of the basechain block, in the trusted masterchain block, whose shard holds the account."""
    header_proof, state_proof = roots(data, 2)
    header = _header_of(header_proof, block)
    state = proven(state_proof, header.state_hash)
    with reading("a masterchain state"):
        custom = state.refs[3].begin_parse()
        if custom.load_bytes(2) != b"\xcc\x26" or not custom.load_bit():
            raise ProofInvalid("a masterchain state without shards")
        leaf = lookup(custom.load_ref(), 0, key_bits=32)
        if leaf is None:
            raise ProofInvalid("a masterchain state without a basechain")
        part = leaf.load_ref().begin_parse()
        path = int.from_bytes(account, "big")
        for depth in range(SHARD_DEPTH_MAX):
            if part.is_special():
                raise ProofInvalid("the proof was cut where the shard is")
            if not part.load_bit():
                break
            part = part.preload_ref(path >> (255 - depth) & 1).begin_parse()
        else:
            raise ProofInvalid("shards of an impossible depth")
        if part.load_uint(4) not in (0xA, 0xB):
            raise ProofInvalid("a malformed shard")
        part.skip_bits(32 + 32 + 64 + 64)
        return bytes(part.load_bytes(32))


def _validators(key_block: Cell) -> dict[bytes, tuple[bytes, int]]:
    """Short id → key and weight of everybody who signs masterchain blocks after this key block."""
    with reading("a key block"):
        if not read_header(key_block).is_key:
            raise ProofInvalid("a configuration from a block that is no key block")
        custom = key_block.refs[3].refs[-1].begin_parse()
        if custom.load_bytes(2) != b"\xcc\xa5" or not custom.load_bit():
            raise ProofInvalid("a key block without a configuration")
        leaf = lookup(key_block.refs[3].refs[-1].refs[-1], 34, key_bits=32)
        if leaf is None:
            raise ProofInvalid("a configuration without validators")
        listed = ConfigParam34.deserialize(leaf.load_ref().begin_parse()).cur_validators
        if len(listed.list) > VALIDATORS_MAX:
            raise ProofInvalid("more validators than there can be")
        chosen = [listed.list[index] for index in sorted(listed.list)][: listed.main]
        return {
            hashlib.sha256(KEY_PREFIX + node.public_key.pubkey).digest(): (node.public_key.pubkey, int(node.weight))
            for node in chosen
        }


def _check_signatures(given: Any, validators: dict[bytes, tuple[bytes, int]], block: BlockRef) -> None:
    """More than two thirds of the weight signed this block."""
    with reading("a set of signatures"):
        if "candidate" in given:
            raise ProofInvalid("signatures of a kind that is not understood here")
        signatures = given["signatures"]
        if len(signatures) > VALIDATORS_MAX:
            raise ProofInvalid("more signatures than there are validators")
        message = BLOCK_ID_PREFIX + block.root_hash + block.file_hash
        signed: dict[bytes, int] = {}
        for part in signatures:
            short_id = bytes.fromhex(part["node_id_short"])
            if short_id not in validators:
                raise ProofInvalid("a signature of somebody who is no validator")
            key, weight = validators[short_id]
            try:
                verify(bytes(key), part["signature"], message)
            except BadSignature as error:
                raise ProofInvalid("a block with a forged signature") from error
            signed[short_id] = weight
        if sum(signed.values()) * 3 <= sum(weight for _, weight in validators.values()) * 2:
            raise ProofInvalid("a block that too few validators signed")
