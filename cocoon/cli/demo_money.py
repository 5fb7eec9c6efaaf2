"""The demo's money: a devnet as a child, coins from its faucet, an account that pays, stakes, and claims on the chain.

Everything goes the way it does outside a demo: the same wallets, contracts and commands, over proven states. Only the
claims differ: a provider waits until one is worth its fee, the demo claims at once, so that it can be seen.

Where Node.js or the npm packages cannot be had, the demo says so in a line and runs unpaid. Not here: the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from ..adapters.clock import entropy
from ..adapters.keyfile import load_or_create_seed
from ..adapters.store_reading import read_money
from ..config import Config, Home, override
from ..errors import CocoonError, ConfigError, Unavailable
from ..ports import StoredVoucher, VoucherSide
from ..types import NANO_PER_TON, Nano, Network, Secret, format_ton
from .children import Child, ChildGroup
from .console import Console
from .money import opened_chain
from .options import Setup

if TYPE_CHECKING:
    from ..adapters.ton.wallet import WalletKey
    from ..ports.chain import Chain

NETWORK: Final = Network.DEVNET
DEPOSIT_NANO: Final = 5 * NANO_PER_TON
BOND_NANO: Final = NANO_PER_TON
STAKE_NANO: Final = 10 * NANO_PER_TON
POCKET_NANO: Final = 2 * NANO_PER_TON  # beside that, for fees and what comes back
UNBOND_DELAY_S: Final = 7 * 86_400
PASSPHRASE_FILE: Final = "passphrase"  # noqa: S105 - the name of a file
CHAT_HOME: Final = "chat"  # `cocoon chat` beside the gateway needs an account of its own
WATCH_S: Final = 1.0
QUIET_LOOKS: Final = 3  # vouchers that did not rise for so long are claimed
VOUCHER_PATIENCE_S: Final = 10.0
LEFTOVERS: Final = ("wallet.devnet.json*", "account.devnet.json", "voucher.devnet.key", "stake.devnet.json")
EASY_SEAL: Final = {"operations": 1, "memory_bytes": 8_192}  # the passphrase is random, and lies beside the wallet


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """One claim, as the chain shows it."""

    provider: str
    payer: str
    amount_nano: Nano
    fee_nano: Nano  # what it cost the provider's wallet
    block: int
    before_nano: Nano  # in the payer's account
    after_nano: Nano

    def to_object(self) -> dict[str, Any]:
        """For programs."""
        return {
            "provider": self.provider,
            "payer": self.payer,
            "amount_nano": self.amount_nano,
            "fee_nano": self.fee_nano,
            "block": self.block,
            "account_before_nano": self.before_nano,
            "account_after_nano": self.after_nano,
        }


@dataclass(slots=True, kw_only=True)
class Purse:
    """A home of the demo, and the key of its wallet."""

    name: str
    home: Home
    key: WalletKey


@dataclass(slots=True, kw_only=True)
class DemoMoney:
    """The devnet and everybody's coins. Made by `open_demo_money`."""

    folder: Path
    chain: Chain
    config_path: Path
    passphrase_path: Path
    faucet: WalletKey
    you: Purse
    chat: Purse
    providers: tuple[Purse, ...]
    payers: dict[bytes, str] = field(default_factory=dict)  # accounts, and whose they are
    balance_before_nano: Nano = 0

    # --- before anybody is served ---------------------------------------------------------------------------

    async def fund(self, console: Console) -> None:
        """Coins for everybody, then the accounts and the stakes. Raises what the wallet or the chain raise."""
        from ..adapters.ton.contracts import transfer
        from ..adapters.ton.sending import ChainWallet

        shares = [(purse, DEPOSIT_NANO + POCKET_NANO) for purse in (self.you, self.chat)]
        shares += [(purse, STAKE_NANO + POCKET_NANO) for purse in self.providers]
        coins = tuple(transfer(purse.key.account, amount, bounce=False) for purse, amount in shares)
        await ChainWallet(self.faucet, self.chain).send(coins)
        async with trio.open_nursery() as nursery:
            for purse in (self.you, self.chat):
                nursery.start_soon(self._open_account, purse)
            for purse in self.providers:
                nursery.start_soon(self._stake, purse)
        self.balance_before_nano = await self.balance_nano()
        console.progress(
            f"your account is open with {format_ton(self.balance_before_nano)} TON; every provider has staked "
            f"{format_ton(STAKE_NANO)} TON"
        )

    async def _open_account(self, purse: Purse) -> None:
        from nacl.signing import SigningKey

        from ..adapters.ton.contracts import ACCOUNT_ERRORS
        from ..adapters.ton.kept import KeptAccount, save_account
        from ..adapters.ton.operations import open_account
        from ..adapters.ton.outcome import send_and_see

        kept = KeptAccount(network=NETWORK, owner=purse.key.account, salt=1)
        seed = load_or_create_seed(purse.home.voucher_key_path(NETWORK), entropy=entropy)
        save_account(purse.home.account_path(NETWORK), kept)
        account, opening = open_account(
            kept.owner,
            kept.salt,
            voucher_key=bytes(SigningKey(seed.reveal()).verify_key),
            deposit_nano=DEPOSIT_NANO,
            bond_nano=BOND_NANO,
        )
        await send_and_see(self.chain, self._wallet(purse), (opening,), errors=ACCOUNT_ERRORS)
        self.payers[account] = "your account" if purse is self.you else "the chat's account"

    async def _stake(self, purse: Purse) -> None:
        from nacl.signing import SigningKey

        from ..adapters.ton.contracts import STAKE_ERRORS
        from ..adapters.ton.kept import KeptStake, save_stake
        from ..adapters.ton.operations import deposit_stake, open_stake
        from ..adapters.ton.outcome import send_and_see

        kept = KeptStake(network=NETWORK, owner=purse.key.account, unbond_delay_s=UNBOND_DELAY_S)
        save_stake(purse.home.stake_path(NETWORK), kept)
        seed = load_or_create_seed(purse.home.operator_key_path, entropy=entropy)
        stake, opening = open_stake(
            kept.owner,
            unbond_delay_s=UNBOND_DELAY_S,
            network=NETWORK,
            operator=SigningKey(seed.reveal()),
        )
        deposit = deposit_stake(stake, STAKE_NANO)
        await send_and_see(self.chain, self._wallet(purse), (opening, deposit), errors=STAKE_ERRORS)

    # --- while it runs --------------------------------------------------------------------------------------

    def serve_words(self) -> list[str]:
        """What `cocoon serve` needs to be paid."""
        return [
            *("--payout", "wallet", "--stake", "--chain-trust", "0"),
            *("--chain-config", str(self.config_path), "--passphrase-file", str(self.passphrase_path)),
        ]

    def client(self, base: Config) -> Setup:
        """You, as `opened_account` wants it."""
        return _setup(self.you.home, self.config_path, base)

    @property
    def account(self) -> bytes:
        """Yours."""
        return next(account for account, whose in self.payers.items() if whose == "your account")

    async def balance_nano(self, account: bytes | None = None) -> Nano:
        """What an account, or yours, holds, proven."""
        state = await self.chain.spending_account(self.account if account is None else account)
        return 0 if state is None else state.balance_nano

    def held(self) -> dict[str, tuple[Purse, tuple[StoredVoucher, ...]]]:
        """Every provider's vouchers, as they are on its disk."""
        found = {}
        for purse in self.providers:
            with read_money(purse.home.database_path) as known:
                vouchers = known.vouchers(VoucherSide.HELD, network=int(NETWORK), party=purse.key.account)
            if vouchers:
                found[purse.name] = (purse, vouchers)
        return found

    async def wait_vouchers(self, due_nano: Nano) -> Nano:
        """Return once the providers hold vouchers over this sum; what they hold."""
        sum_nano = 0
        with trio.move_on_after(VOUCHER_PATIENCE_S):
            while True:
                sum_nano = sum(one.cumulative_nano for _, held in self.held().values() for one in held)
                if sum_nano >= due_nano:
                    break
                await trio.sleep(0.1)
        return sum_nano

    async def claim_all(self) -> list[Claimed]:
        """Claim everything that is not claimed yet, each provider from its own wallet. Raises `CocoonError`."""
        claimed = []
        for purse, vouchers in self.held().values():
            for voucher in vouchers:
                paid_nano = await self._paid_nano(voucher)
                if paid_nano is not None and voucher.cumulative_nano > paid_nano:
                    claimed.append(await self._claim(purse, voucher, voucher.cumulative_nano - paid_nano))
        return claimed

    async def _claim(self, purse: Purse, voucher: StoredVoucher, amount_nano: Nano) -> Claimed:
        from ..adapters.ton.contracts import ACCOUNT_ERRORS
        from ..adapters.ton.operations import claims
        from ..adapters.ton.outcome import send_and_see
        from .claims import signed_voucher

        before = await self.chain.wallet(purse.key.account)
        before_nano = await self.balance_nano(voucher.account)
        transfers = claims((signed_voucher(voucher),))
        await send_and_see(self.chain, self._wallet(purse), transfers, errors=ACCOUNT_ERRORS)
        after = await self.chain.wallet(purse.key.account)
        return Claimed(
            provider=purse.name,
            payer=self.payers.get(voucher.account, "an account"),
            amount_nano=amount_nano,
            fee_nano=before.balance_nano + amount_nano - after.balance_nano,
            block=(await self.chain.head()).seqno,
            before_nano=before_nano,
            after_nano=await self.balance_nano(voucher.account),
        )

    async def _paid_nano(self, voucher: StoredVoucher) -> Nano | None:
        """What the chain has paid of it; None: its account is not on this chain, or in another epoch."""
        state = await self.chain.spending_account(voucher.account)
        if state is None or state.epoch != voucher.epoch:
            return None
        entry = state.entries.get(voucher.provider)
        return 0 if entry is None else entry.claimed_nano

    async def watch(self, console: Console) -> None:
        """Claim what was paid, whenever nothing more came for a while, and show it. Until cancelled."""
        seen, quiet = 0, 0
        while True:
            await trio.sleep(WATCH_S)
            sums = {name: sum(one.cumulative_nano for one in held) for name, (_, held) in self.held().items()}
            sum_nano = sum(sums.values())
            quiet = quiet + 1 if sum_nano == seen else 0
            seen = sum_nano
            if quiet != QUIET_LOOKS:
                continue
            try:
                for one in await self.claim_all():
                    say_claimed(console, one)
            except CocoonError as error:
                console.explain_briefly(error)

    async def settle(self, console: Console, *, due_nano: Nano) -> dict[str, Any]:
        """After one answer: the voucher has arrived, is claimed, and the balances are shown. For programs as well."""
        held_nano = await self.wait_vouchers(due_nano)
        claimed: list[Claimed] = []
        try:
            claimed = await self.claim_all()
        except CocoonError as error:
            console.explain_briefly(error)
        for one in claimed:
            say_claimed(console, one, as_data=False)
        return {
            **self.to_object(),
            "vouchers_nano": held_nano,
            "claims": [one.to_object() for one in claimed],
            "balance_after_nano": await self.balance_nano(),
        }

    def to_object(self) -> dict[str, Any]:
        """For programs."""
        return {
            "account": self.account.hex(),
            "balance_before_nano": self.balance_before_nano,
            "chain_config": str(self.config_path),
        }

    def _wallet(self, purse: Purse) -> Any:
        """With the journal that the provider's process uses, too: they take turns."""
        from ..adapters.ton.journal import FileJournal
        from ..adapters.ton.sending import ChainWallet

        return ChainWallet(purse.key, self.chain, journal=FileJournal(purse.home.wallet_path(NETWORK)))

    def commands(self) -> list[str]:
        """What to try with money."""
        provider = self.providers[0]
        return [
            f"cocoon account status --home {self.folder}",
            f"cocoon earnings --home {provider.home.path}",
            f"cocoon stake status --home {provider.home.path} --chain-config {self.config_path}",
        ]


