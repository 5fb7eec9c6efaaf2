"""How money looks: TON for people, integers of nanoTON for programs, and locked money always with *until when*.

Values in, lines and objects out. Times are the chain's, because its clock is what unlocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ..adapters.ton.addresses import contract_address, wallet_address
from ..adapters.ton.contracts import NOTICE_S, RENT_NANO
from ..ports import StoredVoucher
from ..ports.chain import SpendingAccount, StakeState
from ..types import Nano, Network, format_ton

DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """Money that its owner cannot take now. `until_s` None: until something that is said in `words`."""

    what: str
    amount_nano: Nano
    until_s: int | None
    words: str

    def to_object(self) -> dict[str, Any]:
        """For programs."""
        return {"what": self.what, "amount_nano": self.amount_nano, "until_s": self.until_s, "until": self.words}


def moment(time_s: int) -> str:
    """`2026-11-22 15:04:05 UTC`."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def until(time_s: int, now_s: int) -> str:
    """A moment, and how long that is."""
    left_s = time_s - now_s
    return f"{moment(time_s)} (in {span(left_s)})" if left_s > 0 else f"{moment(time_s)} (past)"


def span(seconds: int) -> str:
    """`2 days 3 h`, `23 h 59 min`, `40 s`."""
    days, rest = divmod(seconds, DAY_S)
    hours, rest = divmod(rest, 3_600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days} day{'s' * (days > 1)}" + (f" {hours} h" if hours else "")
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes and not secs else f"{minutes} min {secs} s" if minutes else f"{secs} s"


# --- the spending account --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountView:
    """A proven account, and what we have signed for it."""

    network: Network
    state: SpendingAccount
    issued: tuple[StoredVoucher, ...]  # ours
    voucher_key: bytes | None  # V's public half in this home

    @property
    def is_open(self) -> bool:
        """It was rolled at least once."""
        return self.state.epoch != 0

    @property
    def bond_nano(self) -> Nano:
        """What is really there of the bond."""
        return min(self.state.bond_nano, max(0, self.state.balance_nano - RENT_NANO))

    @property
    def free_nano(self) -> Nano:
        """Neither rent, nor bond, nor reserved."""
        return max(0, self.state.balance_nano - RENT_NANO - self.bond_nano - self.state.reserved_nano)

    def signed_nano(self, provider: bytes) -> Nano:
        """Signed for this provider and not claimed by it yet."""
        entry = self.state.entries.get(provider)
        return sum(
            max(0, voucher.cumulative_nano - (0 if entry is None else entry.claimed_nano))
            for voucher in self.issued
            if voucher.provider == provider and voucher.epoch == self.state.epoch
        )

    @property
    def providers(self) -> tuple[bytes, ...]:
        """Everybody with a line in the account, or a voucher of this epoch."""
        signed = {voucher.provider for voucher in self.issued if voucher.epoch == self.state.epoch}
        return tuple(sorted(signed | set(self.state.entries)))

    @property
    def spendable_nano(self) -> Nano:
        """What new requests can still be paid with: free, less what is signed beyond the reserves."""
        beyond = 0
        for provider in self.providers:
            entry = self.state.entries.get(provider)
            reserve = 0 if entry is None else entry.ceiling_nano - entry.claimed_nano
            beyond += max(0, self.signed_nano(provider) - reserve)
        return max(0, self.free_nano - beyond)

    def locked(self) -> tuple[Locked, ...]:
        """Everything in the account that cannot be taken out now, with until when."""
        if not self.is_open:
            return ()
        state = self.state
        if state.unlock_at_s:
            until_s: int | None = state.unlock_at_s
            words = f"until {until(state.unlock_at_s, state.at_s)}"
        else:
            until_s = None
            words = f"until 24 h after `cocoon account withdraw`, not before {moment(state.at_s + NOTICE_S)}"
        is_due = bool(state.unlock_at_s) and state.unlock_at_s <= state.at_s
        found = []
        if not is_due:
            found.append(Locked(what="bond", amount_nano=self.bond_nano, until_s=until_s, words=words))
            found.append(
                Locked(what="free", amount_nano=self.free_nano, until_s=until_s, words=f"{words}; free to spend")
            )
            found.append(
                Locked(
                    what="reserved",
                    amount_nano=state.reserved_nano,
                    until_s=until_s,
                    words=f"{words}; providers may claim it till then",
                )
            )
        rent = min(RENT_NANO, state.balance_nano)
        found.append(
            Locked(
                what="rent",
                amount_nano=rent,
                until_s=None,
                words="for good: it is the rent that keeps the account alive",
            )
        )
        return tuple(each for each in found if each.amount_nano)

    def to_object(self) -> dict[str, Any]:
        """For programs."""
        state = self.state
        return {
            "network": self.network.label,
            "account": contract_address(state.account, self.network),
            "account_id": state.account.hex(),
            "owner": wallet_address(state.owner, self.network),
            "is_open": self.is_open,
            "epoch": state.epoch,
            "voucher_key": state.voucher_key.hex(),
            "is_our_key": self.voucher_key is not None and self.voucher_key == state.voucher_key,
            "balance_nano": state.balance_nano,
            "spendable_nano": self.spendable_nano,
            "free_nano": self.free_nano,
            "bond_nano": self.bond_nano,
            "reserved_nano": state.reserved_nano,
            "signed_nano": sum(map(self.signed_nano, self.providers)),
            "unlock_at_s": state.unlock_at_s or None,
            "locked": [each.to_object() for each in self.locked()],
            "providers": [self._provider(provider) for provider in self.providers],
            "at_s": state.at_s,
        }

    def _provider(self, provider: bytes) -> dict[str, Any]:
        entry = self.state.entries.get(provider)
        claimed, ceiling = (0, 0) if entry is None else (entry.claimed_nano, entry.ceiling_nano)
        return {
            "provider": wallet_address(provider, self.network),
            "claimed_nano": claimed,
            "reserved_nano": ceiling - claimed,
            "signed_nano": self.signed_nano(provider),
        }

    def lines(self) -> list[tuple[str, str]]:
        """For people: a name and what is to be said."""
        state = self.state
        if not self.is_open:
            return [("account", contract_address(state.account, self.network)), ("state", "never opened")]
        ours = "" if self.voucher_key == state.voucher_key else "; its voucher key is NOT the one in this home"
        lines = [
            ("account", contract_address(state.account, self.network)),
            ("owner", wallet_address(state.owner, self.network)),
            ("state", f"open since {moment(state.epoch)}{ours}"),
            ("balance", f"{format_ton(state.balance_nano)} TON"),
            ("spendable", f"{format_ton(self.spendable_nano)} TON"),
            ("signed", f"{format_ton(sum(map(self.signed_nano, self.providers)))} TON that providers have not claimed"),
        ]
        if state.unlock_at_s:
            lines.append(("notice", f"given; everything unlocks {until(state.unlock_at_s, state.at_s)}"))
        lines += locked_lines(self.locked())
        for provider in self.providers:
            line = self._provider(provider)
            sums = f"claimed {format_ton(line['claimed_nano'])}, reserved {format_ton(line['reserved_nano'])}"
            lines.append(("provider", f"{line['provider']}  {sums}, signed {format_ton(line['signed_nano'])} TON"))
        return lines


