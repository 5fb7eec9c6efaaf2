"""The spending account on the real TVM: every check, on the code that ships."""

from __future__ import annotations

import pytest

from cocoon.adapters.devnet.tvm import PRICES, Tvm
from cocoon.adapters.ton import contracts
from cocoon.adapters.ton.cells import account_of, address
from cocoon.errors import ProofInvalid
from cocoon.ports.chain import Entry
from tests.contracts.account_checks import account_check
from tests.contracts.checks import Check
from tests.contracts.world import OWNER, TON, AccountWorld, account_data, config, invented_account, provider


@pytest.mark.parametrize("prices", PRICES)
@pytest.mark.parametrize("check", account_check.all, ids=account_check.names)
def test_the_spending_account(tvm: Tvm, check: Check, prices: str) -> None:
    tvm.set_config(config(prices))
    check(tvm, contracts.contract_code("account"))


def test_an_invented_ledger_under_the_right_code_is_caught_by_its_address(tvm: Tvm) -> None:
    true = AccountWorld(tvm)
    data = account_data(true.state, {provider(1): Entry(claimed_nano=0, ceiling_nano=900 * TON)})
    liar = invented_account(tvm, data)
    assert liar.ledger.data(liar.contract) == data, "the chain itself has no objection"
    with pytest.raises(ProofInvalid, match="invented"):
        contracts.read_account(liar.contract, code_hash=true.code.hash, data=data, balance_nano=TON, at_s=0)


def test_foreign_code_is_not_a_spending_account(tvm: Tvm) -> None:
    world = AccountWorld(tvm)
    data = world.ledger.data(world.contract)
    with pytest.raises(ProofInvalid, match="code"):
        contracts.read_account(world.contract, code_hash=bytes(32), data=data, balance_nano=TON, at_s=0)


def test_the_address_follows_from_owner_and_salt_alone(tvm: Tvm) -> None:
    world = AccountWorld(tvm, salt=77)
    assert world.contract == contracts.account_address(OWNER, 77) == account_of(world.init)
    assert contracts.account_address(OWNER, 78) != world.contract
    assert address(world.contract).hash_part == world.contract


@pytest.mark.parametrize("count", [8_000, 32_000])
@pytest.mark.long
def test_the_map_can_grow_to_thirty_two_thousand_entries(tvm: Tvm, count: int) -> None:
    world = AccountWorld(tvm, deposit=8 * TON)
    world.fill(count)
    assert world.claim(provider(10**6), TON // 10, value=TON // 10).is_done


def test_both_price_tables_allow_every_default_value(tvm: Tvm) -> None:
    """A claimer attaches 0.02 TON; that is enough at the higher prices, also for a large map."""
    for prices in PRICES:
        tvm.set_config(config(prices))
        world = AccountWorld(tvm, deposit=8 * TON)
        world.fill(1_024)
        assert world.claim(provider(10**6), TON // 10, value=TON // 50).is_done
        assert world.claim(provider(5), 8 * TON, value=TON // 50).is_done
