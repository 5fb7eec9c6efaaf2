"""Vouchers byte for byte, what is due when, and the window of unpaid tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoon.errors import DecodeError, LocalProtocolError
from cocoon.pay.metering import (
    VESTING_TOKENS,
    Meter,
    affordable_output_tokens,
    most_nano,
    prompt_nano,
    vested_due_nano,
)
from cocoon.pay.voucher import (
    SIGNED_VOUCHER_BYTES,
    VOUCHER_BYTES,
    Voucher,
    ledger_id,
    parse_open_voucher,
    parse_voucher,
    sign_voucher,
    signer_id,
)
from cocoon.pay.window import (
    FORGIVEN_INTERVAL_NS,
    FORGIVEN_TOKENS_MAX,
    Forgiveness,
    UnpaidTokens,
    window_tokens,
)
from cocoon.types import Network, Prices, due_nano
from cocoon.wire import limits
from cocoon.wire.signing import verify
from tests.fakes.pay import PAYOUT, PRICES, V

VOUCHER = Voucher(
    network=Network.TESTNET,
    account=bytes(range(32)),
    epoch=0x01020304,
    provider=bytes(range(32, 64)),
    cumulative_nano=0x1112131415161718,
    ceiling_nano=0x2122232425262728,
)
VOUCHER_HEX = (
    "43535631fffffffd000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f01020304"
    "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f11121314151617182122232425262728"
)  # fmt: skip
"""Written by hand from the layout in the account contract's specification."""


def test_a_voucher_has_the_bytes_that_the_contract_rebuilds() -> None:
    assert VOUCHER.encode().hex() == VOUCHER_HEX
    assert len(VOUCHER.encode()) == VOUCHER_BYTES == 92
    signed = sign_voucher(VOUCHER, V.sign)
    verify(V.public, signed.signature, bytes.fromhex(VOUCHER_HEX))
    assert parse_voucher(VOUCHER.encode(), signed.signature) == signed
    assert len(signed.encode()) == SIGNED_VOUCHER_BYTES == 156
    assert parse_open_voucher(signed.encode()) == signed
    assert parse_open_voucher(b"") is None


@pytest.mark.parametrize(
    "data",
    [
        VOUCHER.encode()[:-1],
        VOUCHER.encode() + b"\0",
        b"CSS1" + VOUCHER.encode()[4:],
        VOUCHER.encode()[:4] + b"\0\0\0\x07" + VOUCHER.encode()[8:],  # no known network
        VOUCHER.encode()[:40] + bytes(4) + VOUCHER.encode()[44:],  # epoch 0: anybody could forge it
        VOUCHER.encode()[:76] + b"\x80" + VOUCHER.encode()[77:],  # more coins than there are
        VOUCHER.encode()[:84] + b"\x80" + VOUCHER.encode()[85:],
        b"",
    ],
)
def test_bytes_that_are_no_voucher_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_voucher(data, bytes(64))
    with pytest.raises(DecodeError):
        parse_voucher(VOUCHER.encode(), bytes(63))


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 0},
        {"epoch": 1 << 32},
        {"cumulative_nano": -1},
        {"ceiling_nano": limits.NANO_MAX + 1},
        {"account": b"short"},
        {"provider": bytes(33)},
    ],
)
def test_a_voucher_that_no_contract_would_take_is_never_encoded(changes: dict[str, object]) -> None:
    with pytest.raises(LocalProtocolError):
        replace(VOUCHER, **changes).encode()  # type: ignore[arg-type]


def test_the_names_of_ledgers_and_signers_differ_by_network_address_and_kind() -> None:
    names = {
        name(network, address)
        for name in (ledger_id, signer_id)
        for network in Network
        for address in (PAYOUT, bytes(32))
    }
    assert len(names) == 2 * 3 * 2


# --- what is due when ------------------------------------------------------------------------------------

PRICE = st.integers(0, 10**12)
COUNT = st.integers(0, 200_000)


@given(prices=st.builds(Prices, input_nano=PRICE, cached_input_nano=PRICE, output_nano=PRICE, request_nano=PRICE),
       prompt=COUNT, cached=COUNT, output=st.integers(0, 300))  # fmt: skip
