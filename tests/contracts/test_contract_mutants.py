"""Faults put into the Tolk sources by hand, one at a time: the checks must notice every one of them."""

from __future__ import annotations

import base64
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from pytoniq_core import Cell

from cocoon.adapters.devnet.tvm import Tvm
from cocoon.adapters.ton.contracts import Code
from cocoon.errors import ConfigError, Unavailable
from tests.conftest import HowFar
from tests.contracts.account_checks import account_check
from tests.contracts.stake_checks import stake_check
from tests.contracts.test_contract_tables import build_script
from tests.contracts.world import PACKAGES, ROOT

CHECKS = {"account": account_check, "stake": stake_check}


@dataclass(frozen=True)
class Mutant:
    """What is replaced, once, in which file."""

    name: str
    file: str  # contract/file
    old: str
    new: str

    @property
    def contract(self) -> str:
        return self.file.split("/")[0]


def account(name: str, old: str, new: str, file: str = "contract") -> Mutant:
    return Mutant(name, f"account/{file}.tolk", old, new)


def stake(name: str, old: str, new: str, file: str = "contract") -> Mutant:
    return Mutant(name, f"stake/{file}.tolk", old, new)


MUTANTS = [
    account("an unopened account pays", "assert (st.epoch != 0) throw ERR_NOT_OPEN;", ""),
    account(
        "any signature will do",
        "assert (isSliceSignatureValid(signed, msg.signature as slice, st.key))",
        "assert (true)",
    ),
    account("the network is not signed", ".storeInt(globalId(), 32)", ".storeInt(-239, 32)", "messages"),
    account("the account is not signed", ".storeUint(me, 256)", ".storeUint(me * 0, 256)", "messages"),
    account("the epoch is not signed", ".storeUint(epoch, 32)", ".storeUint(1 + epoch * 0, 32)", "messages"),
    account("the ceiling is not signed", ".storeUint(ceiling, 64)", ".storeUint(ceiling * 0, 64)", "messages"),
    account("claims use the reserves of others", "val free = atLeast0(funds - st.reserved);", "val free = funds;"),
    account(
        "a grant forgets what was just paid", "free - fromFree);\n            assert", "free);\n            assert"
    ),
    account("a bond burns nothing", "st.bond = bond - 2 * half;", "st.bond = bond - half;"),
    account("the bond pays in full", "bond / 2", "bond"),
    account("what was paid stays reserved", "kept + grant - claimed - own", "kept + grant - claimed"),
    account("a claim lowers the ceiling", "max(entry.ceiling, claimed)", "claimed"),
    account("nothing new is something", "assert (paid + grant > 0) throw ERR_NOTHING_NEW;", ""),
    account("rent eats the bond on paper only", "min(st.bond, atLeast0(before - RENT))", "st.bond"),
    account("rent is not kept", "val funds = atLeast0(before - RENT - bond);", "val funds = atLeast0(before - bond);"),
    account("the burnt half stays", "before - paid - half, RESERVE", "before - paid, RESERVE"),
    account(
        "burning pays its own way",
        "SEND_MODE_PAY_FEES_SEPARATELY | SEND_MODE_BOUNCE_ON_ACTION_FAIL);   // even",
        "SEND_MODE_REGULAR | SEND_MODE_BOUNCE_ON_ACTION_FAIL);   // even",
    ),
    account(
        "a payout that fails is forgotten",
        "SEND_MODE_CARRY_ALL_BALANCE | SEND_MODE_BOUNCE_ON_ACTION_FAIL",
        "SEND_MODE_CARRY_ALL_BALANCE | SEND_MODE_IGNORE_ERRORS",
    ),
    account(
        "payouts bounce",
        "bounce: BounceMode.NoBounce,                // a provider's",
        "bounce: BounceMode.Only256BitsOfBody,  // a provider's",
    ),
    account("the sender is paid", "dest: (0, msg.provider),", "dest: in.senderAddress,"),
    account(
        "the message's value counts as funds",
        "val before = contract.getOriginalBalance() - in.valueCoins;",
        "val before = contract.getOriginalBalance();",
    ),
    account("a roll one second early", "now >= st.unlockAt", "now >= st.unlockAt - 1"),
    account("a roll one second late", "now >= st.unlockAt", "now > st.unlockAt"),
    account("a roll without notice", "(st.unlockAt != 0) & (now >= st.unlockAt)", "now >= st.unlockAt"),
    account("the epoch counts", "st.epoch = now;", "st.epoch = st.epoch + 1;"),
    account("entries survive a roll", "st.entries = createEmptyMap();", ""),
    account("reserves survive a roll", "st.reserved = 0;", ""),
    account("the notice survives a roll", "st.unlockAt = 0;\n            st.bond", "st.bond"),
    account("the key never changes", "st.key = msg.key;", "st.key = st.epoch == 0 ? msg.key : st.key;"),
    account("the zero key is a key", "assert (msg.key != 0) throw ERR_BAD_KEY;", ""),
    account(
        "a bond of air",
        "- ownerFee() - msg.bond;\n            assert (room >= 0) throw ERR_LOW_VALUE;",
        "- ownerFee() - msg.bond;",
    ),
    account("a withdrawal takes the bond along", "- ownerFee() - msg.bond;", "- ownerFee();"),
    account(
        "anybody gives notice",
        "assert (in.senderAddress == st.owner) throw ERR_NOT_OWNER;\n            st.unlockAt",
        "st.unlockAt",
    ),
    account(
        "anybody rolls", "assert (in.senderAddress == st.owner) throw ERR_NOT_OWNER;\n            val now", "val now"
    ),
    account("notice is short", "const NOTICE = 86400", "const NOTICE = 8640", "fees"),
    account("a bond pays no gas", "val added = in.valueCoins - ownerFee();", "val added = in.valueCoins;"),
    account("unknown ops are swallowed", "assert (in.body.preloadUint(32) == 0) throw ERR_UNKNOWN_OP;", ""),
    stake("one statement is enough", "assert (a.digest != b.digest) throw ERR_SAME_DIGEST;", ""),
    stake(
        "one signature is enough",
        "isSigned(key, msg.epoch, msg.slot, a) & isSigned(key, msg.epoch, msg.slot, b)",
        "isSigned(key, msg.epoch, msg.slot, a)",
    ),
    stake(
        "the other signature is enough",
        "isSigned(key, msg.epoch, msg.slot, a) & isSigned(key, msg.epoch, msg.slot, b)",
        "isSigned(key, msg.epoch, msg.slot, b)",
    ),
    stake("the slot is not signed", ".storeUint(slot, 256)", ".storeUint(5, 256)", "messages"),
    stake(
        "the stake is not signed",
        ".storeUint(myId(), 256)\n        .storeUint(epoch",
        ".storeUint(0, 256)\n        .storeUint(epoch",
        "messages",
    ),
    stake("all goes to the reporter", "value: stake - stake / 2,", "value: 1,"),
    stake(
        "the burnt half stays",
        "reserveToncoinsOnBalance(before - stake, RESERVE_MODE_EXACT",
        "reserveToncoinsOnBalance(before - stake / 2, RESERVE_MODE_EXACT",
    ),
    stake(
        "the stake stays on paper",
        "st.stake = 0;\n            st.unlockAt = 0;\n            st.epoch = 0;",
        "st.unlockAt = 0;\n            st.epoch = 0;",
    ),
    stake("keys survive a slash", "st.epoch = 0;\n            st.keys = createEmptyMap();", ""),
    stake(
        "unbonding survives a slash",
        "st.stake = 0;\n            st.unlockAt = 0;\n            st.epoch",
        "st.stake = 0;\n            st.epoch",
    ),
    stake("rent is slashed", "min(st.stake, before - RENT)", "st.stake"),
    stake(
        "anybody withdraws",
        "assert (in.senderAddress == st.owner) throw ERR_NOT_OWNER;\n            assert (st.unlockAt != 0)",
        "assert (st.unlockAt != 0)",
    ),
    stake("withdrawing one second early", "blockchain.now() >= st.unlockAt", "blockchain.now() >= st.unlockAt - 1"),
    stake("withdrawing without a request", "assert (st.unlockAt != 0) throw ERR_NOT_UNBONDING;", ""),
    stake(
        "withdrawing keeps the stake on paper",
        "st.stake = 0;\n            st.unlockAt = 0;\n            st.save();\n            reserve",
        "st.unlockAt = 0;\n            st.save();\n            reserve",
    ),
    stake(
        "deposits while unbonding", "assert (st.unlockAt == 0) throw ERR_UNBONDING;\n            val added", "val added"
    ),
    stake("rent is staked", "(st.stake == 0 ? RENT : 0 as coins)", "(0 as coins)"),
    stake(
        "keys while unbonding",
        "assert (st.unlockAt == 0) throw ERR_UNBONDING;\n            assert (msg.key",
        "assert (msg.key",
    ),
    stake(
        "no proof of possession",
        "isSliceSignatureValid(possessionBytes(msg.key), proof as slice, msg.key)",
        "true",
    ),
    stake("retired keys look current", "current.retiredAt = now;", "current.retiredAt = 0 * now;"),
    stake("retired keys are forgotten at once", "retiredAt + st.unbondDelay < now", "retiredAt < now"),
    stake(
        "retired keys are forgotten a second early",
        "retiredAt + st.unbondDelay < now",
        "retiredAt + st.unbondDelay <= now",
    ),
    stake("any number of keys", "assert (held < KEYS_MAX) throw ERR_TOO_MANY_KEYS;", ""),
    stake("two keys in one second", "assert (now > st.epoch) throw ERR_TOO_EARLY;", ""),
]
SHORT = [MUTANTS[index] for index in (0, 6, 9, 38, 44)]


