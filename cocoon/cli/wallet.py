"""`cocoon wallet create|import|show|send`: a W5 wallet whose 24 words are shown once and kept sealed.

The words go to standard output when a wallet is made, and nowhere else, ever. Any TON wallet app can restore from them.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError
from ..types import format_ton
from . import money
from .console import Console
from .money_views import aligned, moment
from .options import add_common, add_passphrase

if TYPE_CHECKING:
    from ..ports.chain import Chain

WORDS_CHARS_MAX: Final = 1_024  # 24 words have about 160
COMMENT_BYTES_MAX: Final = 120  # what fits one cell beside its prefix


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon wallet`."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="create|import|show|send")
    create = commands.add_parser("create", help="make a wallet; its 24 words are shown once")
    restore = commands.add_parser("import", help="restore a wallet from its 24 words, typed or on standard input")
    show = commands.add_parser("show", help="address and balance")
    send = commands.add_parser("send", help="send coins")
    for made in (create, restore):
        add_passphrase(made)
        add_common(made)
    show.add_argument("--offline", action="store_true", help="the address alone, without asking the chain")
    money.add_money(show, spends=False)
    send.add_argument("address", metavar="ADDRESS")
    send.add_argument("amount", metavar="TON")
    send.add_argument("--comment", metavar="TEXT", default="", help="anybody can read it")
    money.add_money(send, spends=True)
    for command in (create, restore, show, send):
        money.add_output(command)


def run(args: argparse.Namespace, console: Console) -> int:
    """One of the four."""
    return {"create": _create, "import": _import, "show": _show, "send": _send}[args.what](args, console)


def _create(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.clock import entropy
    from ..adapters.ton.mnemonic import new_words

    words = new_words(entropy)
    made = _keep(money.desk(args, console), words)
    console.data({**made, "words": " ".join(words)})
    console.notice("Write these 24 words down, on paper. They ARE the wallet, and they are never shown again.")
    for row in range(6):
        console.line("  ".join(f"{4 * row + n + 1:>2} {words[4 * row + n]:<10}" for n in range(4)).rstrip())
    _say_made(made, console)
    return 0


def _import(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.ton.mnemonic import parse_words

    if sys.stdin.isatty():
        typed = getpass.getpass("the 24 words (they are not shown): ")
    else:
        typed = sys.stdin.read(WORDS_CHARS_MAX + 1)
    if len(typed) > WORDS_CHARS_MAX:
        raise ConfigError("this is more than 24 words")
    made = _keep(money.desk(args, console), parse_words(typed))
    console.data(made)
    _say_made(made, console)
    return 0


def _keep(desk: money.Desk, words: tuple[str, ...]) -> dict[str, Any]:
    """Seal the words into the home's wallet; what may be said of it."""
    from ..adapters.clock import entropy
    from ..adapters.ton.addresses import wallet_address
    from ..adapters.ton.wallet_file import create_wallet_file

    money.check_mainnet(desk.prepared)
    path = desk.prepared.home.create().wallet_path(desk.network)
    if path.exists():
        raise ConfigError(f"there is a wallet at {path} already", advice="It is never replaced; move it away.")
    secret = money.passphrase(desk.prepared, "a new passphrase, of at least 8 characters: ", is_new=True)
    head = create_wallet_file(path, words, network=desk.network, passphrase=secret, entropy=entropy)
    return {
        "network": desk.network.label,
        "address": wallet_address(head.account, desk.network),
        "account_id": head.account.hex(),
        "path": str(path),
    }


def _say_made(made: dict[str, Any], console: Console) -> None:
    console.line("")
    for line in aligned([("address", made["address"]), ("network", made["network"]), ("file", made["path"])]):
        console.line(line)
    console.say("The file is sealed with the passphrase. Without the words a lost passphrase is a lost wallet.")


def _show(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.ton.addresses import contract_address, wallet_address

    desk = money.desk(args, console)
    owner = desk.owner()
    shown: dict[str, Any] = {
        "network": desk.network.label,
        "address": wallet_address(owner, desk.network),
        "address_bounceable": contract_address(owner, desk.network),
        "account_id": owner.hex(),
        "path": str(desk.wallet_path),
    }
    lines = [("address", shown["address"]), ("network", shown["network"])]
    if args.offline:
        console.data(shown)
        for line in aligned(lines):
            console.line(line)
        return 0

    async def program(chain: Chain) -> None:
        state = await chain.wallet(owner)
        console.data(
            {
                **shown,
                "balance_nano": state.balance_nano,
                "is_deployed": state.is_deployed,
                "seqno": state.seqno,
                "at_s": state.at_s,
            }
        )
        lines.append(("balance", f"{format_ton(state.balance_nano)} TON"))
        lines.append(("as of", moment(state.at_s)))
        if not state.is_deployed:
            lines.append(("state", "has sent nothing yet; its first message deploys it"))
        for line in aligned(lines):
            console.line(line)

    return desk.run(program)


def _send(args: argparse.Namespace, console: Console) -> int:
    from ..adapters.ton.addresses import parse_address, wallet_address
    from ..adapters.ton.cells import comment
    from ..adapters.ton.contracts import transfer

    desk = money.desk(args, console)
    desk.needs_consent()
    target = parse_address(args.address, network=desk.network)
    amount_nano = money.amount(args.amount)
    if len(args.comment.encode()) > COMMENT_BYTES_MAX:
        raise ConfigError(f"a comment has at most {COMMENT_BYTES_MAX} bytes")
    owner = desk.owner()
    key = desk.unlock()

    shown = wallet_address(target.account, desk.network)
    purpose = f"wallet send {shown} {amount_nano} {args.comment}"

    async def program(chain: Chain) -> None:
        wallet = desk.sender(key, chain)
        if not await wallet.was_done(purpose):
            before = await chain.wallet(owner)
            await desk.agree(
                f"Sends {format_ton(amount_nano)} of {format_ton(before.balance_nano)} TON to {shown}, plus a fee of "
                "less than 0.01 TON."
            )
            body = comment(args.comment) if args.comment else None
            sent = transfer(target.account, amount_nano, body, bounce=target.is_bounceable)
            await wallet.run((sent,), purpose=purpose)
        after = await chain.wallet(owner)
        console.data(
            {
                "network": desk.network.label,
                "from": wallet_address(owner, desk.network),
                "to": shown,
                "amount_nano": amount_nano,
                "balance_nano": after.balance_nano,
                "at_s": after.at_s,
            }
        )
        console.line(f"sent. The wallet holds {format_ton(after.balance_nano)} TON.")

    return desk.run(program)
