"""Malformed queries at the devnet's liteserver: an answer or an error comes back, and the true answers stay true."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from pytoniq_core import Cell

from cocoon.adapters.devnet.adnl import HANDSHAKE_BYTES, AdnlChannel
from cocoon.adapters.devnet.blocks import Blocks
from cocoon.adapters.devnet.faults import Faults
from cocoon.adapters.devnet.ledger import Applied, Ledger
from cocoon.adapters.devnet.queries import Queries, QueryError
from cocoon.adapters.devnet.tvm import configuration
from cocoon.errors import RemoteProtocolError
from cocoon.types import Network
from tests.fakes.devnet import TON, need_node, shared_tvm

ACCOUNT = b"\x51" * 32


def make_queries() -> Queries:
    need_node()
    tvm = shared_tvm()
    config = configuration(network=Network.DEVNET)
    tvm.set_config(config)
    ledger = Ledger(tvm, now_s=int(time.time()))
    blocks = Blocks(ledger, config=config, validator=SigningKey(b"\1" * 32), network=Network.DEVNET)
    blocks.commit(ledger.mint(ACCOUNT, TON))

    def submit(message: Cell) -> list[Applied]:
        return ledger.run(message)

    return Queries(blocks, Faults(), submit)


@pytest.fixture(scope="module")
def queries() -> Queries:
    return make_queries()


NAMES = [
    *("getMasterchainInfo", "getMasterchainInfoExt", "getTime", "getVersion", "getAllShardsInfo", "getShardInfo"),
    *("getBlockHeader", "lookupBlock", "getBlock", "getBlockProof", "getShardBlockProof", "getConfigAll"),
    *("getConfigParams", "getAccountState", "runSmcMethod", "sendMessage", "getTransactions", "getOneTransaction"),
    *("listBlockTransactions", "getLibraries", "waitMasterchainSeqno", "getState"),
]


@given(name=st.sampled_from(NAMES), rest=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_behind_any_query_get_an_answer(queries: Queries, name: str, rest: bytes) -> None:
    constructor = queries.schemas.get_by_name(f"liteServer.{name}").little_id()
    data = constructor + rest
    try:
        _, timeout_ms, data = queries.split_wait(data)
        assert timeout_ms >= 0
    except QueryError:
        return
    assert isinstance(queries.answer(data), bytes)
    assert queries.blocks.ledger.balance_nano(ACCOUNT) == TON


@given(st.binary(max_size=64))
@settings(max_examples=100, deadline=None)
def test_any_bytes_at_all_get_an_error(queries: Queries, data: bytes) -> None:
    assert isinstance(queries.answer(data), bytes)


@given(st.binary(min_size=HANDSHAKE_BYTES, max_size=HANDSHAKE_BYTES))
@settings(max_examples=100, deadline=None)
def test_any_handshake_but_a_true_one_is_refused(data: bytes) -> None:
    import hashlib

    key = SigningKey(b"\2" * 32)
    addressed = hashlib.sha256(b"\xc6\xb4\x13\x48" + bytes(key.verify_key)).digest() + data[32:]
    for handshake in (data, addressed):
        with pytest.raises(RemoteProtocolError):
            AdnlChannel(key, handshake)
