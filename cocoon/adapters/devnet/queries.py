"""The liteserver's answers: TL bytes in, TL bytes out, with real proofs from `blocks`.

Every query that pytoniq 0.1.43 and tonutils 2.5.1 send while they follow the chain, read accounts, history and
configuration, run get methods and send messages. Others get `liteServer.error`. Blocking; one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pytoniq_core import Address, Cell
from pytoniq_core.tl.generator import TlGenerator
from pytoniq_core.tlb.account import Account, ShardAccount

from .blocks import (
    MASTERCHAIN,
    BlockPair,
    Blocks,
    account_proof,
    config_in_block_proof,
    header_proof,
    master_state_proof,
    shard_proof,
    transactions_proof,
)
from .cells import bag_of_cells, merkle_proof
from .faults import Faults, Lie
from .ledger import Applied
from .tvm import MessageRefused

TRANSACTIONS_MAX: Final = 16  # an answer
BLOCK_TRANSACTIONS_MAX: Final = 256
MESSAGE_BYTES_MAX: Final = 65_536
RICHER: Final = 100
NOT_FOUND, BAD_REQUEST, NOT_APPLIED = 651, -400, 0


class QueryError(Exception):
    """Becomes `liteServer.error`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


Answer = tuple[str, dict[str, Any]]


