"""Clients that do not pay: one takes answers and withholds its vouchers, one signs the same coins over to everybody.

Both run the real sessions and the real payer; only what the payer believes (over-issue) or what leaves it (withhold) is
bent. Damage is what honest providers served and will never be paid, as the chain has it at the end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cocoon.errors import Unavailable
from cocoon.pay.voucher import SignedVoucher
from cocoon.ports.chain import SpendingAccount
from sim.adversary.base import HOST_HOUR_NANO, Action, Adversary, View
from sim.econ.client import ClientPeer


class BadPayer(Adversary):
    """An account of its own, and a host."""

    takes = "client"

    def wrap(self, machine: Any) -> Any:
        """The client's purse."""
        if isinstance(machine, ClientPeer):
            self.bend(machine)
        return machine

    def bend(self, client: ClientPeer) -> None:
        """Change what its purse does."""

    def plan(self, view: View) -> list[Action]:
        """Rent."""
        return [Action(name="hosts", cost_nano=len(view.own) * HOST_HOUR_NANO // 3_600, do=_nothing)]


def _nothing() -> None:
    pass


class Withhold(BadPayer):
    """Receives, counts, signs, and sends nothing."""

    kind = "withhold"

    def bend(self, client: ClientPeer) -> None:
        purse = client.purse
        send = purse._send

        def withheld(payout: bytes, voucher: SignedVoucher) -> None:
            if self.is_active:
                self.damage.count("withheld_vouchers")
            else:
                send(payout, voucher)

        purse._send = withheld
        payer = purse.payer
        open_voucher = payer.open_voucher
        payer.open_voucher = (  # type: ignore[method-assign]
            lambda payout: b"" if self.is_active else open_voucher(payout)
        )


class OverIssue(BadPayer):
    """Believes in a thousand times its deposit, and signs it over to whoever asks. Its reserve it leaves empty: a
    reservation would secure the provider."""

    kind = "over-issue"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bent: list[ClientPeer] = []
        self._has_begun = False

    def plan(self, view: View) -> list[Action]:
        """Rent, and at the start another look at the chain, to believe in it."""
        if not self._has_begun:
            self._has_begun = True
            for client in self._bent:
                client.purse._look(client.purse.account, client.purse._proven)
        return super().plan(view)

    def bend(self, client: ClientPeer) -> None:
        self._bent.append(client)
        purse = client.purse
        look = purse._proven

        def inflated(state: Any) -> None:
            if isinstance(state, SpendingAccount) and self.is_active:
                state = replace(state, balance_nano=state.balance_nano * 1_000)
                self.damage.count("inflated_proofs")
            look(state)

        purse._proven = inflated  # type: ignore[method-assign]
        purse._terms = replace(purse._terms, spend_max_nano=10**15, reserve_max_nano=0)
        purse.payer = purse._make()


def unpaid_nano(client: ClientPeer, market: Any) -> int:
    """What providers served this client and neither hold a good voucher for nor were paid: tokens in the window, and
    vouchers that the account cannot honour."""
    served = held = 0
    for provider in market.providers:
        ledger = provider.till.payee.ledger(client.purse.account)
        if ledger is None:
            continue
        served += max(0, ledger.due_nano - ledger.paid_nano)
        held += ledger.claimable_nano
    try:
        state = market.chain.spending_account(client.purse.account, now=market.env.now)
    except Unavailable:
        state = None
    funds = 0 if state is None else max(0, state.balance_nano - state.bond_nano - 50_000_000) + state.bond_nano // 2
    return int(served + max(0, held - funds))
