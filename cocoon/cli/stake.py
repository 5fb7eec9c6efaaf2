"""`cocoon stake deposit|status|unbond|withdraw|rotate|slash|proofs`: what an operator loses if its key signs two offers
for one slot.

`slash` takes a proof of equivocation, as `proofs` exports what this node has seen: half of the stake burns, half is the
reporter's. `rotate` keeps the next operator key on disk before the chain is told of it.
"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import CocoonError, ConfigError, PaymentError
from ..types import Nano, format_ton
from . import money
from .console import Console
from .money_views import DAY_S, StakeView, aligned, moment, span, until
from .options import add_common

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from ..adapters.ton.kept import KeptStake
    from ..market.equivocation import EquivocationProof
    from ..ports.chain import Chain, StakeState, Transfer

DELAY_DAYS_DEFAULT: Final = 7  # the least that peers accept
PROOF_FILE_BYTES_MAX: Final = 4_096  # 512 bytes, as they are or in hex digits
WORDS: Final = "deposit|status|unbond|withdraw|rotate|slash|proofs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon stake`."""
    commands = parser.add_subparsers(dest="what", required=True, metavar=WORDS)
    deposit = commands.add_parser("deposit", help="stake coins; the first time, the operator key is registered")
    deposit.add_argument("amount", metavar="TON")
    deposit.add_argument(
        "--unbond-days", type=int, metavar="N", default=None, help="how long unbonding takes (default: 7, the least)"
    )
    status = commands.add_parser("status", help="what is staked, for which key, locked until when")
    unbond = commands.add_parser("unbond", help="start the clock towards a withdrawal")
    withdraw = commands.add_parser("withdraw", help="take the stake out, when the clock has run out")
    rotate = commands.add_parser("rotate", help="register a new operator key; the old one answers on for a while")
    slash = commands.add_parser("slash", help="show a proof of two contradicting offers to the stake that signed them")
    slash.add_argument("file", metavar="FILE", help="a proof, as `cocoon stake proofs --save DIR` writes it")
    proofs = commands.add_parser("proofs", help="the proofs of equivocation that this node has seen")
    proofs.add_argument("--save", metavar="DIR", help="write each to a file there")
    for command in (deposit, unbond, withdraw, rotate, slash):
        money.add_money(command, spends=True)
    money.add_money(status, spends=False)
    add_common(proofs)
    for command in (deposit, status, unbond, withdraw, rotate, slash, proofs):
        money.add_output(command)


def run(args: argparse.Namespace, console: Console) -> int:
    """One of them."""
    return {
        "deposit": _deposit,
        "status": _status,
        "unbond": _unbond,
        "withdraw": _withdraw,
        "rotate": _rotate,
        "slash": _slash,
        "proofs": _proofs,
    }[args.what](args, console)


# --- deposit ---------------------------------------------------------------------------------------------


