"""`cocoon claims [--now]`: the vouchers that this provider holds, what the chain has paid of them, and claiming.

A running provider claims by itself, daily or when it is worth it. `--now` claims everything that is worth its fee; a
claim can be sent twice without harm, and anybody may send it: the contract pays the provider that the voucher names.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..adapters.store_reading import read_money
from ..errors import CocoonError, PaymentError
from ..ports import StoredClaim, StoredReservation, StoredVoucher, VoucherSide
from ..types import SECOND_NS, Nano, Network, format_ton
from . import money
from .console import Console
from .earnings import payout_of
from .money_views import moment, until

if TYPE_CHECKING:
    from ..pay.voucher import SignedVoucher
    from ..ports.chain import Chain, SpendingAccount


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """One account's debt to us in one epoch. `state` None: the chain was not asked, or has no such account."""

    voucher: StoredVoucher
    reservation: StoredReservation | None
    state: SpendingAccount | None

    @property
    def is_current(self) -> bool:
        """Vouchers of other epochs are void for ever."""
        return self.state is not None and self.state.epoch == self.voucher.epoch

    @property
    def claimed_nano(self) -> Nano:
        """What was paid, as the chain says now, or said last."""
        if self.state is not None and self.is_current:
            entry = self.state.entries.get(self.voucher.provider)
            return 0 if entry is None else entry.claimed_nano
        return 0 if self.reservation is None else self.reservation.claimed_nano

    @property
    def unclaimed_nano(self) -> Nano:
        """Signed and not paid."""
        return max(0, self.voucher.cumulative_nano - self.claimed_nano)

    @property
    def claimable_nano(self) -> Nano:
        """What a claim would bring now: our reserve, then what is free, then half the bond."""
        if self.state is None or not self.is_current:
            return 0
        from ..adapters.ton.contracts import RENT_NANO

        state = self.state
        entry = state.entries.get(self.voucher.provider)
        own = 0 if entry is None else entry.ceiling_nano - entry.claimed_nano
        bond = min(state.bond_nano, max(0, state.balance_nano - RENT_NANO))
        free = max(0, state.balance_nano - RENT_NANO - bond - state.reserved_nano)
        return min(self.unclaimed_nano, own + free + bond // 2)

    def to_object(self, network: Network) -> dict[str, Any]:
        """For programs."""
        from ..adapters.ton.addresses import contract_address

        entry = None if self.state is None else self.state.entries.get(self.voucher.provider)
        return {
            "account": contract_address(self.voucher.account, network),
            "epoch": self.voucher.epoch,
            "is_current": self.is_current if self.state is not None else None,
            "signed_nano": self.voucher.cumulative_nano,
            "claimed_nano": self.claimed_nano,
            "unclaimed_nano": self.unclaimed_nano,
            "claimable_nano": self.claimable_nano if self.state is not None else None,
            "reserved_nano": 0 if entry is None else entry.ceiling_nano - entry.claimed_nano,
            "claim_before_s": (self.state.unlock_at_s or None) if self.state is not None else None,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon claims`."""
    parser.add_argument("--now", action="store_true", help="claim what is worth its fee, in one message")
    parser.add_argument("--payout", metavar="ADDRESS", help="whose (default: as configured, or the wallet)")
    money.add_money(parser, spends=True)


def run(args: argparse.Namespace, console: Console) -> int:
    """Show, and with `--now` claim."""
    desk = money.desk(args, console, provider__payout=args.payout)
    if args.now:
        desk.needs_consent()
    payout = payout_of(desk.prepared)
    if args.now:
        return _claim(desk, payout, desk.unlock())
    return _show(desk, payout)


def _show(desk: money.Desk, payout: bytes) -> int:
    vouchers, settled, history = _known(desk, payout)

    async def program(chain: Chain) -> None:
        at_s: int | None = None
        try:
            ledgers = await _ledgers(chain, vouchers, settled)
            at_s = (await chain.head()).time_s
        except CocoonError as error:
            desk.console.explain_briefly(error)
            desk.console.say("Shown is what this node last knew of the chain.")
            ledgers = [_ledger(voucher, settled, None) for voucher in vouchers]
        _report(desk, payout, ledgers, history, at_s=at_s, extra={})

    return desk.run(program)


def _claim(desk: money.Desk, payout: bytes, key: Any) -> int:
    from ..adapters.ton.contracts import ACCOUNT_ERRORS
    from ..adapters.ton.operations import CLAIM_ATTACHED_NANO, claims
    from ..adapters.ton.paying import CLAIM_COST_NANO
    from ..pay.claims import CLAIMS_PER_MESSAGE_MAX

    vouchers, settled, history = _known(desk, payout)

    async def program(chain: Chain) -> None:
        ledgers = await _ledgers(chain, vouchers, settled)
        worth = [one for one in ledgers if one.claimable_nano > CLAIM_COST_NANO]
        if not worth:
            lost_nano = sum(one.unclaimed_nano for one in ledgers if not one.is_current)
            raise PaymentError(
                "nothing is worth claiming now"
                + (f"; {format_ton(lost_nano)} TON are signed on accounts that have rolled" if lost_nano else ""),
                advice=f"A claim costs about {format_ton(CLAIM_COST_NANO)} TON. `cocoon claims` shows what is held.",
            )
        worth.sort(key=lambda one: -one.claimable_nano)
        batch = worth[:CLAIMS_PER_MESSAGE_MAX]
        sum_nano = sum(one.claimable_nano for one in batch)
        await desk.agree(
            f"Claims {format_ton(sum_nano)} TON from {len(batch)} account{'s' * (len(batch) > 1)}; each takes about "
            f"{format_ton(CLAIM_COST_NANO)} TON of fees, and {format_ton(CLAIM_ATTACHED_NANO)} TON that come back."
        )
        signed = tuple(signed_voucher(one.voucher) for one in batch)
        await desk.send(desk.sender(key, chain), chain, claims(signed), errors=ACCOUNT_ERRORS)
        after = await _ledgers(chain, vouchers, settled)
        before = {(one.voucher.account, one.voucher.epoch): one.claimed_nano for one in ledgers}
        paid_nano = sum(one.claimed_nano - before[(one.voucher.account, one.voucher.epoch)] for one in after)
        at_s = (await chain.head()).time_s
        _report(desk, payout, after, history, at_s=at_s, extra={"claims": len(batch), "paid_nano": paid_nano})
        desk.console.line(f"claimed: {format_ton(paid_nano)} TON were paid out.")

    return desk.run(program)


def signed_voucher(kept: StoredVoucher) -> SignedVoucher:
    """A kept voucher as the contract's claim wants it."""
    from ..pay.voucher import SignedVoucher, Voucher

    voucher = Voucher(
        network=Network(kept.network),
        account=kept.account,
        epoch=kept.epoch,
        provider=kept.provider,
        cumulative_nano=kept.cumulative_nano,
        ceiling_nano=kept.ceiling_nano,
    )
    return SignedVoucher(voucher=voucher, signature=kept.signature)


def _known(
    desk: money.Desk, payout: bytes
) -> tuple[tuple[StoredVoucher, ...], tuple[StoredReservation, ...], tuple[StoredClaim, ...]]:
    network = int(desk.network)
    with read_money(desk.prepared.home.database_path) as known:
        return (
            known.vouchers(VoucherSide.HELD, network=network, party=payout),
            known.reservations(network=network, provider=payout),
            known.claims(network=network, provider=payout),
        )


async def _ledgers(
    chain: Chain, vouchers: tuple[StoredVoucher, ...], settled: tuple[StoredReservation, ...]
) -> list[Ledger]:
    """Every voucher beside its account's proven state. Raises as the port says."""
    states = {account: await chain.spending_account(account) for account in {one.account for one in vouchers}}
    return [_ledger(one, settled, states[one.account]) for one in vouchers]


def _ledger(voucher: StoredVoucher, settled: tuple[StoredReservation, ...], state: SpendingAccount | None) -> Ledger:
    own = (one for one in settled if (one.account, one.epoch) == (voucher.account, voucher.epoch))
    return Ledger(voucher=voucher, reservation=next(own, None), state=state)


def _report(
    desk: money.Desk,
    payout: bytes,
    ledgers: list[Ledger],
    history: tuple[StoredClaim, ...],
    *,
    at_s: int | None,
    extra: dict[str, Any],
) -> None:
    from ..adapters.ton.addresses import contract_address, wallet_address

    network, console = desk.network, desk.console
    shown = [ledger.to_object(network) for ledger in ledgers]
    console.data(
        {
            **extra,
            "network": network.label,
            "payout": wallet_address(payout, network),
            "ledgers": shown,
            "submitted": [
                {
                    "account": contract_address(one.account, network),
                    "epoch": one.epoch,
                    "cumulative_nano": one.cumulative_nano,
                    "submitted_s": one.submitted_ns // SECOND_NS,
                    "confirmed_s": one.confirmed_ns // SECOND_NS or None,
                    "received_nano": one.received_nano,
                }
                for one in history
            ],
            "at_s": at_s,
        }
    )
    if not shown:
        console.say("No voucher is held for this payout address.")
        return
    rows = [
        [
            line["account"],
            format_ton(line["signed_nano"]),
            format_ton(line["claimed_nano"]),
            format_ton(line["unclaimed_nano"]),
            format_ton(line["reserved_nano"]),
            _when(line, at_s),
        ]
        for line in shown
    ]
    console.table(("ACCOUNT", "SIGNED", "PAID", "UNCLAIMED", "RESERVED", "STATE"), rows, right=(1, 2, 3, 4))
    if at_s is not None:
        console.say(f"Amounts in TON, as of {moment(at_s)}.")


def _when(line: dict[str, Any], at_s: int | None) -> str:
    if at_s is None:
        return "the chain was not asked"
    if not line["is_current"]:
        return "void: the account has rolled"
    if line["claim_before_s"]:
        return f"NOTICE: claim before {until(line['claim_before_s'], at_s)}"
    return "open"
