"""`cocoon service install|show|remove serve|node|gateway`: a systemd unit that runs the command for months.

Of the user by default (`systemctl --user`), of the machine with `--system`. The unit starts again after a failure,
stops by SIGTERM and gives running streams their time, and is hardened: no privileges, no new ones, a read-only
system, its own /tmp, only the home writable. This writes one file; starting it is the user's command, which is shown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from ..config import Home
from ..errors import ConfigError
from .console import Console

ROLES: Final = ("serve", "node", "gateway")
SYSTEM_FOLDER: Final = Path("/etc/systemd/system")
STOP_S: Final = 60  # longer than any answer's last words; `running.SHUTDOWN_MAX_S` is the program's own limit

UNIT: Final = """\
# Written by `cocoon service install {role}`.
[Unit]
Description=Cocoon {role}: {what}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=exec
ExecStart={command}
Environment=COCOON_HOME={home}
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2 3
KillSignal=SIGTERM
TimeoutStopSec={stop_s}
{user}
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome={protect_home}
ReadWritePaths={home}
PrivateTmp=yes
PrivateDevices={private_devices}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups={protect_cgroups}
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
LimitNOFILE=65536

[Install]
WantedBy={target}
"""

_WHAT: Final = {
    "serve": "offers a model to the network",
    "node": "a plain peer of the network",
    "gateway": "an OpenAI-compatible API on this machine",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon service`."""
    parser.add_argument("what", choices=("install", "show", "remove"), help="show prints the unit and writes nothing")
    parser.add_argument("role", choices=ROLES, help="what the service runs; its settings come from HOME/config.toml")
    parser.add_argument("--system", action="store_true", help="for the machine, not for this user; needs root")
    parser.add_argument("--user-name", metavar="NAME", help="with --system: who it runs as (default: who calls)")
    parser.add_argument("--devices", action="store_true", help="let it see devices: a GPU, or the TDX guest device")
    parser.add_argument("--home", metavar="DIR", help="where keys, models and the database live")


def run(args: argparse.Namespace, console: Console) -> int:
    """Write, show or remove the unit."""
    name = f"cocoon-{args.role}.service"
    folder = SYSTEM_FOLDER if args.system else _user_folder()
    path = folder / name
    control = "systemctl" if args.system else "systemctl --user"
    if args.what == "remove":
        return _remove(path, control, console)
    home = Home.locate(args.home)
    unit = unit_text(
        args.role,
        home=home.path,
        command=_command(args.role),
        user_name=args.user_name or _caller() if args.system else None,
        devices=args.devices,
    )
    findings = verify(unit, name)
    if args.what == "show":
        console.data({"path": str(path), "unit": unit, "verified": findings == [], "findings": findings})
        console.text(unit)
        return 0
    home.create()
    _write(path, unit)
    console.data({"path": str(path), "unit": unit, "verified": findings == [], "findings": findings})
    console.line(f"written: {path}")
    for finding in findings or ():
        console.say(f"systemd says: {finding}")
    console.say(f"Start it now and at every boot:  {control} daemon-reload && {control} enable --now {name}")
    console.say(f"See what it does:                journalctl {'' if args.system else '--user '}-u {name} -f")
    if not args.system:
        console.say("Keep it running when nobody is logged in:  loginctl enable-linger")
    return 0


def unit_text(role: str, *, home: Path, command: list[str], user_name: str | None, devices: bool) -> str:
    """The unit. `user_name` None: a unit of the user's own manager, which cannot change users or hide all homes.

    Raises `ConfigError` for a path that systemd's syntax has no way to say.
    """
    is_system = user_name is not None
    return UNIT.format(
        role=role,
        what=_WHAT[role],
        command=" ".join(_escaped(word).replace("$", "$$") for word in command),  # only there `$` means something
        home=_escaped(str(home)),
        stop_s=STOP_S,
        user=f"User={_escaped(user_name)}" if user_name is not None else "# runs as you",
        protect_home="read-only",
        private_devices="no" if devices else "yes",
        protect_cgroups="yes" if is_system else "no",
        target="multi-user.target" if is_system else "default.target",
    )


def verify(unit: str, name: str) -> list[str] | None:
    """What `systemd-analyze verify` finds; None where there is none."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return None
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(unit)
        try:
            done = subprocess.run(  # noqa: S603 systemd's own checker, on our own text
                [program, "verify", "--man=no", str(path)], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
    return [line.strip()[:300] for line in done.stderr.splitlines() if name in line]


def _command(role: str) -> list[str]:
    """This very program. An environment that moves away takes its service with it, so the path is absolute."""
    return [sys.executable, "-m", "cocoon", role]


def _escaped(text: str) -> str:
    if not text.isprintable() or any(char in text for char in " \"'\\;"):
        raise ConfigError(
            f"a service cannot use the path {text[:200]!a}", advice="Choose one without spaces or quotes."
        )
    return text.replace("%", "%%")


def _caller() -> str:
    import pwd

    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


def _user_folder() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "systemd" / "user"


def _write(path: Path, unit: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(unit)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", advice="With --system it needs root.") from error


def _remove(path: Path, control: str, console: Console) -> int:
    try:
        path.unlink()
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}") from None
    except OSError as error:
        raise ConfigError(f"cannot remove {path}: {error.strerror}") from error
    console.data({"path": str(path), "removed": True})
    console.line(f"removed: {path}")
    console.say(f"If it runs still:  {control} disable --now {path.name}")
    return 0
