"""`cocoon verify`: check evidence on this machine, offline, at a time of your choice; every check is shown.

    cocoon verify FILE [--policy POLICY.toml] [--at TIME]       a saved session, as a whole
    cocoon verify tdx --quote Q --collateral C [--event-log L]  its parts alone
    cocoon verify gpu --report R --chain C [--rim X …] [--nonce HEX]
    cocoon verify rim FILE
    cocoon verify eventlog FILE [--quote Q]
    cocoon verify --peer PEER --bootstrap ADDRESS [--save FILE] fetched live, with a nonce of ours

Exit code 0 when accepted, 3 when refused. A file called like a part is written with a path: `./tdx`.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from .console import Console
from .options import add_bootstrap, add_common

if TYPE_CHECKING:
    from ..attest.parts import Verdict
    from ..attest.policy import TrustPolicy
    from ..types import Network, TrustLevel

EXIT_REFUSED: Final = 3
FILE_BYTES_MAX: Final = 4 * 1024 * 1024  # far above every bound of the parts; keeps a wrong path from filling memory
PARTS: Final = ("tdx", "gpu", "rim", "eventlog")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every form; `run` says which belong together."""
    parser.add_argument(
        "what", metavar="FILE|tdx|gpu|rim|eventlog", nargs="?", help="a saved session, or the kind of part"
    )
    parser.add_argument("--peer", metavar="PEER", help="fetch this provider's evidence now: its peer id")
    parser.add_argument("--save", metavar="FILE", help="keep what --peer fetched")
    add_common(parser)
    add_bootstrap(parser)
    parser.add_argument("file", nargs="?", help="the file, after rim and eventlog")
    parser.add_argument("--at", metavar="TIME", help="verify at this time: Unix seconds or RFC 3339; default now")
    parser.add_argument("--policy", metavar="FILE", help="the trust policy (TOML) that judges a saved session")
    parser.add_argument("--quote", metavar="FILE", help="TDX quote")
    parser.add_argument("--collateral", metavar="FILE", help="Intel collateral as JSON")
    parser.add_argument("--event-log", metavar="FILE", help="RTMR event log: CCEL or dstack JSON")
    parser.add_argument("--report", metavar="FILE", help="GPU attestation report")
    parser.add_argument("--chain", metavar="FILE", help="GPU certificate chain (PEM)")
    parser.add_argument("--nonce", metavar="HEX", help="the 32-byte nonce that the report must answer")
    for name, what in (("rim", "reference measurements"), ("crl", "revocation list"), ("ocsp", "OCSP answer")):
        parser.add_argument(f"--{name}", metavar="FILE", nargs="+", action="extend", default=[], help=what)