def test_the_prompt_vests_in_equal_steps_and_the_sum_is_the_receipts(
    prices: Prices, prompt: int, cached: int, output: int
) -> None:
    cached = min(cached, prompt)

    def due(tokens: int, is_ended: bool = False) -> int:
        return vested_due_nano(
            prices, input_tokens=prompt, cached_tokens=cached, output_tokens=tokens, is_ended=is_ended
        )

    full = due_nano(prices, input_tokens=prompt, cached_tokens=cached, output_tokens=output)
    assert due(0) == 0  # a provider that gives nothing gets nothing
    assert due(output, is_ended=True) == full
    assert due(output) <= due(output + 1)
    assert due(output) <= full
    if output >= VESTING_TOKENS:
        assert due(output) == full
    else:
        part = prompt_nano(prices, input_tokens=prompt, cached_tokens=cached) * output / VESTING_TOKENS
        only_output = prices.output_nano * output / 1_000_000
        assert part + only_output - 2 <= due(output) <= part + only_output + 2


def test_one_token_earns_one_64th_of_the_prompt() -> None:
    due = vested_due_nano(PRICES, input_tokens=6_400, cached_tokens=0, output_tokens=1, is_ended=False)
    assert due == 640_000 // 64 + 300


def test_a_meter_never_falls_and_refuses_counts_that_do() -> None:
    meter = Meter(PRICES, input_tokens=1_000)
    assert meter.count(output_tokens=10) == meter.due_nano > 0
    before = meter.due_nano
    assert meter.unvested_nano == 100_000 * 54 // 64
    for bad in ({"output_tokens": 9}, {"output_tokens": 10, "cached_tokens": 1_001}):
        with pytest.raises(LocalProtocolError):
            meter.count(**bad)
        assert (meter.due_nano, meter.output_tokens, meter.cached_tokens) == (before, 10, 0)
    assert meter.count(output_tokens=10, cached_tokens=1_000) == 0  # cheaper than it was billed: what is due stays
    assert meter.due_nano == before


@given(budget=st.integers(0, 2_000_000), prompt=st.integers(0, 5_000))
def test_the_affordable_output_fits_and_one_token_more_does_not(budget: int, prompt: int) -> None:
    tokens = affordable_output_tokens(PRICES, input_tokens_max=prompt, budget_nano=budget, most_tokens=4_096)
    if tokens:
        assert most_nano(PRICES, input_tokens_max=prompt, output_tokens_max=tokens) <= budget
    if tokens < 4_096:
        assert most_nano(PRICES, input_tokens_max=prompt, output_tokens_max=tokens + 1) > budget


def test_the_most_covers_offers_whose_cached_price_is_higher() -> None:
    odd = Prices(input_nano=1, cached_input_nano=10**9, output_nano=0)
    assert most_nano(odd, input_tokens_max=1_000, output_tokens_max=1) == 10**6


# --- the window ------------------------------------------------------------------------------------------


def test_the_window_doubles_with_each_clean_thousand_up_to_4096() -> None:
    assert [window_tokens(n) for n in (0, 999, 1_000, 2_000, 5_999, 6_000, 10**9)] == [
        64, 64, 128, 256, 2_048, 4_096, 4_096,
    ]  # fmt: skip


def test_tokens_are_unpaid_until_their_chunks_money_is_there() -> None:
    unpaid = UnpaidTokens()
    unpaid.release(10, due_nano=100)
    unpaid.release(5, due_nano=150)
    unpaid.release(0, due_nano=160)  # a prompt that vested at the end
    assert unpaid.count == 15
    assert unpaid.cover(99) == 0
    assert unpaid.cover(100) == 10
    assert unpaid.cover(150) == 0
    assert unpaid.cover(160) == 5
    assert unpaid.count == 0


def test_the_allowance_for_lost_frames_is_bounded_and_earned() -> None:
    forgiveness = Forgiveness(0)
    forgiveness.use(FORGIVEN_TOKENS_MAX)
    for _ in range(1_000):
        forgiveness.paid(1)
    assert forgiveness.tokens == 64
    forgiveness.passed(FORGIVEN_INTERVAL_NS * 10 + 1)
    assert forgiveness.tokens == 74
    forgiveness.passed(FORGIVEN_INTERVAL_NS * 11)
    assert forgiveness.tokens == 75
    forgiveness.passed(10**18)
    assert forgiveness.tokens == FORGIVEN_TOKENS_MAX
