"""Blocks over the ledger: every one holds true states, linked by hash and signed by the devnet's one validator.

One basechain block and one masterchain block at a time, with the same number. The first masterchain block is the key
block that holds the configuration, and so the validator's key; it is the `init_block` of the global configuration
file, from which a client at trust level 0 proves all others. Blocking; one thread.

Not here: answering queries (`queries`), what is in a message (`ledger`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nacl.signing import SigningKey
from pytoniq_core import Cell, HashMap, begin_cell
from pytoniq_core.tlb.account import ShardAccount
from pytoniq_core.tlb.transaction import Transaction

from ...types import Network
from .cells import augmented, bag_of_cells, cut_to_key, merkle_proof, merkle_update, pruned, store_coins, with_refs
from .ledger import Applied, Ledger

WHOLE_SHARD: Final = -(1 << 63)
BASECHAIN: Final = 0
MASTERCHAIN: Final = -1
BLOCKS_KEPT: Final = 600  # ten minutes at one a second; older ones are gone, as on a pruned node
CONFIG_ADDRESS: Final = b"\x55" * 32
VALIDATOR_WEIGHT: Final = 1
KEY_PREFIX: Final = b"\xc6\xb4\x13\x48"  # TL: pub.ed25519
BLOCK_ID_PREFIX: Final = b"pn\x0b\xc5"  # TL: ton.blockId, what validators sign
_FOREVER: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockId:
    """tonNode.blockIdExt."""

    workchain: int
    seqno: int
    root_hash: bytes = bytes(32)
    file_hash: bytes = bytes(32)

    def to_tl(self) -> dict[str, Any]:
        """As pytoniq-core's TL serialiser wants it."""
        return {
            "workchain": self.workchain,
            "shard": WHOLE_SHARD,
            "seqno": self.seqno,
            "root_hash": self.root_hash.hex(),
            "file_hash": self.file_hash.hex(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPair:
    """A masterchain block and its basechain block, with the states that they lead to."""

    master: BlockId
    shard: BlockId
    master_block: Cell
    shard_block: Cell
    master_state: Cell
    shard_state: Cell
    accounts: dict[bytes, Cell] = field(repr=False)
    shard_hashes: Cell
    account_blocks: Cell  # with the transactions cut to their hashes, for proofs
    now_s: int
    lt: int
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A transaction and the basechain block that holds it."""

    lt: int
    cell: Cell
    block: BlockId


def validator_parameters(key: bytes) -> dict[int, Cell]:
    """Configuration parameters 28 and 34: one validator for ever, never shuffled."""
    catchain = begin_cell().store_uint(0xC2, 8).store_uint(0, 8)
    for number in (250, 250, 1000, 1):
        catchain.store_uint(number, 32)
    described = begin_cell().store_uint(0x53, 8).store_bytes(b"\x8e\x81\x27\x8a").store_bytes(key)
    listed = HashMap(16, value_serializer=lambda source, builder: builder.store_slice(source))
    listed.set_int_key(0, described.store_uint(VALIDATOR_WEIGHT, 64).end_cell().begin_parse())
    validators = (
        begin_cell()
        .store_uint(0x12, 8)
        .store_uint(0, 32)
        .store_uint(_FOREVER, 32)
        .store_uint(1, 16)
        .store_uint(1, 16)
        .store_uint(VALIDATOR_WEIGHT, 64)
        .store_dict(listed.serialize())
    )
    return {28: catchain.end_cell(), 34: validators.end_cell()}


class Blocks:
    """The chain of blocks so far."""

    def __init__(self, ledger: Ledger, *, config: Cell, validator: SigningKey, network: Network) -> None:
        self.ledger = ledger
        self.config = config
        self.validator = validator
        self.network = network
        self.seqno = 0
        self.pairs: dict[int, BlockPair] = {}
        self.by_account: dict[bytes, list[Recorded]] = {}
        self.previous = {workchain: BlockId(workchain=workchain, seqno=0) for workchain in (BASECHAIN, MASTERCHAIN)}
        self.states = {BASECHAIN: Cell.empty(), MASTERCHAIN: Cell.empty()}
        self.init: BlockPair | None = None  # the key block
        self._accounts: tuple[dict[bytes, Cell], Cell] | None = None

    @property
    def last(self) -> BlockPair:
        """The newest."""
        return self.pairs[self.seqno]

    def commit(self, applied: Sequence[Applied] = ()) -> BlockPair:
        """Close a block over everything that the ledger has done. The first is the key block."""
        ledger, number = self.ledger, self.seqno + 1
        if self._accounts is None or applied or self.init is None:
            accounts = dict(ledger.accounts)
            self._accounts = (accounts, _accounts_cell(accounts))
        accounts, accounts_cell = self._accounts

        lt = ledger.lt
        shard_state = self._state(BASECHAIN, number, accounts_cell, None)
        shard_block = self._block(
            BASECHAIN, number, shard_state, _extra(_account_blocks(applied, lambda cell: cell), None)
        )
        shard = _block_id(BASECHAIN, number, shard_block)

        hashes = _shard_hashes(number, ledger.now_s, lt, shard)
        state_extra = self._master_state_extra(hashes)
        master_state = self._state(MASTERCHAIN, number, _no_accounts(), state_extra)
        extra = _extra(_no_account_blocks(), self._master_block_extra(hashes))
        master_block = self._block(MASTERCHAIN, number, master_state, extra)
        master = _block_id(MASTERCHAIN, number, master_block)

        pair = BlockPair(
            master=master,
            shard=shard,
            master_block=master_block,
            shard_block=shard_block,
            master_state=master_state,
            shard_state=shard_state,
            accounts=accounts,
            shard_hashes=hashes,
            account_blocks=_account_blocks(applied, pruned),
            now_s=ledger.now_s,
            lt=lt,
            signature=self.sign(master),
        )
        self.seqno = number
        self.states = {BASECHAIN: shard_state, MASTERCHAIN: master_state}
        self.previous = {BASECHAIN: shard, MASTERCHAIN: master}
        self.pairs[number] = pair
        self.pairs.pop(number - BLOCKS_KEPT, None)
        if self.init is None:
            self.init = pair
        for done in applied:
            recorded = Recorded(lt=done.lt, cell=done.cell, block=shard)
            self.by_account.setdefault(done.account, []).append(recorded)
        return pair

    def sign(self, block: BlockId) -> bytes:
        """The validator's signature."""
        return self.validator.sign(BLOCK_ID_PREFIX + block.root_hash + block.file_hash).signature

    @property
    def validator_id(self) -> bytes:
        """The short id under which its signatures are listed."""
        return hashlib.sha256(KEY_PREFIX + bytes(self.validator.verify_key)).digest()

    # --- the parts of a block ------------------------------------------------------------------------------

    def _state(self, workchain: int, number: int, accounts: Cell, custom: Cell | None) -> Cell:
        rest = store_coins(store_coins(begin_cell().store_uint(0, 128))).store_bit(0).store_bit(0).end_cell()
        builder = (
            begin_cell()
            .store_bytes(b"\x90\x23\xaf\xe2")
            .store_int(int(self.network), 32)
            .store_cell(_shard_ident(workchain))
            .store_uint(number, 32)
            .store_uint(0, 32)
            .store_uint(self.ledger.now_s, 32)
            .store_uint(self.ledger.lt, 64)
            .store_uint(0, 32)
            .store_ref(Cell.empty())
            .store_bit(0)
            .store_ref(accounts)
            .store_ref(rest)
            .store_bit(int(custom is not None))
        )
        return (builder if custom is None else builder.store_ref(custom)).end_cell()

    def _block(self, workchain: int, number: int, state: Cell, extra: Cell) -> Cell:
        is_master = workchain == MASTERCHAIN
        lt = self.ledger.lt + 1
        is_key = is_master and self.init is None
        info = (
            begin_cell()
            .store_bytes(b"\x9b\xc7\xa9\x87")
            .store_uint(0, 32)
            .store_bit(int(not is_master))
            .store_uint(0, 5)
            .store_bit(int(is_key))
            .store_bit(0)
            .store_uint(0, 8)
            .store_uint(number, 32)
            .store_uint(0, 32)
            .store_cell(_shard_ident(workchain))
            .store_uint(self.ledger.now_s, 32)
            .store_uint(lt - 1, 64)
            .store_uint(lt, 64)
            .store_uint(0, 96)
            .store_uint(0 if self.init is None else self.init.master.seqno, 32)
        )
        if not is_master:
            info.store_ref(_block_ref(begin_cell(), lt, self.previous[MASTERCHAIN]).end_cell())
        info.store_ref(_block_ref(begin_cell(), lt, self.previous[workchain]).end_cell())
        flows = [begin_cell(), begin_cell()]
        for flow in flows:
            for _ in range(4):
                store_coins(flow)
        value_flow = store_coins(begin_cell().store_bytes(b"\xb8\xe4\x8d\xfb").store_ref(flows[0].end_cell()))
        return (
            begin_cell()
            .store_bytes(b"\x11\xef\x55\xaa")
            .store_int(int(self.network), 32)
            .store_ref(info.end_cell())
            .store_ref(value_flow.store_ref(flows[1].end_cell()).end_cell())
            .store_ref(merkle_update(self.states[workchain], state))
            .store_ref(extra)
            .end_cell()
        )

    def _master_state_extra(self, hashes: Cell) -> Cell:
        more = begin_cell().store_uint(0, 16).store_uint(0, 65).store_bit(0).store_uint(0, 65).store_bit(0)
        if self.init is None:
            more.store_bit(0)
        else:
            _block_ref(more.store_bit(1), self.init.lt + 1, self.init.master)
        return store_coins(
            begin_cell()
            .store_bytes(b"\xcc\x26")
            .store_cell(hashes)
            .store_bytes(CONFIG_ADDRESS)
            .store_ref(self.config)
            .store_ref(more.end_cell())
        ).end_cell()

    def _master_block_extra(self, hashes: Cell) -> Cell:
        is_key = self.init is None
        builder = begin_cell().store_bytes(b"\xcc\xa5").store_bit(int(is_key)).store_cell(hashes)
        store_coins(store_coins(builder.store_bit(0)))  # no shard fees
        builder.store_ref(begin_cell().store_uint(0, 3).end_cell())
        if is_key:
            builder.store_bytes(CONFIG_ADDRESS).store_ref(self.config)
        return builder.end_cell()


# --- proofs ----------------------------------------------------------------------------------------------


def header_proof(block: Cell) -> Cell:
    """A block with everything cut away but its header and its state update."""
    return merkle_proof(with_refs(block, lambda index, ref: ref if index in (0, 2) else pruned(ref)))


def config_in_block_proof(block: Cell) -> Cell:
    """A key block with the configuration in it left whole."""
    extra = with_refs(block.refs[3], lambda index, ref: ref if index == len(block.refs[3].refs) - 1 else pruned(ref))
    return merkle_proof(with_refs(block, lambda index, ref: (ref, pruned(ref), ref, extra)[index]))


def shard_proof(pair: BlockPair) -> bytes:
    """That the masterchain block knows the basechain block."""
    custom = with_refs(pair.master_state.refs[3], lambda index, ref: pruned(ref) if index == 1 else ref)
    state = with_refs(pair.master_state, lambda index, ref: custom if index == 3 else ref)
    return bag_of_cells([header_proof(pair.master_block), merkle_proof(state)])


def master_state_proof(pair: BlockPair, *, with_config: bool) -> Cell:
    """The masterchain state, with or without the configuration in it."""
    custom = with_refs(
        pair.master_state.refs[3], lambda index, ref: pruned(ref) if index == 1 and not with_config else ref
    )
    return merkle_proof(with_refs(pair.master_state, lambda index, ref: custom if index == 3 else ref))


def account_proof(pair: BlockPair, account: bytes) -> bytes:
    """What the basechain block says of an account, which may be that there is none."""
    accounts = pair.shard_state.refs[1]
    key = int.from_bytes(account, "big")
    kept = with_refs(accounts, lambda _, root: cut_to_key(root, key, key_bits=256))
    state = with_refs(pair.shard_state, lambda index, ref: kept if index == 1 else pruned(ref))
    return bag_of_cells([header_proof(pair.shard_block), merkle_proof(state)])


def transactions_proof(pair: BlockPair) -> Cell:
    """A basechain block with its list of transactions left in, each cut to its hash."""
    listed = pair.account_blocks
    extra = with_refs(pair.shard_block.refs[3], lambda index, ref: listed if index == 2 else pruned(ref))
    return merkle_proof(with_refs(pair.shard_block, lambda index, ref: (ref, pruned(ref), ref, extra)[index]))


# --- cells -----------------------------------------------------------------------------------------------


def _block_id(workchain: int, number: int, block: Cell) -> BlockId:
    file_hash = hashlib.sha256(block.to_boc()).digest()
    return BlockId(workchain=workchain, seqno=number, root_hash=bytes(block.get_hash(0)), file_hash=file_hash)


def _shard_ident(workchain: int) -> Cell:
    return begin_cell().store_uint(0, 8).store_int(workchain, 32).store_uint(0, 64).end_cell()


def _block_ref(builder: Any, lt: int, block: BlockId) -> Any:
    return (
        builder.store_uint(lt, 64).store_uint(block.seqno, 32).store_bytes(block.root_hash).store_bytes(block.file_hash)
    )


def _shard_hashes(number: int, now_s: int, lt: int, shard: BlockId) -> Cell:
    described = (
        begin_cell()
        .store_bits("01010")  # a leaf of the tree; shard_descr_new
        .store_uint(number, 32)
        .store_uint(number, 32)
        .store_uint(lt, 64)
        .store_uint(lt + 1, 64)
        .store_bytes(shard.root_hash)
        .store_bytes(shard.file_hash)
        .store_uint(0, 8)
        .store_uint(0, 32)
        .store_uint(1 << 63, 64)
        .store_uint(number, 32)
        .store_uint(now_s, 32)
        .store_bit(0)
        .store_ref(store_coins(store_coins(begin_cell())).end_cell())
        .end_cell()
    )
    shards = HashMap(32, value_serializer=lambda source, builder: builder.store_ref(source))
    shards.set_int_key(BASECHAIN, described)
    return begin_cell().store_dict(shards.serialize()).end_cell()


def _extra(account_blocks: Cell, custom: Cell | None) -> Cell:
    no_in = store_coins(begin_cell().store_bit(0).store_coins(0)).end_cell()
    no_out = store_coins(begin_cell().store_bit(0)).end_cell()
    builder = begin_cell().store_bytes(b"\x4a\x33\xf6\xfd").store_ref(no_in).store_ref(no_out)
    builder.store_ref(account_blocks).store_uint(0, 256).store_uint(0, 256).store_bit(int(custom is not None))
    return (builder if custom is None else builder.store_ref(custom)).end_cell()


def _no_accounts() -> Cell:
    return store_coins(begin_cell().store_bit(0).store_uint(0, 5)).end_cell()


def _no_account_blocks() -> Cell:
    return store_coins(begin_cell().store_bit(0)).end_cell()


def _accounts_cell(accounts: dict[bytes, Cell]) -> Cell:
    live = {int.from_bytes(key, "big"): cell for key, cell in accounts.items() if cell.refs[0].bits[0]}
    if not live:
        return _no_accounts()

    def put_leaf(builder: Any, cell: Cell) -> None:
        part = cell.begin_parse()
        builder.store_ref(part.load_ref()).store_bits(part.load_bits(320))

    def put_extra(builder: Any, amount: int) -> None:
        store_coins(builder.store_uint(0, 5), amount)

    def balance(cell: Cell) -> int:
        return int(ShardAccount.deserialize(cell.begin_parse()).account.storage.balance.grams)

    root, total = augmented(live, key_bits=256, put_leaf=put_leaf, amount_of=balance, put_extra=put_extra)
    builder = begin_cell().store_bit(1).store_ref(root)
    put_extra(builder, total)
    return builder.end_cell()


def _account_blocks(applied: Sequence[Applied], shown: Callable[[Cell], Cell]) -> Cell:
    if not applied:
        return _no_account_blocks()
    by_account: dict[int, list[Applied]] = {}
    for done in applied:
        by_account.setdefault(int.from_bytes(done.account, "big"), []).append(done)
    fees = {key: sum(done.fees_nano for done in rows) for key, rows in by_account.items()}

    def put_extra(builder: Any, amount: int) -> None:
        store_coins(builder, amount)

    def put_account(builder: Any, key: int) -> None:
        rows = {done.lt: done for done in by_account[key]}
        root, _ = augmented(
            rows,
            key_bits=64,
            put_leaf=lambda target, done: target.store_ref(shown(done.cell)),
            amount_of=lambda done: done.fees_nano,
            put_extra=put_extra,
        )
        first, last = rows[min(rows)], rows[max(rows)]
        update = begin_cell().store_uint(0x72, 8)
        update.store_bytes(_state_update(first.cell)[0]).store_bytes(_state_update(last.cell)[1])
        builder.store_uint(5, 4).store_uint(key, 256).store_cell(root).store_ref(update.end_cell())

    root, total = augmented(
        {key: key for key in by_account},
        key_bits=256,
        put_leaf=put_account,
        amount_of=lambda key: fees[key],
        put_extra=put_extra,
    )
    return store_coins(begin_cell().store_bit(1).store_ref(root), total).end_cell()


def _state_update(transaction: Cell) -> tuple[bytes, bytes]:
    update = Transaction.deserialize(transaction.begin_parse()).state_update
    return bytes(update.old_hash), bytes(update.new_hash)