def register(subparsers: Any) -> None:
    """Add the command to an argparse subparsers object."""
    parser = subparsers.add_parser("verify", help="check evidence offline", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object for programs")
    add_arguments(parser)


def run(args: argparse.Namespace, console: Console | None = None) -> int:
    """Check what was named. Returns 0 or 3; raises `ConfigError` for a wrong command line or unreadable file."""
    console = Console(json_output=bool(getattr(args, "json", False))) if console is None else console
    verdict = _check_peer(args, console) if args.peer else _check(args)
    console.data(verdict.as_json())
    _print(verdict, console)
    return 0 if verdict.accepted else EXIT_REFUSED


def _check(args: argparse.Namespace) -> Verdict:
    from ..attest import parts
    from ..errors import ConfigError

    now_s = _time(args.at)
    match args.what:
        case None:
            raise ConfigError("nothing to verify was named", advice="See `cocoon verify --help`.")
        case "tdx":
            _only(args, "quote", "collateral", "event_log", needed=("quote", "collateral"))
            log = _read(args.event_log) if args.event_log else None
            return parts.check_tdx(
                _read(args.quote, may_be_hex=True), _read(args.collateral), now_s=now_s, event_log=log
            )
        case "gpu":
            _only(args, "report", "chain", "rim", "nonce", "crl", "ocsp", needed=("report", "chain"))
            return parts.check_gpu(
                _read(args.report, may_be_hex=True),
                _read(args.chain),
                now_s=now_s,
                rims=[_read(path) for path in args.rim],
                nonce=_nonce(args.nonce),
                crls=[_read(path) for path in args.crl],
                ocsp_answers=[_read(path) for path in args.ocsp],
            )
        case "rim":
            _only(args, "file", needed=("file",))
            return parts.check_rim(_read(args.file), now_s=now_s)
        case "eventlog":
            _only(args, "file", "quote", needed=("file",))
            quote = _read(args.quote, may_be_hex=True) if args.quote else None
            return parts.check_event_log(_read(args.file), quote=quote)
        case path:
            _only(args, "policy", needed=())
            return _check_session(_read(path), args.policy, now_s)


def _check_peer(args: argparse.Namespace, console: Console) -> Verdict:
    from pathlib import Path

    from ..attest.evidence import encode_saved
    from ..errors import ConfigError
    from .verify_peer import fetch_evidence

    if args.what is not None:
        raise ConfigError("--peer takes no file", advice="See --help.")
    _only(args, "policy", needed=())
    data = encode_saved(fetch_evidence(args, console))
    if args.save is not None:
        try:
            Path(args.save).write_bytes(data)
        except OSError as error:
            raise ConfigError(f"{args.save} cannot be written: {error.strerror}") from error
        console.say(f"saved to {args.save}; check it again with `cocoon verify {args.save}`")
    return _check_session(data, args.policy, _time(args.at))


def _check_session(data: bytes, policy_path: str | None, now_s: int) -> Verdict:
    from ..adapters.tee.software import software_anchors, software_release
    from ..attest.images import ImagePolicy
    from ..attest.parts import check_saved
    from ..attest.policy import TrustPolicy
    from ..attest.policy_file import parse_policy
    from ..types import SECOND_NS, TrustLevel

    text = None if policy_path is None else _text(policy_path)

    def policy_for(network: Network, level: TrustLevel) -> TrustPolicy:
        if text is not None and policy_path is not None:
            return parse_policy(text, network=network, read=_reader_beside(policy_path), now_s=now_s)
        if level is TrustLevel.SIMULATED:
            images = ImagePolicy(releases=(software_release(),))
            return TrustPolicy(level=level, network=network, images=images)
        # Without a policy no image is accepted, so hardware evidence is at most genuine, never trusted.
        return TrustPolicy(level=level, network=network)

    return check_saved(data, now=now_s * SECOND_NS, policy_for=policy_for, software=software_anchors)


def _reader_beside(policy_path: str) -> Any:
    """Reads files named in a policy, relative to the policy's own folder."""
    from pathlib import Path

    folder = Path(policy_path).parent
    return lambda name: _read(str(folder / name))


def _only(args: argparse.Namespace, *allowed: str, needed: tuple[str, ...]) -> None:
    """Refuse options that this form does not look at: a check that was asked for must not be left out silently."""
    from ..errors import ConfigError

    options = ("file", "policy", "quote", "collateral", "event_log", "report", "chain", "nonce", "rim", "crl", "ocsp")
    for name in options:
        if getattr(args, name) and name not in allowed:
            raise ConfigError(f"--{name.replace('_', '-')} does not belong to this form", advice="See --help.")
    for name in needed:
        if not getattr(args, name):
            what = "a file" if name == "file" else f"--{name.replace('_', '-')} FILE"
            raise ConfigError(f"`cocoon verify {args.what}` needs {what}", advice="See --help.")


def _time(text: str | None) -> int:
    import datetime
    import time

    from ..errors import ConfigError

    if text is None:
        return int(time.time())
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return int(text)
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise ConfigError(
            f"not a time: {text[:40]!r}", advice="Use Unix seconds or RFC 3339 with a zone: 2026-11-22T12:00:00Z"
        )
    return int(when.timestamp())


def _nonce(text: str | None) -> bytes | None:
    from ..errors import ConfigError

    if text is None:
        return None
    try:
        nonce = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        nonce = b""
    if len(nonce) != 32:
        raise ConfigError("--nonce is not 32 bytes of hex")
    return nonce


def _read(path: str, *, may_be_hex: bool = False) -> bytes:
    from ..errors import ConfigError

    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if may_be_hex and len(data) > 2 and not data.strip(b"0123456789abcdefABCDEF \r\n\t"):
        try:
            return bytes.fromhex(data.decode("ascii"))
        except ValueError:
            return data
    return data


def _text(path: str) -> str:
    from ..errors import ConfigError

    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text") from None


def _print(verdict: Verdict, console: Console) -> None:
    if console.json_output:
        return
    ticks = _ticks()
    for check in verdict.checks:
        detail = f"  {check.detail}" if check.detail else ""
        console.line(f"{ticks[check.passed]} {check.name}{detail}")
    for name in verdict.not_checked:
        console.line(f"- {name}  not checked: nothing was given for it")
    for name, value in verdict.claims.items():
        if isinstance(value, (str, int)):
            console.line(f"  {name}: {value}")
        elif name == "policy":
            for line in value:
                console.line(f"  policy: {line}")
    console.line("accepted" if verdict.accepted else f"refused: {verdict.reason}: {verdict.message}")


def _ticks() -> dict[bool, str]:
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    return {True: "✔", False: "✘"} if encoding.startswith("utf") else {True: "ok", False: "NO"}