def killed_by(tvm: Tvm, mutant: Mutant, code: Code) -> str | None:
    """The first check that fails; None: the mutant lives."""
    for check in CHECKS[mutant.contract].all:
        try:
            check(tvm, code)
        except Exception:  # an assertion, or a TVM that trips over nonsense: either way it was noticed
            return check.__name__
    return None


def compile_mutants(mutants: list[Mutant], folder: Path) -> dict[Mutant, Code]:
    build = build_script()
    try:
        node, tolk = build.compiler(PACKAGES, lambda _: None)
    except (ConfigError, Unavailable) as error:
        pytest.skip(f"needs Node.js and the Tolk compiler: {error}")
    entries = {}
    for index, mutant in enumerate(mutants):
        home = folder / str(index)
        shutil.copytree(ROOT / "contracts" / mutant.contract, home)
        file = home / mutant.file.split("/")[1]
        text = file.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.name}: stands {text.count(mutant.old)} times in the source"
        file.write_text(text.replace(mutant.old, mutant.new))
        entries[str(index)] = home / "contract.tolk"
    built = build.compile_all(node, tolk, entries)
    codes = {}
    for index, mutant in enumerate(mutants):
        result = built["contracts"][str(index)]
        assert "error" not in result, f"{mutant.name}: {result['error'][:500]}"
        cell = Cell.one_from_boc(base64.b64decode(result["code_boc_base64"]))
        codes[mutant] = Code(cell=cell, hash=bytes(cell.hash), compiler=built["compiler"])
    return codes


def test_five_mutants_are_noticed(tvm: Tvm, tmp_path: Path, how_far: HowFar) -> None:
    codes = compile_mutants(SHORT, tmp_path)
    alive = [mutant.name for mutant in SHORT if killed_by(tvm, mutant, codes[mutant]) is None]
    assert alive == []
    how_far("contract mutants", len(SHORT), len(MUTANTS), "mutants")


def test_every_mutant_still_fits_the_sources() -> None:
    for mutant in MUTANTS:
        assert (ROOT / "contracts" / mutant.file).read_text().count(mutant.old) == 1, mutant.name


@pytest.mark.long
def test_every_mutant_is_noticed(tvm: Tvm, tmp_path: Path) -> None:
    assert len({mutant.name + mutant.contract for mutant in MUTANTS}) == len(MUTANTS)
    alive = []
    for mutant in MUTANTS:
        codes = compile_mutants([mutant], tmp_path / mutant.contract / mutant.name.replace(" ", "-"))
        if killed_by(tvm, mutant, codes[mutant]) is None:
            alive.append(f"{mutant.contract}: {mutant.name}")
    assert alive == []