def _deposit(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.ton.contracts import STAKE_ERRORS

    desk = money.desk(args, console)
    desk.needs_consent()
    amount_nano = money.amount(args.amount)
    kept = prepare_stake(desk, unbond_days=args.unbond_days)
    key = desk.unlock()
    operator = operator_key(desk)

    purpose = f"stake deposit {amount_nano}"

    async def program(chain: Chain) -> None:
        wallet = desk.sender(key, chain)
        registers = False
        if not await wallet.was_done(purpose):
            state = await chain.stake(kept.stake)
            registers = state is None or not state.epoch
            sent = _deposits(desk, kept, state, operator, amount_nano)
            extra_nano = sum(each.amount_nano for each in sent) - amount_nano
            now_s = (await chain.head()).time_s
            await desk.agree(
                f"Stakes {format_ton(amount_nano)} TON, less gas"
                + (f", and {format_ton(extra_nano)} TON for rent and the operator key." if registers else "."),
                f"Locked: it can be taken out {span(kept.unbond_delay_s)} after `cocoon stake unbond`, at the earliest "
                f"{moment(now_s + kept.unbond_delay_s)}.",
                "All of it is lost if the operator key signs two different offers for one slot.",
            )
            await desk.send(wallet, chain, sent, errors=STAKE_ERRORS, purpose=purpose)
        _report(desk, await _deposited(chain, kept), {"deposited_nano": amount_nano, "registered": registers})

    return desk.run(program)


def _deposits(
    desk: money.Desk, kept: KeptStake, state: StakeState | None, operator: SigningKey, amount_nano: Nano
) -> list[Transfer]:
    """The deposit, with what has to come first. Raises `PaymentError`."""
    from ..adapters.ton import operations

    deposit = operations.deposit_stake(kept.stake, amount_nano)
    if state is None:
        _, opening = operations.open_stake(
            kept.owner, unbond_delay_s=kept.unbond_delay_s, network=desk.network, operator=operator
        )
        return [opening, deposit]
    if state.unlock_at_s:
        raise PaymentError(
            f"this stake is unbonding until {until(state.unlock_at_s, state.at_s)} and takes no deposit",
            advice="Withdraw it first; then deposit again.",
        )
    if not state.epoch:
        return [operations.rotate_operator_key(kept.stake, network=desk.network, operator=operator), deposit]
    return [deposit]


def prepare_stake(desk: money.Desk, *, unbond_days: int | None) -> KeptStake:
    """The home's stake; which one it is is kept on the first call. Raises `ConfigError`."""
    from ..adapters.ton.kept import KeptStake, load_stake, save_stake
    from ..adapters.ton.operations import UNBOND_DELAY_MIN_S

    path = desk.prepared.home.create().stake_path(desk.network)
    kept = load_stake(path, network=desk.network)
    if kept is not None:
        if kept.owner != desk.owner():
            raise ConfigError(
                f"the stake in {path} belongs to another wallet", advice="Move that file away for a new one."
            )
        if unbond_days is not None and unbond_days * DAY_S != kept.unbond_delay_s:
            raise ConfigError(f"this stake unbonds in {span(kept.unbond_delay_s)}, which cannot be changed")
        return kept
    delay_s = (DELAY_DAYS_DEFAULT if unbond_days is None else unbond_days) * DAY_S
    if not UNBOND_DELAY_MIN_S <= delay_s < 1 << 31:
        raise ConfigError(f"unbonding takes at least {span(UNBOND_DELAY_MIN_S)}", advice="Peers accept no less.")
    kept = KeptStake(network=desk.network, owner=desk.owner(), unbond_delay_s=delay_s)
    save_stake(path, kept)
    return kept


# --- status, unbond, withdraw ----------------------------------------------------------------------------


def _status(args: argparse.Namespace, console: Console) -> int:
    desk = money.desk(args, console)
    kept = _kept(desk)

    async def program(chain: Chain) -> None:
        _report(desk, await _deposited(chain, kept), {})

    return desk.run(program)


def _unbond(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.ton.contracts import STAKE_ERRORS
    from ..adapters.ton.operations import request_unbond

    desk = money.desk(args, console)
    desk.needs_consent()
    kept = _kept(desk)
    key = desk.unlock()

    async def program(chain: Chain) -> None:
        state = await _deposited(chain, kept)
        if state.unlock_at_s:
            raise PaymentError(
                f"this stake is unbonding already, until {until(state.unlock_at_s, state.at_s)}",
                advice="Run `cocoon stake withdraw` after that.",
            )
        await desk.agree(
            f"Starts unbonding {format_ton(state.staked_nano)} TON: locked for {span(kept.unbond_delay_s)} more, until "
            f"{moment(state.at_s + kept.unbond_delay_s)}, and slashable until then.",
            "Offers that name this stake lose their standing. It cannot be called off.",
        )
        await desk.send(desk.sender(key, chain), chain, [request_unbond(kept.stake)], errors=STAKE_ERRORS)
        _report(desk, await _deposited(chain, kept), {})

    return desk.run(program)


def _withdraw(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.ton.contracts import STAKE_ERRORS
    from ..adapters.ton.operations import withdraw_stake
    from ..adapters.ton.outcome import came_back

    desk = money.desk(args, console)
    desk.needs_consent()
    kept = _kept(desk)
    key = desk.unlock()

    async def program(chain: Chain) -> None:
        state = await _deposited(chain, kept)
        if not state.unlock_at_s:
            raise PaymentError(
                f"{format_ton(state.staked_nano)} TON are locked: {span(kept.unbond_delay_s)} from unbonding on",
                advice="Begin it with `cocoon stake unbond`.",
            )
        if state.unlock_at_s > state.at_s:
            raise PaymentError(
                f"{format_ton(state.staked_nano)} TON are locked until {until(state.unlock_at_s, state.at_s)}",
                advice="Run `cocoon stake withdraw` again after that.",
            )
        await desk.agree(f"Takes {format_ton(state.staked_nano)} TON out to the wallet; 0.05 TON stay for rent.")
        sent = await desk.send(desk.sender(key, chain), chain, [withdraw_stake(kept.stake)], errors=STAKE_ERRORS)
        received_nano = await came_back(chain, sent, source=kept.stake, watch=desk.watch())
        _report(desk, await _deposited(chain, kept), {"received_nano": received_nano})

    return desk.run(program)


# --- rotate ----------------------------------------------------------------------------------------------


def _rotate(args: argparse.Namespace, console: Console) -> int:
    from nacl.signing import SigningKey

    from ..adapters.clock import entropy
    from ..adapters.keyfile import load_or_create_seed
    from ..adapters.ton.contracts import STAKE_ERRORS
    from ..adapters.ton.operations import rotate_operator_key

    desk = money.desk(args, console)
    desk.needs_consent()
    kept = _kept(desk)
    key = desk.unlock()
    path = desk.prepared.home.operator_key_path
    next_path = path.with_name(path.name + ".next")
    operator = SigningKey(load_or_create_seed(next_path, entropy=entropy).reveal())

    async def program(chain: Chain) -> None:
        wallet = desk.sender(key, chain)
        await wallet.was_done("stake rotate")
        state = await _deposited(chain, kept)
        current = state.keys.get(state.epoch)
        if current is None or current.key != bytes(operator.verify_key):  # else a killed rotation had got that far
            if state.unlock_at_s:
                raise PaymentError("an unbonding stake takes no new key", advice="Withdraw it, and deposit again.")
            await desk.agree(
                "Registers a new operator key. The old one answers for what it signed for "
                f"{span(kept.unbond_delay_s)} more, until {moment(state.at_s + kept.unbond_delay_s)}; keep its file.",
            )
            sent = rotate_operator_key(kept.stake, network=desk.network, operator=operator)
            await desk.send(wallet, chain, [sent], errors=STAKE_ERRORS, purpose="stake rotate")
            state = await _deposited(chain, kept)
        retired = _swap(path, next_path)
        _report(desk, state, {"rotated": True, "retired_key_path": retired})
        console.say(f"The old key is in {retired}. Start `cocoon serve` anew: it goes on with the new one.")

    return desk.run(program)


def _swap(path: Path, next_path: Path) -> str | None:
    """The next key becomes the current one; where the old one is kept. Raises `ConfigError`."""
    retired: Path | None = None
    try:
        if path.exists():
            names = (path.with_name(f"{path.name}.retired-{number}") for number in itertools.count(1))
            retired = next(name for name in names if not name.exists())
            os.link(path, retired)
        os.replace(next_path, path)
    except OSError as error:
        raise ConfigError(
            f"the chain has the new operator key, but {next_path} cannot become {path}: {error.strerror}",
            advice="Mend that, and run `cocoon stake rotate` again; nothing is sent twice.",
        ) from error
    return None if retired is None else str(retired)


# --- slash -----------------------------------------------------------------------------------------------


def _slash(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.ton.addresses import contract_address
    from ..adapters.ton.contracts import STAKE_ERRORS
    from ..adapters.ton.operations import slash
    from ..adapters.ton.outcome import came_back

    desk = money.desk(args, console)
    desk.needs_consent()
    proof = read_proof(Path(args.file).expanduser(), desk)
    showing = slash(proof)  # refuses what no contract can check
    key = desk.unlock()

    async def program(chain: Chain) -> None:
        state = await chain.stake(proof.first.stake)
        shown = contract_address(proof.first.stake, desk.network)
        if state is None or not state.staked_nano:
            raise PaymentError(f"nothing is staked in {shown}", advice="There is nothing to slash, or it was slashed.")
        registered = state.keys.get(proof.first.key_epoch)
        if registered is None or registered.key != proof.operator:
            raise PaymentError(
                f"{shown} does not know the key that signed this proof", advice="Its time to answer may be over."
            )
        await desk.agree(
            f"Slashes {shown}: of {format_ton(state.staked_nano)} TON half burns, and half comes to this wallet.",
            "Sends 0.05 TON with it, which come back less gas. Somebody else may be faster; then only gas is lost.",
        )
        sent = await desk.send(desk.sender(key, chain), chain, [showing], errors=STAKE_ERRORS)
        received_nano = await came_back(chain, sent, source=state.stake, watch=desk.watch())
        console.data(
            {
                "network": desk.network.label,
                "stake": shown,
                "operator": proof.operator.hex(),
                "slot": proof.slot.hex(),
                "slashed_nano": state.staked_nano,
                "burnt_nano": state.staked_nano // 2,
                "received_nano": received_nano,
            }
        )
        console.line(f"slashed: {format_ton(received_nano)} TON came to the wallet.")

    return desk.run(program)


def read_proof(path: Path, desk: money.Desk) -> EquivocationProof:
    """A proof from a file: its bytes, or their hex digits. Raises `ConfigError`."""
    from ..market.equivocation import verify_proof

    try:
        with path.open("rb") as file:
            data = file.read(PROOF_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"the proof {path} cannot be read: {error.strerror}") from error
    try:
        data = bytes.fromhex(data.decode("ascii"))
    except ValueError:
        pass  # the bytes themselves
    try:
        proof = verify_proof(data)
    except CocoonError as error:
        raise ConfigError(
            f"{path} proves nothing: {error}", advice="`cocoon stake proofs --save DIR` writes proofs that do."
        ) from error
    if proof.network is not desk.network:
        raise ConfigError(
            f"the proof is about {proof.network.label}, not {desk.network.label}",
            advice=f"Pass --network {proof.network.label}.",
        )
    return proof


def _proofs(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.store_reading import read_money
    from ..adapters.ton.addresses import contract_address
    from ..market.equivocation import verify_proof

    desk = money.desk(args, console)
    with read_money(desk.prepared.home.database_path) as known:
        found = [(data, verify_proof(data)) for data in known.proofs()]
    shown: list[dict[str, Any]] = []
    for data, proof in found:
        name = proof.first.stake.hex()[:16] if proof.is_slashable else "unstaked"
        path = None if args.save is None else Path(args.save).expanduser() / f"{name}-{proof.slot.hex()[:16]}.proof"
        if path is not None:
            _write(path, data)
        shown.append(
            {
                "network": proof.network.label,
                "operator": proof.operator.hex(),
                "stake": contract_address(proof.first.stake, proof.network) if proof.is_slashable else None,
                "slot": proof.slot.hex(),
                "is_slashable": proof.is_slashable,
                "path": None if path is None else str(path),
            }
        )
    console.data({"proofs": shown})
    if not shown:
        console.say("This node has seen no operator contradict itself.")
        return 0
    rows = [[one["operator"][:16] + "…", one["stake"] or "no stake", one["path"] or ""] for one in shown]
    console.table(("OPERATOR", "STAKE", "FILE"), rows)
    return 0


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


# --- shared ----------------------------------------------------------------------------------------------


def _kept(desk: money.Desk) -> KeptStake:
    """This home's stake. Raises `PaymentError` when there is none."""
    from ..adapters.ton.kept import load_stake

    kept = load_stake(desk.prepared.home.stake_path(desk.network), network=desk.network)
    if kept is None:
        raise PaymentError(
            f"this home has no stake on {desk.network.label}", advice="Make one with `cocoon stake deposit TON`."
        )
    return kept


async def _deposited(chain: Chain, kept: KeptStake) -> StakeState:
    """Its proven state. Raises `PaymentError` when nothing was ever deployed."""
    state = await chain.stake(kept.stake)
    if state is None:
        raise PaymentError(
            "the chain does not have this stake", advice="Make it with `cocoon stake deposit TON`; is it this chain?"
        )
    return state


def operator_key(desk: money.Desk) -> SigningKey:
    """O, made on first use as `cocoon serve` does. Raises `ConfigError`."""
    from nacl.signing import SigningKey

    from ..adapters.clock import entropy
    from ..adapters.keyfile import load_or_create_seed

    return SigningKey(load_or_create_seed(desk.prepared.home.operator_key_path, entropy=entropy).reveal())


def _report(desk: money.Desk, state: StakeState, extra: dict[str, Any]) -> None:
    from nacl.signing import SigningKey

    from ..adapters.keyfile import load_seed

    path = desk.prepared.home.operator_key_path
    operator = bytes(SigningKey(load_seed(path).reveal()).verify_key) if path.exists() else None
    view = StakeView(network=desk.network, state=state, operator=operator)
    desk.console.data({**extra, **view.to_object()})
    for line in aligned([*view.lines(), ("as of", moment(state.at_s))]):
        desk.console.line(line)
