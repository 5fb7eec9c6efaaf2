"""The stake on the real TVM: every check, on the code that ships; and one signature for peers and chain."""

from __future__ import annotations

import pytest

from cocoon.adapters.devnet.tvm import PRICES, Tvm
from cocoon.adapters.ton import contracts
from cocoon.errors import ProofInvalid
from cocoon.market.equivocation import EquivocationProof, SignedStatement, verify_proof
from tests.contracts.checks import Check
from tests.contracts.stake_checks import A, B, stake_check
from tests.contracts.world import NETWORK, O_KEY, OWNER, StakeWorld, config


@pytest.mark.parametrize("prices", PRICES)
@pytest.mark.parametrize("check", stake_check.all, ids=stake_check.names)
def test_the_stake(tvm: Tvm, check: Check, prices: str) -> None:
    tvm.set_config(config(prices))
    check(tvm, contracts.contract_code("stake"))


def test_a_proof_that_peers_accept_is_one_that_the_contract_accepts(tvm: Tvm) -> None:
    world = StakeWorld(tvm)
    epoch = world.state.epoch
    first, second = (
        SignedStatement(stake=world.contract, key_epoch=epoch, digest=digest, signature=world.signed(digest)[1])
        for digest in (A, B)
    )
    kept = EquivocationProof(network=NETWORK, operator=O_KEY, slot=b"\x05" * 32, first=first, second=second).encode()
    proof = verify_proof(kept)
    assert proof.is_slashable
    done = world.slash(
        (proof.first.digest, proof.first.signature),
        (proof.second.digest, proof.second.signature),
        epoch=proof.first.key_epoch,
        slot=proof.slot,
    )
    assert done.is_done


def test_a_stake_is_read_only_where_it_belongs(tvm: Tvm) -> None:
    world = StakeWorld(tvm)
    data = world.ledger.data(world.contract)
    assert contracts.stake_address(OWNER, StakeWorld.DELAY_S) == world.contract
    for stake, code_hash in ((b"\x01" * 32, world.code.hash), (world.contract, bytes(32))):
        with pytest.raises(ProofInvalid):
            contracts.read_stake(stake, code_hash=code_hash, data=data, balance_nano=10**10, at_s=0)
