"""Mutation testing of `cocoon.attest`: which changes of a check does no test notice?

    uv pip install mutmut==3.8.1
    python -m tests.mutation.attest --minutes 25              # goes on where the last run stopped
    python -m tests.mutation.attest --minutes 0 --survivors   # only shows
    python -m tests.mutation.attest --again                   # runs those that lived once more: tests were added

It works on a copy of the checkout (`build/mutation`), so nothing here changes under it; delete that folder to begin
anew. Modules come in the order of `MODULES`, the mutants of each in a random order that is always the same, so that a
part of a module is a fair sample of it. A new file of tests makes mutmut forget its results.

A mutant whose only change is in words for people (a string with a space in it) is left out: no check depends on it, and
tests that pin prose are in nobody's interest.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import time
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = (
    "verifier", "policy", "judging", "ratchet", "statement", "facts", "nonces", "images", "trail", "tdx", "gpu/verify",
    "quote", "roots", "proving", "gpu/report", "release", "collateral", "certs", "gpu/rim", "eventlog", "evidence",
    "gpu/xml", "policy_file", "parts",
)  # fmt: skip
CONFIG = """
[tool.mutmut]
source_paths = ["cocoon"]
only_mutate = ["cocoon/attest/*"]
also_copy = ["p2p", "README.md", "docs"]
pytest_add_cli_args_test_selection = TESTS
pytest_add_cli_args = ["-p", "no:cacheprovider"]
timeout_multiplier = 3.0
timeout_constant = 5.0
use_setproctitle = false
use_git_change_detection = false
track_dependencies = false
"""
CHUNK = 600  # mutants per run of mutmut: it needs most of a minute to start
SURVIVED = 0
SEED = 4


def main() -> int:
    """Run for a while, then say how far it got; 0 whatever the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--survivors", action="store_true", help="show each mutant that no test noticed")
    parser.add_argument("--again", action="store_true", help="run the survivors again, and nothing else")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutation")
    parser.add_argument("--children", type=int, default=1, help="processes at once")
    parser.add_argument("modules", nargs="*", help=f"default: {' '.join(MODULES)}")
    args = parser.parse_args()
    ends = time.monotonic() + args.minutes * 60
    if args.minutes:
        copy(args.folder)
        if not (args.folder / "mutants").exists():
            mutmut(args.folder, ["cocoon.attest.nonces.*"], args.children, ends)  # makes all mutants on the way
    modules = args.modules or MODULES
    if args.again:
        lived = [name for module in modules for name, code in outcomes(args.folder, module).items() if code == SURVIVED]
        mutmut(args.folder, lived, args.children, ends)
        ends = 0.0
    while time.monotonic() < ends:
        waiting = [name for module in modules for name in undone(args.folder, module)][:CHUNK]
        if not waiting:
            break
        mutmut(args.folder, waiting, args.children, ends)
    report(args.folder, modules, with_survivors=args.survivors)
    return 0


def copy(folder: Path) -> None:
    """The checkout as it is now, and mutmut's settings in its own pyproject."""
    for name in ("cocoon", "p2p", "tests", "docs"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", folder)
    tests = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "unit").glob("test_attest_*.py"))
    settings = CONFIG.replace("TESTS", json.dumps(tests))
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)


