"""The simulated chain: blocks, finality, losses, outages and reorganisations, and that no coin is made or lost."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import nacl.signing
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoon.adapters.ton import contracts
from cocoon.errors import PaymentError, Unavailable
from cocoon.pay.voucher import Voucher
from cocoon.ports.chain import Chain, Wallet
from cocoon.types import SECOND_NS, Network
from sim.chain import (
    Account,
    ChainTerms,
    Claim,
    Congestion,
    Ledger,
    Notice,
    Outage,
    Reorg,
    Roll,
    SimChain,
    WalletMessage,
)
from sim.chain.chain import Transfer
from sim.chain.messages import message_of
from sim.chain.port import SimChainPort, SimWallet
from sim.rng import stream

TON = 10**9
START = 1_800_000_000 * SECOND_NS
V = nacl.signing.SigningKey(b"\x07" * 32)
OWNER, PROVIDER, ACCOUNT = b"\x11" * 32, b"\x22" * 32, hashlib.sha256(b"account").digest()
OPEN_S = START // SECOND_NS - 100


def funded(terms: ChainTerms | None = None, *, balance: int = 5 * TON, bond: int = TON) -> SimChain:
    """A chain with one open account of `balance`, and two rich wallets."""
    ledger = Ledger()
    ledger.give(OWNER, 10 * TON)
    ledger.give(PROVIDER, TON)
    ledger.give(ACCOUNT, balance)
    ledger.deploy(ACCOUNT, Account(owner=OWNER, salt=1, key=bytes(V.verify_key), epoch=OPEN_S, bond=bond))
    return SimChain(ledger, terms or ChainTerms(), rng=stream(1, "chain"), now=START)


def claim(cumulative: int, ceiling: int = 0, *, epoch: int = OPEN_S) -> Transfer:
    voucher = Voucher(
        network=Network.DEVNET,
        account=ACCOUNT,
        epoch=epoch,
        provider=PROVIDER,
        cumulative_nano=cumulative,
        ceiling_nano=ceiling,
    )
    signature = V.sign(voucher.encode()).signature
    return Transfer(to=ACCOUNT, value=TON // 50, message=Claim(PROVIDER, cumulative, ceiling, signature))


def send(chain: SimChain, transfer: Transfer, *, at_s: float = 0, wallet: bytes = PROVIDER) -> int:
    return chain.submit(WalletMessage(wallet=wallet, transfers=(transfer,)), now=START + int(at_s * SECOND_NS))


def claimed(chain: SimChain, at_s: float) -> int:
    """What a proof shows at that time."""
    now = START + int(at_s * SECOND_NS)
    chain.on_time(now=now)
    state = chain.spending_account(ACCOUNT, now=now)
    assert state is not None
    return state.entries[PROVIDER].claimed_nano if PROVIDER in state.entries else 0


def test_a_claim_shows_only_once_its_block_is_final() -> None:
    chain = funded(ChainTerms(block_time_s=5, finality_blocks=2))
    send(chain, claim(TON))
    assert [claimed(chain, at_s) for at_s in (4, 5, 10, 14.9)] == [0, 0, 0, 0]
    assert claimed(chain, 15) == TON
    assert chain.ledger.balance(PROVIDER) > 2 * TON - 5_000_000
    chain.ledger.check()


def test_one_voucher_claimed_twice_pays_once() -> None:
    chain = funded()
    send(chain, claim(TON))
    send(chain, claim(TON))
    chain.on_time(now=START + 5 * SECOND_NS)
    first, second = (event.outcomes[0] for event in chain._blocks[-1].events)
    assert (first.exit_code, second.exit_code) == (0, 424)
    assert first.effect.paid == TON
    chain.ledger.check()


def test_in_an_outage_nothing_is_proven_and_nothing_taken() -> None:
    chain = funded(ChainTerms(outages=(Outage(from_s=10, until_s=20),)))
    chain.on_time(now=START + 12 * SECOND_NS)
    with pytest.raises(Unavailable):
        chain.spending_account(ACCOUNT, now=START + 12 * SECOND_NS)
    with pytest.raises(Unavailable):
        send(chain, claim(TON), at_s=12)
    assert claimed(chain, 20) == 0


def test_a_congested_chain_lets_messages_wait_and_expire() -> None:
    crowded = ChainTerms(congestions=(Congestion(from_s=0, until_s=1_000, messages_per_block=1),), finality_blocks=0)
    chain = funded(crowded)
    for index in range(30):
        send(chain, claim((index + 1) * 10_000_000))
    assert claimed(chain, 5) == 10_000_000
    assert claimed(chain, 50) == 100_000_000
    claimed(chain, 500)
    assert chain.executed == 11  # one per block for a minute
    assert chain.expired == 19


def test_a_reorganisation_takes_a_claim_back_and_lets_it_happen_again() -> None:
    chain = funded(ChainTerms(finality_blocks=0, reorgs=(Reorg(at_s=14, depth=2),)))
    before = chain.ledger.balance(PROVIDER)
    send(chain, claim(TON))
    assert claimed(chain, 5) == TON
    events = chain.on_time(now=START + 15 * SECOND_NS)
    assert [event.is_undone for event in events] == [False, True, False][1:]
    assert claimed(chain, 15) == TON
    assert TON - 10_000_000 < chain.ledger.balance(PROVIDER) - before < TON
    chain.ledger.check()


def test_behind_enough_blocks_a_reorganisation_is_never_seen() -> None:
    chain = funded(ChainTerms(finality_blocks=2, reorgs=(Reorg(at_s=14, depth=2, lost_share=1.0),)))
    send(chain, claim(TON))
    assert [claimed(chain, at_s) for at_s in (5, 10, 15, 60)] == [0, 0, 0, 0]
    assert chain.lost == 1
    chain.ledger.check()


def test_a_lost_message_tells_its_sender_nothing() -> None:
    chain = funded(ChainTerms(fail_rate=1.0))
    assert send(chain, claim(TON)) == 1
    assert claimed(chain, 60) == 0
    assert chain.lost == 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    steps=st.lists(
        st.tuples(st.sampled_from(["claim", "notice", "roll", "deposit"]), st.integers(0, 3 * TON), st.integers(0, 30)),
        max_size=20,
    ),
    depth=st.integers(1, 6),
)
def test_whatever_is_sent_and_taken_back_every_coin_is_somewhere(
    seed: int, steps: list[tuple[str, int, int]], depth: int
) -> None:
    chain = funded(ChainTerms(finality_blocks=1, fail_rate=0.1, reorgs=(Reorg(at_s=40, depth=depth, lost_share=0.5),)))
    chain._rng = stream(seed, "chain")
    at_s = 0
    for kind, amount, pause_s in steps:
        at_s += pause_s
        chain.on_time(now=START + at_s * SECOND_NS)
        match kind:
            case "claim":
                send(chain, claim(amount, amount + TON // 2), at_s=at_s)
            case "notice":
                send(chain, Transfer(to=ACCOUNT, value=TON // 20, message=Notice()), at_s=at_s, wallet=OWNER)
            case "roll":
                roll = Roll(key=bytes(V.verify_key), bond=TON // 2, out=amount)
                send(chain, Transfer(to=ACCOUNT, value=TON // 20, message=roll), at_s=at_s, wallet=OWNER)
            case "deposit":
                send(chain, Transfer(to=ACCOUNT, value=amount), at_s=at_s, wallet=OWNER)
        chain.ledger.check()
    chain.on_time(now=START + (at_s + 100) * SECOND_NS)
    chain.ledger.check()
    state = chain.spending_account(ACCOUNT, now=START + (at_s + 100) * SECOND_NS)
    assert state is not None
    assert state.balance_nano >= 0


class TrioClock:
    def now(self) -> int:
        return START + int(trio.current_time() * 1e9)


def test_whole_nodes_see_it_behind_the_chain_port() -> None:
    async def story() -> None:
        started = trio.current_time()
        chain = funded()
        chain.start_ns = START + int(started * 1e9)
        chain._next_ns = chain.start_ns + 5 * SECOND_NS
        port = SimChainPort(chain, TrioClock())
        seen: Chain = port
        wallet: Wallet = SimWallet(port, PROVIDER)
        voucher = Voucher(
            network=Network.DEVNET, account=ACCOUNT, epoch=OPEN_S, provider=PROVIDER, cumulative_nano=TON // 2
        )
        body = contracts.claim_body(voucher.encode(), V.sign(voucher.encode()).signature)
        transfer = contracts.transfer(ACCOUNT, TON // 50, body)
        assert isinstance(message_of(transfer.body), Claim)
        await wallet.send((transfer,))
        state = await seen.spending_account(ACCOUNT)
        assert state is not None
        assert state.entries[PROVIDER].claimed_nano == TON // 2
        assert await seen.stake(PROVIDER) is None
        (done,) = await seen.transactions(ACCOUNT, after_lt=0, count_max=10)
        assert done.is_done
        assert (await seen.wallet(PROVIDER)).balance_nano > TON
        with pytest.raises(PaymentError):
            await wallet.send((replace(transfer, amount_nano=100 * TON),))
        assert (await seen.head()).seqno >= 1

    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))
