"""Days of a market: hours without a chain, an account that is rolled, offers and keys that are renewed, silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cocoon.ports import VoucherSide
from cocoon.types import SECOND_NS
from sim.chain import Account, Notice, Roll, WalletMessage
from sim.chain.chain import Transfer
from sim.econ.client import ClientPeer
from sim.econ.crypto import Key, shared_signatures
from sim.econ.env import Env
from sim.econ.market import Market
from sim.econ.orders import Order
from sim.econ.provider import ProviderPeer
from sim.econ.purchase import Purchase
from sim.kernel import Kernel
from sim.net import Network, UniformLatency
from sim.out import NullSink
from sim.scenario import ChainSpec, ClientAgent, MarketSpec, ProviderAgent

TON = 10**9
HOUR = 3_600


class Days:
    """Two providers, two clients, and a chain on which claims cost next to nothing."""

    def __init__(self, *, fee_nano: int = 1_000, seed: int = 1) -> None:
        self.kernel = Kernel(seed)
        wire = Network(self.kernel, UniformLatency(5, 50))
        env = Env(kernel=self.kernel, wire=wire, seed=seed)
        self.market = Market(
            env,
            MarketSpec(),
            chain=ChainSpec(fee_nano=fee_nano),
            sink=NullSink(),
            warmup_s=0,
            until_s=1e7,
        )
        for index in range(2):
            self.market.add_provider(wire.add(100 + index), "p", index, ProviderAgent(slots=(4, 4)))
        for index in range(2):
            agent = ClientAgent(rate_per_s=0.0, deposit_ton=5.0)
            self.market.add_client(wire.add(200 + index), "c", index, agent)
        self.env = env
        self.numbers = 0
        self.done: list[Purchase] = []
        self.market.on_done.append(self.done.append)

    @property
    def client(self) -> ClientPeer:
        return self.market.clients[0]

    @property
    def provider(self) -> ProviderPeer:
        return self.market.providers[0]

    def wait(self, seconds: float) -> None:
        self.kernel.run(self.kernel.now + int(seconds * SECOND_NS))

    def ask(self, *, client: ClientPeer | None = None, provider: ProviderPeer | None = None, tokens: int = 60) -> str:
        """One request to its end: how it ended."""
        self.numbers += 1
        order = Order(
            number=self.numbers,
            model=self.market.models[0].digest,
            prompt_tokens=50,
            tokens=tokens,
            value_nano=5_000_000,
            value_of_time_nano_per_s=0,
            deadline_s=60.0,
            at_ns=self.env.now,
            only=(provider or self.provider).number,
        )
        self.market.order(client or self.client, order)
        self.wait(61)
        return self.done[-1].record.status

    def send(self, message: Notice | Roll, *, value: int = TON // 10) -> None:
        """The client's owner says this to its account."""
        owner = Key(f"{self.env.seed}/{self.client.setup.name}/owner")
        if not self.market.chain.ledger.balance(owner.public):
            self.market.chain.ledger.give(owner.public, 10 * TON)
        transfer = Transfer(to=self.client.purse.account, value=value, message=message)
        self.market.chain.submit(WalletMessage(wallet=owner.public, transfers=(transfer,)), now=self.env.now)
        self.wait(30)

    def claimed(self) -> int:
        contract = self.market.chain.ledger.contracts[self.client.purse.account]
        assert isinstance(contract, Account)
        entry = contract.entries.get(self.provider.payout)
        return 0 if entry is None else entry.claimed_nano

    def acknowledged(self) -> int:
        account, epoch = self.client.purse.account, self.client.purse.payer._epoch
        held = self.provider.till.vouchers(VoucherSide.HELD)
        return max(
            (each.cumulative_nano for each in held if each.account == account and each.epoch == epoch), default=0
        )


@contextmanager
def days(*, fee_nano: int = 1_000) -> Iterator[Days]:
    story = Days(fee_nano=fee_nano)
    with shared_signatures(story.env.memo):
        story.market.start()
        story.wait(5)
        yield story


def test_an_account_that_is_rolled_pays_everybody_first_and_goes_on_in_a_new_epoch() -> None:
    """With fees at which nobody would claim before: the notice makes every provider claim at once."""
    with days(fee_nano=20_000) as story:
        assert story.ask() == "done"
        assert story.ask() == "done"
        served = story.acknowledged()
        assert served > 20_000 > story.claimed()
        story.send(Notice())
        assert story.ask() == "done"  # there are still more than twelve hours
        story.wait(HOUR)
        assert story.claimed() >= story.acknowledged() - 20_000  # dust stays
        story.wait(12 * HOUR)
        assert story.ask() == "failed"  # the owner could roll before the provider has claimed
        story.wait(11 * HOUR)
        key = story.client.purse.key.public
        before = story.client.purse.payer._epoch
        story.send(Roll(key=key, bond=TON))
        story.wait(600)
        assert story.client.purse.payer._epoch > before
        assert story.market.tally.lost_nano <= 20_000
        story.wait(120)
        assert story.ask() == "done"
        assert 0 < story.acknowledged() < served  # a new epoch counts from nothing
        story.market.chain.ledger.check()


def test_hours_without_a_chain_stop_credit_and_not_what_is_reserved() -> None:
    with days() as story:
        assert story.ask() == "done"
        story.market.chain.out_until_ns = story.kernel.now + 20 * HOUR * SECOND_NS
        story.wait(HOUR / 2)
        assert story.ask() == "done"  # an hour of what the last proof allows
        story.wait(2 * HOUR)
        assert story.ask() == "failed"
        story.wait(18 * HOUR)
        story.wait(300)
        assert story.ask() == "done"
        story.market.settle()
        story.wait(120)
        assert story.claimed() >= story.acknowledged() - 2_000


def test_a_night_of_silence_leaves_offers_sessions_and_keys_as_good_as_new() -> None:
    with days() as story:
        for pause_h in (
            0.3,
            1.2,
            2.5,
            6.0,
        ):  # past the offers' half-life, a key's hour and its grace, and a proof's age
            story.wait(pause_h * HOUR)
            for client in story.market.clients:
                assert len(client.offers(story.market.models[0].digest)) == 2
                for provider in story.market.providers:
                    assert story.ask(client=client, provider=provider) == "done"


def test_a_stream_of_hours_renews_its_keys_and_is_paid_to_the_end() -> None:
    """Requests one after the other over one session for two hours: Hellos every ten minutes, E changes once an hour."""
    with days() as story:
        sessions = set()
        for _ in range(115):
            assert story.ask(tokens=80) == "done"
            link = story.client.links.get(story.provider.number)
            if link is not None and link.machine.session is not None:
                sessions.add(link.machine.session)
        assert story.kernel.elapsed_s > 1.9 * HOUR
        story.market.settle()
        story.wait(120)
        assert story.claimed() >= story.acknowledged() - 2_000
        ledger = story.provider.till.payee.ledger(story.client.purse.account)
        assert ledger is not None
        assert ledger.clean_tokens > 8_000
        assert ledger.window_tokens > 4 * 64