# --- the stake -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeView:
    """A proven stake."""

    network: Network
    state: StakeState
    operator: bytes | None  # O's public half in this home

    @property
    def condition(self) -> str:
        """`bonded`, `unbonding` or `withdrawable`; `empty` when nothing is staked."""
        if not self.state.staked_nano:
            return "empty"
        if not self.state.unlock_at_s:
            return "bonded"
        return "withdrawable" if self.state.unlock_at_s <= self.state.at_s else "unbonding"

    def locked(self) -> tuple[Locked, ...]:
        """The stake, with until when."""
        state = self.state
        found = []
        if self.condition == "bonded":
            earliest = moment(state.at_s + state.unbond_delay_s)
            words = f"until {span(state.unbond_delay_s)} after `cocoon stake unbond`, not before {earliest}"
            found.append(Locked(what="stake", amount_nano=state.staked_nano, until_s=None, words=words))
        elif self.condition == "unbonding":
            words = f"until {until(state.unlock_at_s, state.at_s)}"
            found.append(Locked(what="stake", amount_nano=state.staked_nano, until_s=state.unlock_at_s, words=words))
        rent = min(RENT_NANO, state.balance_nano)
        found.append(
            Locked(
                what="rent", amount_nano=rent, until_s=None, words="for good: it is the rent that keeps the stake alive"
            )
        )
        return tuple(each for each in found if each.amount_nano)

    def to_object(self) -> dict[str, Any]:
        """For programs."""
        state = self.state
        current = state.keys.get(state.epoch)
        return {
            "network": self.network.label,
            "stake": contract_address(state.stake, self.network),
            "stake_id": state.stake.hex(),
            "owner": wallet_address(state.owner, self.network),
            "condition": self.condition,
            "staked_nano": state.staked_nano,
            "balance_nano": state.balance_nano,
            "unbond_delay_s": state.unbond_delay_s,
            "unlock_at_s": state.unlock_at_s or None,
            "epoch": state.epoch,
            "operator": None if current is None else current.key.hex(),
            "is_our_key": current is not None and current.key == self.operator,
            "retired_keys": [
                {"epoch": epoch, "operator": key.key.hex(), "answers_until_s": key.retired_at_s + state.unbond_delay_s}
                for epoch, key in sorted(state.keys.items())
                if key.retired_at_s
            ],
            "locked": [each.to_object() for each in self.locked()],
            "at_s": state.at_s,
        }

    def lines(self) -> list[tuple[str, str]]:
        """For people."""
        state = self.state
        current = state.keys.get(state.epoch)
        ours = "this home's" if current is not None and current.key == self.operator else "NOT this home's"
        lines = [
            ("stake", contract_address(state.stake, self.network)),
            ("owner", wallet_address(state.owner, self.network)),
            ("staked", f"{format_ton(state.staked_nano)} TON, {self.condition}"),
            ("operator", "none is registered" if current is None else f"{current.key.hex()} ({ours})"),
        ]
        lines += locked_lines(self.locked())
        for key in state.keys.values():
            if key.retired_at_s:
                ends = until(key.retired_at_s + state.unbond_delay_s, state.at_s)
                lines.append(("retired", f"{key.key.hex()} still answers until {ends}"))
        return lines


def locked_lines(locked: Sequence[Locked]) -> list[tuple[str, str]]:
    """For people."""
    return [(f"{each.what}", f"{format_ton(each.amount_nano)} TON locked {each.words}") for each in locked]


def aligned(lines: Sequence[tuple[str, str]]) -> list[str]:
    """Names and values in two columns."""
    width = max((len(name) for name, _ in lines), default=0)
    return [f"{name:<{width}}  {value}" for name, value in lines]


def totals(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, int]:
    """Sums of these fields."""
    return {name: sum(int(row[name]) for row in rows) for name in names}
