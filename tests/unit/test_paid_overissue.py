"""A client that promises the same money to many: what one honest provider of a whole market loses by it.

The colluders are payout addresses of the client's own, which claim whatever it signs for them. The honest provider is
the real role with real sessions. `python -m tests.unit.test_paid_overissue` prints the table of `cocoon/pay/README.md`.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.testing

from cocoon.errors import CocoonError
from cocoon.pay.voucher import Voucher, sign_voucher
from cocoon.types import Network
from tests.fakes.little_market import LittleMarket, ask, open_market
from tests.fakes.pay import PAYOUT, TON, FakeAccount, V, payout_number
from tests.unit.test_paid_market import engine_of, ledger_at, stop_paying

PRICE = 100 * TON  # per million tokens: a token costs 0.0001 TON, so that credit ends within some hundred
TOKEN = PRICE // 10**6
BOND = TON
WINDOW = 64  # credit ends before the first clean thousand tokens
BOUND = BOND // 64 + WINDOW * TOKEN + 3 * TOKEN  # and a prompt of some words


def collude(market: LittleMarket, account: FakeAccount, count: int) -> int:
    """Everything is promised to each of them, and they claim first; what they got."""
    got = 0
    for number in range(count):
        voucher = Voucher(
            network=Network.DEVNET,
            account=account.account,
            epoch=account.epoch,
            provider=payout_number(number),
            cumulative_nano=5 * TON,
        )
        got += account.claim(sign_voucher(voucher, V.sign))
    return got


async def story(market: LittleMarket, *, colluders: int, when: str, pays: bool) -> tuple[int, int, int]:
    """What the honest provider served, what it got, and what the colluders got (in nanoTON)."""
    account = market.open_account(bond_nano=BOND)
    provider = await market.add_provider("honest", engine_of(3_000), output_nano=PRICE, payout=PAYOUT)
    client = await market.add_client(payment=market.payment(account, reserve_max_nano=0), output_tokens_default=3_000)
    taken = 0

    def on_token(came: int) -> None:
        nonlocal taken
        if came == 1 and not pays:
            stop_paying(client)
        if when == "during" and came >= 64 and not taken:
            taken = collude(market, account, colluders)

    with suppress(CocoonError):
        async with client.generate("chat.completions", ask(max_tokens=240), spend_max_nano=TON) as reply:
            came = 0
            async for delta in reply:
                came += len(delta.token_ids)
                on_token(came)
    ledger = ledger_at(provider, account)
    served = ledger.due_nano
    if when == "after":
        taken = collude(market, account, colluders)
    provider.role.claim_all()
    await trio.sleep(120)
    return served, market.chain.paid.get(PAYOUT, 0), taken


def measured(colluders: int, when: str, pays: bool) -> tuple[int, int, int]:
    found: list[tuple[int, int, int]] = []

    async def main() -> None:
        async with open_market() as market:
            found.append(await story(market, colluders=colluders, when=when, pays=pays))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return found[0]


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("when", ["during", "after"])
@pytest.mark.parametrize("colluders", [1, 8, 40])
def test_an_honest_provider_loses_no_more_than_the_stated_bound(colluders: int, when: str, pays: bool) -> None:
    served, got, _ = measured(colluders, when, pays)
    assert served > 0
    assert served - got <= BOUND


def test_a_cheat_burns_half_of_what_it_takes_out_of_its_bond() -> None:
    _, got, taken = measured(40, "after", True)
    assert got + taken <= 5 * TON - BOND // 2  # of its own money: half of the bond is gone for good


if __name__ == "__main__":
    for colluders in (1, 8, 40):
        for when in ("during", "after"):
            for pays in (True, False):
                served, got, taken = measured(colluders, when, pays)
                print(f"{colluders:3} {when:6} {pays!s:5} served {served} got {got} lost {served - got} bound {BOUND}")
