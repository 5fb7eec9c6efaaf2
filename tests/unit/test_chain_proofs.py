"""Answers of hostile chain servers: mutated, truncated, swapped, forged. One error comes out, or the truth."""

from __future__ import annotations

import ast
import random
from pathlib import Path
from typing import Any

import pytest
import trio
from pytoniq_core import Cell, HashMap, begin_cell

from cocoon.adapters.devnet.cells import bag_of_cells, pruned
from cocoon.adapters.ton.global_config import parse_global_config
from cocoon.adapters.ton.hashmap import entries, lookup
from cocoon.adapters.ton.proofs import (
    BlockRef,
    check_account,
    check_header,
    check_history,
    check_links,
)
from cocoon.adapters.ton.reader import ChainReader
from cocoon.errors import ConfigError, ProofInvalid, Unavailable
from cocoon.types import Network
from tests.fakes.devnet import TON, devnet_for_tests, need_node

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = b"\x51" * 32
Answers = dict[str, Any]


@pytest.fixture(scope="module")
def answers() -> Answers:
    """True answers about one chain, from the liteserver's own tables."""
    need_node()

    async def main() -> Answers:
        async with devnet_for_tests(servers=1) as devnet:
            queries = devnet.servers[0].queries
            for _ in range(3):
                await devnet.mint(ACCOUNT, TON)
            init, last = devnet.blocks.init, devnet.blocks.last
            assert init is not None
            block = last.master.to_tl()
            query = {"id": block, "account": {"workchain": 0, "id": ACCOUNT.hex()}}
            history = devnet.blocks.by_account[ACCOUNT]
            return {
                "block": BlockRef.from_tl(block),
                "init": BlockRef.from_tl(init.master.to_tl()),
                "account": queries._account(query)[1],
                "absent": queries._account({**query, "account": {"workchain": 0, "id": "77" * 32}})[1],
                "header": queries._header({"id": block})[1]["header_proof"],
                "links": queries._block_proof({"known_block": init.master.to_tl(), "mode": 1, "target_block": block})[
                    1
                ],
                "history": queries._transactions({"account": {"id": ACCOUNT.hex()}, "lt": history[-1].lt, "count": 16})[
                    1
                ]["transactions"],
                "last_hash": bytes(history[-1].cell.get_hash(0)),
            }

    return trio.run(main)


def test_true_answers_prove_themselves(answers: Answers) -> None:
    found = check_account(answers["account"], answers["block"], ACCOUNT)
    assert found is not None
    assert 3 * TON - 10**6 < found.balance_nano <= 3 * TON
    assert check_account(answers["absent"], answers["block"], b"\x77" * 32) is None
    assert check_header(answers["header"], answers["block"]).seqno == answers["block"].seqno
    assert check_links(answers["links"], answers["init"], answers["block"]) == (answers["block"], answers["init"])
    assert len(check_history(answers["history"], answers["last_hash"])) == 3


def test_an_answer_about_one_account_proves_nothing_about_another(answers: Answers) -> None:
    with pytest.raises(ProofInvalid):
        check_account(answers["account"], answers["block"], b"\x77" * 32)
    with pytest.raises(ProofInvalid):
        check_account(answers["absent"], answers["block"], ACCOUNT)
    with pytest.raises(ProofInvalid):
        check_account({**answers["account"], "state": b""}, answers["block"], ACCOUNT)
    with pytest.raises(ProofInvalid):
        check_account({**answers["absent"], "state": answers["account"]["state"]}, answers["block"], b"\x77" * 32)


def test_an_answer_for_another_block_is_refused(answers: Answers) -> None:
    with pytest.raises(ProofInvalid):
        check_account(answers["account"], answers["init"], ACCOUNT)
    with pytest.raises(ProofInvalid):
        check_header(answers["header"], answers["init"])


@pytest.mark.parametrize("seed", range(40))
def test_mutated_answers_give_the_truth_or_one_error(answers: Answers, seed: int) -> None:
    dice = random.Random(seed)
    truth = check_account(answers["account"], answers["block"], ACCOUNT)
    for _ in range(15):
        spoilt = dict(answers["account"])
        field = dice.choice(["shard_proof", "proof", "state"])
        data = bytearray(spoilt[field])
        match dice.randrange(4):
            case 0:
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            case 1:
                del data[dice.randrange(len(data)) :]
            case 2:
                data += dice.randbytes(dice.randrange(1, 40))
            case 3:
                data = bytearray(dice.randbytes(dice.randrange(200)))
        # a good checksum, so that the change reaches what is behind it
        from pytoniq_core.crypto.crc import crc32c

        spoilt[field] = bytes(data[:-4]) + bytes(crc32c(bytes(data[:-4]))) if len(data) > 8 else bytes(data)
        try:
            found = check_account(spoilt, answers["block"], ACCOUNT)
        except ProofInvalid:
            continue
        assert (found.balance_nano, found.last_hash) == (truth.balance_nano, truth.last_hash)


