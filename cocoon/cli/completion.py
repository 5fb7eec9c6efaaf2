"""`cocoon completion bash|zsh|fish`: a script that completes commands and options. It asks nothing of the network."""

from __future__ import annotations

import argparse
from importlib import import_module

from .console import Console

HELP = """\
bash: eval "$(cocoon completion bash)" in ~/.bashrc
zsh:  eval "$(cocoon completion zsh)" in ~/.zshrc
fish: cocoon completion fish > ~/.config/fish/completions/cocoon.fish"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cocoon completion`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace, console: Console) -> int:
    """The script on standard output."""
    words = words_by_command()
    script = {"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell](words)
    console.data({"shell": args.shell, "script": script})
    console.text(script)
    return 0


def words_by_command() -> dict[str, list[str]]:
    """Options and fixed words that each command takes."""
    from . import COMMANDS

    found: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser()
        parser.add_argument("--json")
        parser.add_argument("--debug")
        import_module(f".{command.module}", __package__).add_arguments(parser)
        found[name] = sorted(_words(parser))
    return found


def _words(parser: argparse.ArgumentParser) -> set[str]:
    words: set[str] = set()
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                words |= {name, *_words(inner)}
        elif action.option_strings:
            words |= {one for one in action.option_strings if one.startswith("--")}
        elif action.choices is not None:
            words |= {str(one) for one in action.choices}
    return words


def _bash(words: dict[str, list[str]]) -> str:
    cases = "\n".join(f'    {name}) words="{" ".join(options)}" ;;' for name, options in words.items())
    return f"""\
_cocoon() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="{" ".join(words)} --help --version"
  else case "${{COMP_WORDS[1]}}" in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ "${{#COMPREPLY[@]}}" -eq 0 ] && COMPREPLY=($(compgen -f -- "$word"))
}}
complete -F _cocoon cocoon
"""


def _zsh(words: dict[str, list[str]]) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + _bash(words)


def _fish(words: dict[str, list[str]]) -> str:
    from . import COMMANDS

    lines = [
        f"complete -c cocoon -n __fish_use_subcommand -f -a {name} -d {_quoted(command.summary)}"
        for name, command in COMMANDS.items()
    ]
    for name, options in words.items():
        for option in options:
            where = f"-n '__fish_seen_subcommand_from {name}'"
            kind = f"-l {option[2:]}" if option.startswith("--") else f"-f -a {option}"
            lines.append(f"complete -c cocoon {where} {kind}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