class Queries:
    """Answers for one liteserver. `submit` delivers an external message and says what it did."""

    def __init__(self, blocks: Blocks, faults: Faults, submit: Callable[[Cell], list[Applied]]) -> None:
        self.blocks = blocks
        self.faults = faults
        self.submit = submit
        self.schemas = TlGenerator.with_default_schemas().generate()
        self.schemas._auto_deserialize = False  # bytes stay bytes
        self.forged_config: Cell | None = None  # of a forked server: a key block proof with its own validator
        self._table: Mapping[str, Callable[[dict[str, Any]], Answer]] = {
            "getMasterchainInfo": self._masterchain_info,
            "getMasterchainInfoExt": self._masterchain_info_ext,
            "getTime": self._time,
            "getVersion": self._version,
            "getAllShardsInfo": self._all_shards,
            "getShardInfo": self._shard_info,
            "getBlockHeader": self._header,
            "lookupBlock": self._lookup,
            "getBlock": self._block,
            "getBlockProof": self._block_proof,
            "getShardBlockProof": self._shard_block_proof,
            "getConfigAll": self._config,
            "getConfigParams": self._config,
            "getAccountState": self._account,
            "runSmcMethod": self._method,
            "sendMessage": self._message,
            "getTransactions": self._transactions,
            "getOneTransaction": self._transaction,
            "listBlockTransactions": self._block_transactions,
            "getLibraries": self._libraries,
        }

    # --- from and to bytes ---------------------------------------------------------------------------------

    def split_wait(self, data: bytes) -> tuple[int | None, int, bytes]:
        """The seqno and milliseconds to wait for, if any, and the query itself. Raises `QueryError`."""
        if len(data) >= 12 and self._schema(data).name == "liteServer.waitMasterchainSeqno":
            wait = self._parse(data[:12])
            return int(wait["seqno"]), max(0, int(wait["timeout_ms"])), data[12:]
        return None, 0, data

    def name(self, data: bytes) -> str:
        """A query's name, e.g. `getAccountState`. Raises `QueryError`."""
        return str(self._schema(data).name).removeprefix("liteServer.")

    def answer(self, data: bytes) -> bytes:
        """The answer, which may be an error. Never raises for what is in `data`."""
        try:
            name = self.name(data)
            if name not in self._table:
                raise QueryError(BAD_REQUEST, f"not served here: {name}")
            kind, values = self._table[name](self._parse(data))
        except QueryError as error:
            return self.error(error.code, str(error))
        except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
            return self.error(BAD_REQUEST, f"a query of an impossible shape: {type(error).__name__}")
        return self._serialise(kind, values)

    def error(self, code: int, message: str) -> bytes:
        """`liteServer.error`."""
        return self._serialise("error", {"code": code, "message": message})

    def _schema(self, data: bytes) -> Any:
        schema = self.schemas.get_by_id(data[:4], "little") if len(data) >= 4 else None
        if schema is None:
            raise QueryError(BAD_REQUEST, "an unknown query")
        return schema

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            query, _ = self.schemas.deserialize(data)
        except Exception as error:  # the TL library raises whatever it trips over; here it is a bad query
            raise QueryError(BAD_REQUEST, "a malformed query") from error
        if not isinstance(query, dict):
            raise QueryError(BAD_REQUEST, "a malformed query")
        return query

    def _serialise(self, kind: str, values: dict[str, Any]) -> bytes:
        return bytes(self.schemas.serialize(self.schemas.get_by_name(f"liteServer.{kind}"), values))

    # --- blocks --------------------------------------------------------------------------------------------

    @property
    def newest(self) -> int:
        """The newest seqno that this server admits to."""
        stale_at = self.faults.stale_at
        return self.blocks.seqno if stale_at is None else min(stale_at, self.blocks.seqno)

    def _pair(self, seqno: int) -> BlockPair:
        init = self.blocks.init
        if init is not None and seqno == init.master.seqno:
            return init
        pair = self.blocks.pairs.get(seqno) if seqno <= self.newest else None
        if pair is None:
            raise QueryError(NOT_FOUND, "block is not in db")
        return pair

    def _pair_of(self, query: dict[str, Any], key: str = "id") -> BlockPair:
        wanted = query[key]
        pair = self._pair(wanted["seqno"])
        known = pair.master if wanted["workchain"] == MASTERCHAIN else pair.shard
        if wanted.get("root_hash") != known.root_hash.hex():
            raise QueryError(NOT_FOUND, "block is not in db")
        return pair

    def _masterchain_info(self, _: dict[str, Any]) -> Answer:
        pair = self._pair(self.newest)
        zero = {"workchain": MASTERCHAIN, "root_hash": "00" * 32, "file_hash": "00" * 32}
        root = pair.master_state.get_hash(0).hex()
        return "masterchainInfo", {"last": pair.master.to_tl(), "state_root_hash": root, "init": zero}

    def _masterchain_info_ext(self, _: dict[str, Any]) -> Answer:
        plain = self._masterchain_info({})[1]
        pair = self._pair(self.newest)
        more = {"mode": 0, "version": 0x101, "capabilities": 7, "last_utime": pair.now_s, "now": self._now_s}
        return "masterchainInfoExt", plain | more

    @property
    def _now_s(self) -> int:
        return self._pair(self.newest).now_s if self.faults.stale_at is not None else self.blocks.ledger.now_s

    def _time(self, _: dict[str, Any]) -> Answer:
        return "currentTime", {"now": self._now_s}

    def _version(self, _: dict[str, Any]) -> Answer:
        return "version", {"mode": 0, "version": 0x101, "capabilities": 7, "now": self._now_s}

    def _all_shards(self, query: dict[str, Any]) -> Answer:
        pair = self._pair_of(query)
        return "allShardsInfo", {
            "id": pair.master.to_tl(),
            "proof": shard_proof(pair),
            "data": pair.shard_hashes.to_boc(),
        }

    def _shard_info(self, query: dict[str, Any]) -> Answer:
        pair = self._pair_of(query)
        return "shardInfo", {
            "id": pair.master.to_tl(),
            "shardblk": pair.shard.to_tl(),
            "shard_proof": shard_proof(pair),
            "shard_descr": pair.shard_hashes.refs[0].refs[0].to_boc(),
        }

    def _header(self, query: dict[str, Any]) -> Answer:
        return self._header_of(self._pair_of(query), query["id"]["workchain"])

    def _header_of(self, pair: BlockPair, workchain: int) -> Answer:
        is_master = workchain == MASTERCHAIN
        return "blockHeader", {
            "id": (pair.master if is_master else pair.shard).to_tl(),
            "mode": 0,
            "header_proof": bag_of_cells([header_proof(pair.master_block if is_master else pair.shard_block)]),
        }

    def _lookup(self, query: dict[str, Any]) -> Answer:
        mode, workchain = query["mode"], query["id"]["workchain"]
        if mode & 1:
            return self._header_of(self._pair(query["id"]["seqno"]), workchain)
        known = [self._pair(seqno) for seqno in sorted(self.blocks.pairs) if seqno <= self.newest]
        if mode & 2:
            found = [pair for pair in known if pair.lt + 1 >= query["lt"]]
        elif mode & 4:
            found = [pair for pair in known if pair.now_s >= query["utime"]]
        else:
            raise QueryError(BAD_REQUEST, "by what?")
        if not found:
            raise QueryError(NOT_FOUND, "block is not in db")
        return self._header_of(found[0], workchain)

    def _block(self, query: dict[str, Any]) -> Answer:
        pair = self._pair_of(query)
        block = pair.master_block if query["id"]["workchain"] == MASTERCHAIN else pair.shard_block
        return "blockData", {"id": query["id"], "data": block.to_boc()}

    def _block_proof(self, query: dict[str, Any]) -> Answer:
        """From a known block back to the key block, if it is another, and from there to the target."""
        init = self.blocks.init
        assert init is not None
        known = self._pair_of(query, "known_block")
        target = self._pair_of(query, "target_block") if query["mode"] & 1 else self._pair(self.newest)
        steps: list[dict[str, Any]] = []
        at = known
        if at is not init and target is not at:
            steps.append(self._link_back(at, init))
            at = init
        if target is not at:
            steps.append(self._link_forward(init, target))
        return "partialBlockProof", {
            "complete": True,
            "from": known.master.to_tl(),
            "to": target.master.to_tl(),
            "steps": steps,
        }

    def _link_back(self, known: BlockPair, init: BlockPair) -> dict[str, Any]:
        return {
            "@type": "liteServer.blockLinkBack",
            "to_key_block": True,
            "from": known.master.to_tl(),
            "to": init.master.to_tl(),
            "dest_proof": bag_of_cells([header_proof(init.master_block)]),
            "proof": bag_of_cells([header_proof(known.master_block)]),
            "state_proof": bag_of_cells([master_state_proof(known, with_config=False)]),
        }

    def _link_forward(self, init: BlockPair, target: BlockPair) -> dict[str, Any]:
        config = self.forged_config if self.forged_config is not None else config_in_block_proof(init.master_block)
        return {
            "@type": "liteServer.blockLinkForward",
            "to_key_block": False,
            "from": init.master.to_tl(),
            "to": target.master.to_tl(),
            "dest_proof": bag_of_cells([header_proof(target.master_block)]),
            "config_proof": bag_of_cells([config]),
            "signatures": {
                "@type": "liteServer.signatureSet.ordinary",
                "validator_set_hash": 0,
                "catchain_seqno": 0,
                "signatures": [
                    {"node_id_short": self.blocks.validator_id.hex(), "signature": target.signature},
                ],
            },
        }

    def _shard_block_proof(self, query: dict[str, Any]) -> Answer:
        pair = self._pair_of(query)
        link = {"id": pair.shard.to_tl(), "proof": bag_of_cells([_block_with_shards(pair)])}
        return "shardBlockProof", {"masterchain_id": pair.master.to_tl(), "links": [link]}

    def _config(self, query: dict[str, Any]) -> Answer:
        pair = self._pair_of(query)
        return "configInfo", {
            "mode": query["mode"],
            "id": pair.master.to_tl(),
            "state_proof": bag_of_cells([header_proof(pair.master_block)]),
            "config_proof": bag_of_cells([master_state_proof(pair, with_config=True)]),
        }

    def _libraries(self, _: dict[str, Any]) -> Answer:
        return "libraryResult", {"result": []}

    # --- accounts ------------------------------------------------------------------------------------------

    def _account(self, query: dict[str, Any]) -> Answer:
        wanted = query["id"]["seqno"]
        pair = self._pair(self.newest) if wanted in (0, 0xFFFFFFFF) else self._pair_of(query)
        account, workchain = bytes.fromhex(query["account"]["id"]), query["account"]["workchain"]
        if workchain == MASTERCHAIN:
            proof = bag_of_cells([header_proof(pair.master_block), merkle_proof(pair.master_state)])
            return "accountState", {
                "id": pair.master.to_tl(),
                "shardblk": pair.master.to_tl(),
                "shard_proof": b"",
                "proof": proof,
                "state": b"",
            }
        lie = self.faults.lie if self.faults.concern("getAccountState") else None
        shown, proven = account, pair
        if lie is Lie.OTHER:
            shown = next((other for other in sorted(pair.accounts) if other != account), account)
        if lie is Lie.OLD_PROOF and self.blocks.init is not None:
            proven = self.blocks.init
        cell = pair.accounts.get(shown)
        is_there = cell is not None and bool(cell.refs[0].bits[0]) and lie is not Lie.ABSENT
        state = b""
        if is_there:
            assert cell is not None
            state = (_richer(cell.refs[0]) if lie is Lie.RICH else cell.refs[0]).to_boc()
        return "accountState", {
            "id": pair.master.to_tl(),
            "shardblk": proven.shard.to_tl() if lie is Lie.OLD_PROOF else pair.shard.to_tl(),
            "shard_proof": shard_proof(proven),
            "proof": account_proof(proven, shown) if lie is not Lie.ABSENT else b"",
            "state": state,
        }

    def _method(self, query: dict[str, Any]) -> Answer:
        pair = self._pair_of(query)
        account = bytes.fromhex(query["account"]["id"])
        head = {
            "mode": query["mode"] & 7,
            "id": pair.master.to_tl(),
            "shardblk": pair.shard.to_tl(),
            "shard_proof": shard_proof(pair),
            "proof": b"",
            "state_proof": b"",
            "result": b"",
        }
        cell = pair.accounts.get(account)
        parsed = None if cell is None else ShardAccount.deserialize(cell.begin_parse()).account
        init = None if parsed is None else getattr(parsed.storage.state, "state_init", None)
        if parsed is None or init is None:
            return "runMethodResult", head | {"exit_code": -256}
        try:
            stack = Cell.one_from_boc(query["params"]) if query["params"] else None
            exit_code, result = self.blocks.ledger.tvm.run_method(
                code=init.code,
                data=init.data,
                method=query["method_id"],
                stack=stack,
                address=Address((0, account)).to_str(),
                now_s=pair.now_s,
                balance_nano=parsed.storage.balance.grams,
            )
        except MessageRefused as error:
            raise QueryError(BAD_REQUEST, str(error)) from error
        return "runMethodResult", head | {"exit_code": exit_code, "result": result.to_boc()}

    def _message(self, query: dict[str, Any]) -> Answer:
        if len(query["body"]) > MESSAGE_BYTES_MAX:
            raise QueryError(BAD_REQUEST, "too large an external message")
        try:
            message = Cell.one_from_boc(query["body"])
        except Exception as error:  # the cell library raises whatever it trips over; here it is a bad message
            raise QueryError(BAD_REQUEST, "cannot deserialize the message") from error
        try:
            self.submit(message)
        except MessageRefused as error:
            text = f"cannot apply external message to current state : {error}"
            raise QueryError(NOT_APPLIED, text) from error
        return "sendMsgStatus", {"status": 1}

    # --- history -------------------------------------------------------------------------------------------

    def _transactions(self, query: dict[str, Any]) -> Answer:
        known = self.blocks.by_account.get(bytes.fromhex(query["account"]["id"]), [])
        rows = [row for row in known if row.lt <= query["lt"] and row.block.seqno <= self.newest][::-1]
        if not rows or rows[0].lt != query["lt"]:
            raise QueryError(BAD_REQUEST, "cannot locate the transaction")
        if self.faults.lie is Lie.HISTORY and len(rows) > 2:
            rows = [rows[0], *rows[2:]]
        rows = rows[: min(query["count"], TRANSACTIONS_MAX)]
        return "transactionList", {
            "ids": [row.block.to_tl() for row in rows],
            "transactions": bag_of_cells([row.cell for row in rows]),
        }

    def _transaction(self, query: dict[str, Any]) -> Answer:
        pair = self._pair_of(query)
        rows = self.blocks.by_account.get(bytes.fromhex(query["account"]["id"]), [])
        found = next((row for row in rows if row.lt == query["lt"] and row.block == pair.shard), None)
        return "transactionInfo", {
            "id": pair.shard.to_tl(),
            "proof": bag_of_cells([transactions_proof(pair)]),
            "transaction": b"" if found is None else found.cell.to_boc(),
        }

    def _block_transactions(self, query: dict[str, Any]) -> Answer:
        pair = self._pair_of(query)
        proof = bag_of_cells([transactions_proof(pair)])
        rows: list[dict[str, Any]] = []
        if query["id"]["workchain"] == MASTERCHAIN:
            proof = bag_of_cells([merkle_proof(pair.master_block)])
        else:
            for account, recorded in self.blocks.by_account.items():
                rows += [
                    {"mode": 7, "account": account.hex(), "lt": row.lt, "hash": row.cell.get_hash(0).hex()}
                    for row in recorded
                    if row.block == pair.shard
                ]
        rows.sort(key=lambda row: (row["account"], row["lt"]))
        if query["mode"] & 128:
            after = (query["after"]["account"], query["after"]["lt"])
            rows = [row for row in rows if (row["account"], row["lt"]) > after]
        count = min(query["count"], BLOCK_TRANSACTIONS_MAX)
        return "blockTransactions", {
            "id": query["id"],
            "req_count": query["count"],
            "incomplete": len(rows) > count,
            "ids": rows[:count],
            "proof": proof,
        }


def _block_with_shards(pair: BlockPair) -> Cell:
    """A masterchain block in which the shard hashes are left whole."""
    return merkle_proof(pair.master_block)


def _richer(account: Cell) -> Cell:
    parsed = Account.deserialize(account.begin_parse())
    parsed.storage.balance.grams *= RICHER
    return parsed.serialize()