def test_block_proofs_need_the_key_blocks_own_validators_each_counted_once(answers: Answers) -> None:
    from nacl.signing import SigningKey

    def changed(**parts: Any) -> Answers:
        return {**answers["links"], "steps": [{**answers["links"]["steps"][0], **parts}]}

    step = answers["links"]["steps"][0]
    known, target = answers["init"], answers["block"]
    signatures = step["signatures"]["signatures"]
    foreign = SigningKey(b"\x61" * 32)
    signed = foreign.sign(b"pn\x0b\xc5" + target.root_hash + target.file_hash).signature
    spoilt = {
        "no signatures": changed(signatures={"signatures": []}),
        "a foreign signer": changed(signatures={"signatures": [{"node_id_short": "11" * 32, "signature": signed}]}),
        "a foreign signature": changed(signatures={"signatures": [{**signatures[0], "signature": signed}]}),
        "another configuration": changed(config_proof=step["dest_proof"]),
        "another block's proof": changed(dest_proof=step["config_proof"]),
        "an unknown kind": changed(signatures={**step["signatures"], "candidate": b""}),
        "beyond the target": changed(to={**step["to"], "seqno": target.seqno + 1}),
        "backwards": {"steps": [{"to_key_block": True, "from": step["from"], "to": step["to"], "proof": b""}]},
        "no steps": {"steps": None},
        "endless": {"steps": [step] * 100},
    }
    for answer in spoilt.values():
        with pytest.raises(ProofInvalid):
            check_links(answer, known, target)
    repeated = changed(signatures={"signatures": signatures * 5})
    assert check_links(repeated, known, target)[0] == target


def test_a_validator_that_signs_twice_counts_once() -> None:
    from nacl.signing import SigningKey

    from cocoon.adapters.ton.proofs import _check_signatures

    keys = [SigningKey(bytes([index]) * 32) for index in range(1, 4)]
    validators = {bytes([index]) * 32: (bytes(key.verify_key), 1) for index, key in enumerate(keys)}
    block = BlockRef(workchain=-1, shard=-(1 << 63), seqno=9, root_hash=b"\1" * 32, file_hash=b"\2" * 32)
    message = b"pn\x0b\xc5" + block.root_hash + block.file_hash

    def signature(index: int) -> dict[str, Any]:
        return {"node_id_short": (bytes([index]) * 32).hex(), "signature": keys[index].sign(message).signature}

    with pytest.raises(ProofInvalid, match="too few"):
        _check_signatures({"signatures": [signature(0)] * 3}, validators, block)
    with pytest.raises(ProofInvalid, match="too few"):
        _check_signatures({"signatures": [signature(0), signature(1)]}, validators, block)
    _check_signatures({"signatures": [signature(0), signature(1), signature(2)]}, validators, block)


class OddServer:
    """Answers everything with the same odd thing."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.name = "odd"
        self.answer = answer

    async def request(self, query: str, values: Any) -> dict[str, Any]:
        return self.answer


@pytest.mark.parametrize("trust_level", [0, 1])
@pytest.mark.parametrize(
    "odd", [{}, {"now": 3}, {"last": 7}, {"last": {"workchain": -1}}, {"last": {}, "id": None, "steps": [None]}]
)
def test_answers_to_something_else_are_no_answers(odd: dict[str, Any], trust_level: int) -> None:
    async def main() -> None:
        reader = ChainReader(
            network=Network.DEVNET,
            links=(OddServer(odd), OddServer(odd)),
            init_block=BlockRef(workchain=-1, shard=-(1 << 63), seqno=1, root_hash=bytes(32), file_hash=bytes(32)),
            trust_level=trust_level,
            now=lambda: 10**18,
        )
        with pytest.raises((ProofInvalid, Unavailable)):
            await reader.wallet(ACCOUNT)

    trio.run(main)
    block = BlockRef(workchain=-1, shard=-(1 << 63), seqno=1, root_hash=bytes(32), file_hash=bytes(32))
    with pytest.raises(ProofInvalid):
        check_account(odd, block, ACCOUNT)
    with pytest.raises(ProofInvalid):
        check_links(odd, block, block)


def test_a_dictionary_that_was_cut_is_an_error_and_not_an_absence() -> None:
    whole = HashMap(32, value_serializer=lambda source, builder: builder.store_uint(source, 8))
    for key in (1, 2, 7, 2**31 + 5):
        whole.set_int_key(key, key & 0xFF)
    root = whole.serialize()
    assert {key: leaf.load_uint(8) for key, leaf in entries(root, key_bits=32, count_max=4).items()} == {
        1: 1, 2: 2, 7: 7, 2**31 + 5: 5,
    }  # fmt: skip
    leaf = lookup(root, 7, key_bits=32)
    assert leaf is not None and leaf.load_uint(8) == 7
    assert lookup(root, 8, key_bits=32) is None
    with pytest.raises(ProofInvalid, match="more than 3"):
        entries(root, key_bits=32, count_max=3)
    cut = Cell(root.bits, [pruned(root.refs[0]), root.refs[1]], root.type_)
    with pytest.raises(ProofInvalid, match="cut"):
        lookup(cut, 7, key_bits=32)
    with pytest.raises(ProofInvalid, match="cut"):
        entries(cut, key_bits=32, count_max=9)
    assert lookup(cut, 2**31 + 5, key_bits=32) is not None


def test_a_bag_with_many_roots_reads_back() -> None:
    cells = [begin_cell().store_uint(index, 16).end_cell() for index in range(5)]
    tree = begin_cell().store_ref(cells[0]).store_ref(cells[1]).end_cell()
    assert Cell.from_boc(bag_of_cells([tree, *cells])) == [tree, *cells]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"liteservers": []}', "[" * 5_000, '{"liteservers": [{"ip": "x"}], "validator": {}}']
)
def test_a_file_that_is_no_chain_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_global_config(text)


def test_only_one_module_knows_pytoniq() -> None:
    users = set()
    for folder in ("cocoon", "p2p", "sim"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                if any(name.split(".")[0] == "pytoniq" for name in names):
                    users.add(path.relative_to(ROOT).as_posix())
    assert users == {"cocoon/adapters/chain.py"}