def mutmut(folder: Path, names: list[str], children: int, ends: float) -> None:
    """One run, cut off when the time is up: what is done is kept."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(children), *names]
    with (folder / "mutmut.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            process.wait(timeout=max(60.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()


def outcomes(folder: Path, module: str) -> dict[str, int | None]:
    """Exit code of the tests by mutant; None while it has not run. Without those that change words only."""
    meta = folder / "mutants" / "cocoon" / "attest" / f"{module}.py.meta"
    if not meta.exists():
        return {}
    codes: dict[str, int | None] = json.loads(meta.read_text())["exit_code_by_key"]
    bodies = functions(meta.with_suffix("").read_text())
    return {name: code for name, code in codes.items() if not is_prose(*pair(bodies, name))}


def undone(folder: Path, module: str) -> list[str]:
    """Mutants still to run, shuffled."""
    names = sorted(outcomes(folder, module))
    random.Random(SEED).shuffle(names)
    codes = outcomes(folder, module)
    return [name for name in names if codes[name] is None]


def functions(source: str) -> dict[str, str]:
    """Bodies of mutmut's variants by name."""
    starts = list(re.finditer(r"^ *(?:async )?def (\w+__mutmut_(?:orig|\d+))\(", source, re.MULTILINE))
    ends = [*(match.start() for match in starts[1:]), len(source)][: len(starts)]
    found = {}
    for match, end in zip(starts, ends, strict=True):
        indent = len(match.group(0)) - len(match.group(0).lstrip())
        lines = source[match.start() : end].splitlines()
        # up to the first line after the signature that is not deeper than `def`
        depth = next((i for i, line in enumerate(lines[1:], 1) if line.strip() and _indent(line) <= indent
                      and not line.lstrip().startswith(")")), len(lines))  # fmt: skip
        found[match.group(1)] = "\n".join(lines[:depth])
    return found


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def pair(bodies: dict[str, str], mutant: str) -> tuple[str, str]:
    """The original and the mutated text."""
    name = mutant.rsplit(".", 1)[1]
    original = re.sub(r"__mutmut_\d+$", "__mutmut_orig", name)
    return bodies.get(original, ""), bodies.get(name, "")


def is_prose(original: str, mutated: str) -> bool:
    """Whether they differ in sentences alone: a sentence changed, left out, or None in its place."""
    before, after = tokens(original), tokens(mutated)
    matcher = difflib.SequenceMatcher(a=before, b=after, autojunk=False)
    removed = [t for op, a, b, _, _ in matcher.get_opcodes() if op != "equal" for t in before[a:b]]
    added = [t for op, _, _, a, b in matcher.get_opcodes() if op != "equal" for t in after[a:b]]
    sentences = [t for t in removed if t.lstrip("frb")[:1] in "\"'" and " " in t]
    rest = [t for t in removed if t not in sentences]
    return bool(sentences) and set(rest) <= {",", "success", "detail", "what", "="} and all(
        t == "None" or " " in t for t in added
    )  # fmt: skip


def tokens(text: str) -> list[str]:
    """Without names of variants, comments and white space."""
    text = re.sub(r"__mutmut_(orig|\d+)", "", text)
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    source = "if True:\n" + text if text.startswith(" ") else text
    try:
        return [t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in skipped]
    except (tokenize.TokenError, IndentationError):
        return text.split()


def report(folder: Path, modules: tuple[str, ...] | list[str], *, with_survivors: bool) -> None:
    """Score by module, and what survived."""
    total: Counter[str] = Counter()
    for module in modules:
        codes = outcomes(folder, module)
        done = {name: code for name, code in codes.items() if code is not None}
        survived = [name for name, code in done.items() if code == SURVIVED]
        total.update(all=len(codes), done=len(done), survived=len(survived))
        if done:
            print(f"{module:<14}{len(done):5d} of {len(codes):5d} run, {len(survived):4d} survived")
        if with_survivors and survived:
            bodies = functions((folder / "mutants" / "cocoon" / "attest" / f"{module}.py").read_text())
            for name in survived:
                print(f"  {name.rsplit('.', 1)[1]}")
                before, after = (text.splitlines()[1:] for text in pair(bodies, name))
                for line in difflib.unified_diff(before, after, lineterm="", n=0):
                    if line[:1] in "+-" and line[:3] not in ("+++", "---"):
                        print(f"      {line[0]} {line[1:].strip()}")
    killed = total["done"] - total["survived"]
    share = 100 * killed / total["done"] if total["done"] else 0.0
    print(f"{killed} of {total['done']} noticed ({share:.1f} %); {total['done']} of {total['all']} mutants run")


if __name__ == "__main__":
    sys.exit(main())