def say_claimed(console: Console, one: Claimed, *, as_data: bool = True) -> None:
    """A claim, for people and programs."""
    console.say(
        f"claimed on chain in block {one.block}: {format_ton(one.amount_nano)} TON for {one.provider} (fee "
        f"{format_ton(one.fee_nano)}); {one.payer}: {format_ton(one.before_nano)} → {format_ton(one.after_nano)} TON"
    )
    if as_data:
        console.data({"event": "claimed", **one.to_object()})


@asynccontextmanager
async def open_demo_money(
    group: ChildGroup, folder: Path, packages: Path, console: Console, *, providers: int
) -> AsyncIterator[DemoMoney | None]:
    """A devnet with a purse for everybody, or None, with the reason said in one line."""
    try:
        await trio.to_thread.run_sync(partial(_prepare, packages, console), abandon_on_cancel=True)  # type: ignore[call-arg]
        purses: list[Purse] = []
        child: list[Child] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_start_devnet, group, folder, packages, child)
            purses += await trio.to_thread.run_sync(_make_purses, folder, providers)
    except* (ConfigError, Unavailable) as errors:
        reason = _first_line(errors)
    else:
        reason = ""
    if reason:
        console.notice(f"No money in this demo, everything is free: {reason}")
        yield None
        return
    ready = child[0].ready
    from ..adapters.ton.mnemonic import parse_words, seed_of
    from ..adapters.ton.wallet import WalletKey

    config_path = Path(ready["config_path"])
    async with opened_chain(_setup(Home(path=folder), config_path, Config())) as chain:
        yield DemoMoney(
            folder=folder,
            chain=chain,
            config_path=config_path,
            passphrase_path=folder / PASSPHRASE_FILE,
            faucet=WalletKey(seed_of(parse_words(ready["faucet"]["words"])), NETWORK),
            you=purses[0],
            chat=purses[1],
            providers=tuple(purses[2:]),
        )


