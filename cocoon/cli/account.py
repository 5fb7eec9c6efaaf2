"""`cocoon account open|topup|status|withdraw`: the spending account, which pays any provider from one deposit.

Opening is two secrets and one message: the voucher key V and the account's salt are on disk first, so that a killed
`open` goes on with the same account. Withdrawing takes a day: the first call gives notice, a later one takes the money.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError, PaymentError
from ..types import Nano, Secret, format_ton, ton
from . import money
from .console import Console
from .money_views import AccountView, aligned, moment, until

if TYPE_CHECKING:
    from ..adapters.ton.kept import KeptAccount
    from ..ports.chain import Chain, SpendingAccount

DEPOSIT_DEFAULT: Final = "5"
BOND_DEFAULT: Final = "1"  # stands behind what is signed and not reserved: providers serve on 1/64 of it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon account`."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="open|topup|status|withdraw")
    opened = commands.add_parser("open", help="deploy and fund an account")
    opened.add_argument("--deposit", metavar="TON", default=DEPOSIT_DEFAULT, help="bond included (default: 5)")
    opened.add_argument("--bond", metavar="TON", default=BOND_DEFAULT, help="what providers rely on (default: 1)")
    topup = commands.add_parser("topup", help="deposit more")
    topup.add_argument("amount", metavar="TON")
    topup.add_argument("--bond", action="store_true", help="raise the bond instead")
    status = commands.add_parser("status", help="what is there, what is signed, what is locked and until when")
    withdraw = commands.add_parser("withdraw", help="give notice; a day later, take the money")
    withdraw.add_argument("--amount", metavar="TON", help="take this much and keep the bond (default: everything)")
    withdraw.add_argument("--cancel", action="store_true", help="call the notice off")
    for command in (opened, topup, withdraw):
        money.add_money(command, spends=True)
    money.add_money(status, spends=False)
    for command in (opened, topup, status, withdraw):
        money.add_output(command)


def run(args: argparse.Namespace, console: Console) -> int:
    """One of the four."""
    return {"open": _open, "topup": _topup, "status": _status, "withdraw": _withdraw}[args.what](args, console)


# --- open ------------------------------------------------------------------------------------------------


def _open(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.ton.contracts import ACCOUNT_ERRORS
    from ..adapters.ton.operations import OPEN_MIN_NANO, open_account

    desk = money.desk(args, console)
    desk.needs_consent()
    deposit_nano, bond_nano = money.amount(args.deposit), ton(args.bond)
    if deposit_nano < bond_nano + OPEN_MIN_NANO:
        raise ConfigError(
            "the deposit does not cover the bond, rent and gas",
            advice=f"It must be at least {format_ton(OPEN_MIN_NANO)} TON more than the bond.",
        )
    key = desk.unlock()
    kept, voucher_key = prepare_account(desk)

    async def program(chain: Chain) -> None:
        wallet = desk.sender(key, chain)
        await wallet.was_done("account open")
        state = await chain.spending_account(kept.account)
        is_new = state is None or state.epoch == 0
        if is_new:
            await desk.agree(
                f"Opens a spending account with {format_ton(deposit_nano)} TON, of which {format_ton(bond_nano)} TON "
                "are a bond and 0.05 TON stay for rent.",
                "Locked: nothing of it can be taken back sooner than 24 h after a notice. Providers are paid from it "
                "by vouchers; over-issuing burns the bond.",
            )
            account, opening = open_account(
                kept.owner, kept.salt, voucher_key=voucher_key, deposit_nano=deposit_nano, bond_nano=bond_nano
            )
            assert account == kept.account
            await desk.send(wallet, chain, [opening], errors=ACCOUNT_ERRORS, purpose="account open")
            state = await chain.spending_account(kept.account)
        if state is None or state.epoch == 0:
            raise PaymentError("the account is not open", advice="Run `cocoon account status` in a minute.")
        view = view_of(desk, kept, state)
        console.data({"opened": is_new, **view.to_object()})
        console.say("The account is open." if is_new else "It is open already; `cocoon account topup` adds to it.")
        if not view.to_object()["is_our_key"]:
            console.notice(
                "This home cannot pay from it: its voucher key is another, as after a restore. `cocoon account "
                "withdraw` gives it this home's key."
            )
        _print(view, console)

    return desk.run(program)


def prepare_account(desk: money.Desk) -> tuple[KeptAccount, bytes]:
    """The home's account and V's public half; both are made and kept on the first call. Raises `ConfigError`."""
    from nacl.signing import SigningKey

    from ..adapters.clock import entropy
    from ..adapters.keyfile import load_or_create_seed
    from ..adapters.ton.kept import KeptAccount, load_account, save_account

    home = desk.prepared.home.create()
    path = home.account_path(desk.network)
    kept = load_account(path, network=desk.network)
    if kept is None:
        kept = KeptAccount(network=desk.network, owner=desk.owner(), salt=int.from_bytes(entropy(8), "big"))
        save_account(path, kept)
    elif kept.owner != desk.owner():
        raise ConfigError(
            f"the account in {path} belongs to another wallet",
            advice="Move that file away to open one for this wallet.",
        )
    seed = load_or_create_seed(home.voucher_key_path(desk.network), entropy=entropy)
    return kept, bytes(SigningKey(seed.reveal()).verify_key)


# --- topup -----------------------------------------------------------------------------------------------


def _topup(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.ton.contracts import ACCOUNT_ERRORS
    from ..adapters.ton.operations import add_bond, top_up

    desk = money.desk(args, console)
    desk.needs_consent()
    amount_nano = money.amount(args.amount)
    kept = _kept(desk)
    key = desk.unlock()
    what = "the bond" if args.bond else "the deposit"
    purpose = f"account topup {amount_nano} to {what}"

    async def program(chain: Chain) -> None:
        wallet = desk.sender(key, chain)
        if not await wallet.was_done(purpose):
            await _opened(chain, kept)
            await desk.agree(
                f"Adds {format_ton(amount_nano)} TON to {what} of the spending account; locked: 24 h from a notice on."
            )
            adding = add_bond(kept.account, amount_nano) if args.bond else top_up(kept.account, amount_nano)
            await desk.send(wallet, chain, [adding], errors=ACCOUNT_ERRORS, purpose=purpose)
        view = view_of(desk, kept, await _opened(chain, kept))
        console.data({"added_nano": amount_nano, "is_bond": args.bond, **view.to_object()})
        _print(view, console)

    return desk.run(program)


# --- status ----------------------------------------------------------------------------------------------


def _status(args: argparse.Namespace, console: Console) -> int:
    desk = money.desk(args, console)
    kept = _kept(desk)

    async def program(chain: Chain) -> None:
        view = view_of(desk, kept, await _opened(chain, kept))
        console.data(view.to_object())
        _print(view, console)

    return desk.run(program)


# --- withdraw --------------------------------------------------------------------------------------------


def _withdraw(args: argparse.Namespace, console: Console) -> int:
    desk = money.desk(args, console)
    desk.needs_consent()
    amount_nano = None if args.amount is None else money.amount(args.amount)
    if args.cancel and amount_nano is not None:
        raise ConfigError("--cancel and --amount exclude one another")
    kept = _kept(desk)
    key = desk.unlock()

    async def program(chain: Chain) -> None:
        state = await _opened(chain, kept)
        step: Callable[..., Any]
        if args.cancel:
            step = _cancel
        elif not state.unlock_at_s:
            step = _notice
        elif state.unlock_at_s > state.at_s:
            raise PaymentError(
                f"{format_ton(state.balance_nano)} TON are locked until {until(state.unlock_at_s, state.at_s)}: "
                "until then providers can claim what they hold",
                advice="Run `cocoon account withdraw` again after that, or with --cancel to go on spending.",
            )
        else:
            step = _take
        await step(desk, key, chain, kept, state, amount_nano)

    return desk.run(program)


async def _notice(
    desk: money.Desk, key: Any, chain: Chain, kept: KeptAccount, state: SpendingAccount, amount_nano: Nano | None
) -> None:
    from ..adapters.ton.contracts import ACCOUNT_ERRORS
    from ..adapters.ton.operations import give_notice

    signed_nano = view_of(desk, kept, state).to_object()["signed_nano"]
    await desk.agree(
        f"Gives notice: in 24 h the {format_ton(state.balance_nano)} TON can be taken out.",
        f"Until then providers claim what they hold (vouchers over {format_ton(signed_nano)} TON are out), and most "
        "serve this account no longer.",
    )
    await desk.send(desk.sender(key, chain), chain, [give_notice(kept.account)], errors=ACCOUNT_ERRORS)
    after = await _opened(chain, kept)
    _report(desk, kept, after, phase="notice")
    desk.console.line(f"notice given. Locked until {until(after.unlock_at_s, after.at_s)}; then run this again.")


async def _cancel(
    desk: money.Desk, key: Any, chain: Chain, kept: KeptAccount, state: SpendingAccount, amount_nano: Nano | None
) -> None:
    from ..adapters.ton.contracts import ACCOUNT_ERRORS
    from ..adapters.ton.operations import give_notice

    if not state.unlock_at_s:
        raise PaymentError("no notice is running", advice="There is nothing to cancel.")
    await desk.agree("Calls the notice off: the account pays as before, and everything is locked again.")
    await desk.send(desk.sender(key, chain), chain, [give_notice(kept.account, cancel=True)], errors=ACCOUNT_ERRORS)
    _report(desk, kept, await _opened(chain, kept), phase="cancelled")
    desk.console.line("the notice is off.")


async def _take(
    desk: money.Desk, key: Any, chain: Chain, kept: KeptAccount, state: SpendingAccount, amount_nano: Nano | None
) -> None:
    from ..adapters.ton.contracts import ACCOUNT_ERRORS, ALL_NANO
    from ..adapters.ton.operations import roll
    from ..adapters.ton.outcome import came_back

    view = view_of(desk, kept, state)
    takes_all = amount_nano is None
    most_nano = view.free_nano + state.reserved_nano + (view.bond_nano if takes_all else 0)
    wanted_nano = most_nano if amount_nano is None else amount_nano
    if wanted_nano > most_nano:
        raise PaymentError(
            f"{format_ton(most_nano)} TON can be taken out beside the bond, not {format_ton(wanted_nano)}",
            advice="Without --amount the bond comes, too.",
        )
    signed_nano = view.to_object()["signed_nano"]
    await desk.agree(
        f"Takes {format_ton(wanted_nano)} TON out to the wallet, less a fee of below 0.01 TON. 0.05 TON stay for rent.",
        f"Vouchers that were not claimed are void from then on ({format_ton(signed_nano)} TON).",
    )
    taking = roll(
        kept.account,
        voucher_key=prepare_account(desk)[1],  # a restored home has a new one
        bond_nano=0 if takes_all else view.bond_nano,
        out_nano=ALL_NANO if takes_all else wanted_nano,
    )
    sent = await desk.send(desk.sender(key, chain), chain, [taking], errors=ACCOUNT_ERRORS)
    received_nano = await came_back(chain, sent, source=kept.account, watch=desk.watch())
    _report(desk, kept, await _opened(chain, kept), phase="withdrawn", received_nano=received_nano)
    desk.console.line(f"taken out: {format_ton(received_nano)} TON came to the wallet.")


def _report(
    desk: money.Desk, kept: KeptAccount, state: SpendingAccount, *, phase: str, received_nano: Nano = 0
) -> None:
    view = view_of(desk, kept, state)
    desk.console.data({"phase": phase, "received_nano": received_nano, **view.to_object()})


# --- shared ----------------------------------------------------------------------------------------------


def _kept(desk: money.Desk) -> KeptAccount:
    """This home's account. Raises `PaymentError` when there is none."""
    from ..adapters.ton.kept import load_account

    kept = load_account(desk.prepared.home.account_path(desk.network), network=desk.network)
    if kept is None:
        raise PaymentError(
            f"this home has no spending account on {desk.network.label}", advice="Open one with `cocoon account open`."
        )
    return kept


