"""Measures every path of both contracts: gas, and what the sender pays, for each price table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from nacl.signing import SigningKey

from cocoon.adapters.devnet.tvm import PRICES, Tvm
from cocoon.adapters.ton import contracts
from tests.contracts.world import (
    NOTICE_S,
    OWNER,
    ROOT,
    TON,
    V_KEY,
    AccountWorld,
    O,
    StakeWorld,
    config,
    open_tvm,
    provider,
)

TENTH = TON // 10


@dataclass(frozen=True)
class Path:
    """One way through a contract."""

    name: str
    make: Callable[[Tvm], AccountWorld | StakeWorld]
    run: Callable[[AccountWorld | StakeWorld], None]


def _account(tvm: Tvm, count: int = 0) -> AccountWorld:
    world = AccountWorld(tvm, deposit=8 * TON)
    if count:
        world.fill(count)
    return world


def _due(world: AccountWorld) -> AccountWorld:
    world.send(OWNER, contracts.notice_body())
    world.wait(NOTICE_S)
    return world


def _rotated(tvm: Tvm) -> StakeWorld:
    world = StakeWorld(tvm)
    world.wait(10)
    return world


def _unbonded(tvm: Tvm) -> StakeWorld:
    world = StakeWorld(tvm)
    world.send(OWNER, contracts.request_unbond_body())
    world.wait(StakeWorld.DELAY_S)
    return world


def _slash(world: StakeWorld) -> None:
    world.slash(world.signed(b"\1" * 32), world.signed(b"\2" * 32))


def _paths() -> list[Path]:
    paths = [
        Path(
            "account: open",
            lambda tvm: AccountWorld(tvm, is_open=False),
            lambda w: w.send(OWNER, contracts.roll_body(key=V_KEY, bond_nano=TON), 5 * TON, init=w.init),
        ),
        Path("account: deposit", _account, lambda w: w.send(OWNER, None, TON, bounce=False)),
        Path("account: add bond", _account, lambda w: w.send(OWNER, contracts.add_bond_body(), TON)),
        Path("account: claim, first entry", _account, lambda w: w.claim(provider(10**6), TENTH)),
    ]
    for count in (1, 16, 64, 128, 1024):
        make = lambda tvm, count=count: _account(tvm, count)  # noqa: E731
        own = lambda w, count=count: w.claim(provider(count // 2), 2 * TENTH)  # noqa: E731
        paths += [
            Path(f"account: claim, new entry beside {count}", make, lambda w: w.claim(provider(10**6), TENTH)),
            Path(f"account: claim, own entry of {count}", make, own),
        ]
    full = lambda tvm: _account(tvm, 128)  # noqa: E731
    paths += [
        Path("account: reserve, new entry beside 128", full, lambda w: w.claim(provider(10**6), 0, TENTH)),
        Path(
            "account: claim and reserve, own entry of 128", full, lambda w: w.claim(provider(5), 2 * TENTH, 3 * TENTH)
        ),
        Path("account: short claim with burn, own entry of 128", full, lambda w: w.claim(provider(5), 8 * TON)),
        Path("account: notice", full, lambda w: w.send(OWNER, contracts.notice_body())),
        Path(
            "account: new key, 128 entries",
            lambda tvm: _due(_account(tvm, 128)),
            lambda w: w.send(OWNER, contracts.roll_body(key=V_KEY, bond_nano=TON)),
        ),
        Path(
            "account: withdraw all, 128 entries",
            lambda tvm: _due(_account(tvm, 128)),
            lambda w: w.send(OWNER, contracts.roll_body(key=V_KEY, bond_nano=0, out_nano=contracts.ALL_NANO)),
        ),
        Path("stake: set first key", lambda tvm: StakeWorld(tvm, is_open=False), lambda w: w.set_key(O, init=w.init)),
        Path("stake: rotate key", _rotated, lambda w: w.set_key(SigningKey(b"\x0a" * 32))),
        Path("stake: deposit", StakeWorld, lambda w: w.send(OWNER, contracts.deposit_body(), TON)),
        Path("stake: request unbond", StakeWorld, lambda w: w.send(OWNER, contracts.request_unbond_body())),
        Path("stake: withdraw", _unbonded, lambda w: w.send(OWNER, contracts.withdraw_body())),
        Path("stake: slash", StakeWorld, _slash),
    ]
    return paths


PATHS = _paths()


def measure(tvm: Tvm, path: Path, prices: str) -> tuple[int, int]:
    """Gas, and the fees of the contract's own transaction in nanoton: gas, storage and outgoing messages."""
    tvm.set_config(config(prices))
    world = path.make(tvm)
    path.run(world)
    done = world.trace[0]
    assert done.is_done, (path.name, done.exit_code, done.action_code)
    forwarding = sum(message.info.fwd_fee for message in done.parsed.out_msgs)
    return done.gas, done.fees_nano + forwarding


# --- the committed table ---------------------------------------------------------------------------------

TABLE = ROOT / "contracts" / "gas.json"
START, END = "<!-- gas -->", "<!-- /gas -->"


def measured(tvm: Tvm) -> dict[str, dict[str, int]]:
    """The whole table, afresh."""
    table = {}
    for path in PATHS:
        runs = {prices: measure(tvm, path, prices) for prices in PRICES}
        assert len({gas for gas, _ in runs.values()}) == 1, "gas does not depend on prices"
        table[path.name] = {
            "gas": runs[PRICES[0]][0],
            **{f"fees_nano_{prices}": fees for prices, (_, fees) in runs.items()},
        }
    return table


def markdown(table: dict[str, dict[str, int]], contract: str) -> str:
    """One contract's rows for its README."""
    rows = ["| step | gas | fees, mTON (2025-12) | fees, mTON (2026-06) |", "|---|---|---|---|"]
    for name, row in table.items():
        of, step = name.split(": ", 1)
        if of == contract:
            fees = [f"{row[f'fees_nano_{prices}'] / 1e6:.3f}" for prices in reversed(PRICES)]
            rows.append(f"| {step} | {row['gas']:,} | {fees[0]} | {fees[1]} |")
    return "\n".join(rows)


def main() -> None:
    """`python -m tests.contracts.gas` measures and rewrites gas.json and the two tables in the READMEs."""
    with open_tvm() as tvm:
        table = measured(tvm)
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    for contract in ("account", "stake"):
        page = ROOT / "contracts" / contract / "README.md"
        before, rest = page.read_text().split(START)
        page.write_text(before + START + "\n" + markdown(table, contract) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