def _prepare(packages: Path, console: Console) -> None:
    """Node and the packages, fetched once. Raises `ConfigError`, `Unavailable`."""
    from ..adapters.devnet.tvm import prepare

    prepare(packages, progress=console.progress)


async def _start_devnet(group: ChildGroup, folder: Path, packages: Path, child: list[Child]) -> None:
    words = ["devnet", "--on-demand", "--home", str(folder), "--packages", str(packages)]
    child.append(await group.start("devnet", words))


def _make_purses(folder: Path, providers: int) -> list[Purse]:
    """Wallets for you, the chat and the providers. What an earlier demo left in a kept home is of another chain."""
    from ..adapters.ton.mnemonic import new_words, seed_of
    from ..adapters.ton.wallet import WalletKey
    from ..adapters.ton.wallet_file import create_wallet_file

    passphrase = entropy(24).hex().encode()
    file = folder / PASSPHRASE_FILE
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_bytes(passphrase + b"\n")
    purses = []
    for name in (".", CHAT_HOME, *(f"provider-{number + 1}" for number in range(providers))):
        home = Home(path=folder / name).create()
        for pattern in LEFTOVERS:
            for old in home.path.glob(pattern):
                old.unlink()
        words = new_words(entropy)
        create_wallet_file(
            home.wallet_path(NETWORK),
            words,
            network=NETWORK,
            passphrase=Secret(passphrase),
            entropy=entropy,
            **EASY_SEAL,
        )
        purses.append(Purse(name=name, home=home, key=WalletKey(seed_of(words), NETWORK)))
    chat = Home(path=folder / CHAT_HOME).chain_config_path(NETWORK)
    chat.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        chat.symlink_to(Home(path=folder).chain_config_path(NETWORK))
    return purses


def _setup(home: Home, config_path: Path, base: Config) -> Setup:
    changes = {"network": NETWORK.label, "chain.config_path": str(config_path), "chain.trust_level": 0}
    return Setup(home=home, config=override(base, changes), log_level="warning")


def _first_line(errors: BaseExceptionGroup[Any]) -> str:
    from ..causes import single_cause

    return str(single_cause(errors)).splitlines()[0]