async def _opened(chain: Chain, kept: KeptAccount) -> SpendingAccount:
    """Its proven state. Raises `PaymentError` when it was never opened."""
    state = await chain.spending_account(kept.account)
    if state is None or state.epoch == 0:
        raise PaymentError(
            "the chain does not have this account open",
            advice="Finish it with `cocoon account open`; is it this chain?",
        )
    return state


def view_of(desk: money.Desk, kept: KeptAccount, state: SpendingAccount) -> AccountView:
    """The state beside what this home has signed."""
    from ..adapters.keyfile import load_seed
    from ..adapters.store_reading import read_money
    from ..ports import VoucherSide

    home = desk.prepared.home
    path = home.voucher_key_path(desk.network)
    with read_money(home.database_path) as known:
        issued = known.vouchers(VoucherSide.ISSUED, network=int(desk.network), party=kept.account)
    return AccountView(
        network=desk.network,
        state=state,
        issued=issued,
        voucher_key=_public(load_seed(path)) if path.exists() else None,
    )


def _public(seed: Secret) -> bytes:
    from nacl.signing import SigningKey

    return bytes(SigningKey(seed.reveal()).verify_key)


def _print(view: AccountView, console: Console) -> None:
    for line in aligned([*view.lines(), ("as of", moment(view.state.at_s))]):
        console.line(line)
