"""Coverage-guided fuzzing of every parser of evidence: the long form of `test_attest_parsers.py`.

    uv pip install atheris==3.0.0
    python -m tests.fuzz.atheris_attest --seconds 60            # each parser in turn
    python -m tests.fuzz.atheris_attest --seconds 600 quote xml  # these alone

Each parser runs in a process of its own, bounded in time, memory and time per input, from the good files as a start;
its corpus is kept in `build/fuzz/NAME`, so the next run goes on where this one stopped. Anything but a value or one of
our own errors ends that process, and its input is kept there as `crash-…`. Exit code 1 when there is one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "fuzz"
INPUT_BYTES_MAX = 64 * 1024
INPUT_SECONDS_MAX = 5
MEMORY_MIB_MAX = 2_048  # of the whole process; libraries and coverage take 300
INSTRUMENTED = "cocoon.attest"


def main() -> int:
    """Run the parsers that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each parser")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    if args.child:
        return fuzz(args.names[0], args.seconds)
    from tests.fuzz import test_attest_parsers as parsers

    names = args.names or list(parsers.TARGETS)
    unknown = sorted(set(names) - set(parsers.TARGETS))
    if unknown:
        parser.error(f"no such parser: {', '.join(unknown)}; there are {', '.join(parsers.TARGETS)}")
    return max([run(name, args.seconds) for name in names])


def run(name: str, seconds: int) -> int:
    """One parser in a process of its own; prints what libFuzzer did. 1 when something was found."""
    command = [sys.executable, "-m", "tests.fuzz.atheris_attest", "--child", "--seconds", str(seconds), name]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=seconds * 3 + 120)
    runs = re.findall(r"^Done (\d+) runs in (\d+)", done.stderr, re.MULTILINE)
    coverage = re.findall(r"\bcov: (\d+)", done.stderr)
    memory = re.findall(r"\brss: (\d+)Mb", done.stderr)
    if done.returncode or not runs:
        print(f"{name:<12} FAILED\n{done.stderr[-4_000:]}", flush=True)
        return 1
    print(
        f"{name:<12}{runs[0][0]:>10} inputs in {runs[0][1]} s, {coverage[-1]} edges, "
        f"at most {max(map(int, memory))} MiB",
        flush=True,
    )
    return 0


def fuzz(name: str, seconds: int) -> int:
    """In the child: instrument, then hand over to libFuzzer, which ends the process."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed; see the head of this file", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=[INSTRUMENTED]):
        from tests.fuzz import test_attest_parsers as parsers
    parse, seeds = parsers.TARGETS[name]
    corpus = FOLDER / re.sub(r"\W", "-", name)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        parsers.tolerate(lambda: parse(data))

    options = [
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-artifact_prefix={corpus}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
