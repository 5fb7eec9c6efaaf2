"""The run: start the targets, warm them, load them in turn, and put the figures together."""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import trio

from ...errors import ConfigError, Unavailable
from ..console import Console
from . import processes
from .load import Cell, Target, run_cell
from .processes import Measured
from .report import table

ENGINE_ALONE_PATH: Final = "/engine-alone"  # of `peer raw`
KEY: Final = "bench-key-0123456789"
MODEL: Final = "cocoon-bench"
PROMPT: Final = "Tell me a long story about Anna."
PACED_TOKENS_PER_S: Final = 50
WARM_UP_STREAMS: Final = 4
STREAMS_MAX: Final = 256
ROUNDS_MAX: Final = 100
TOKENS_MAX: Final = 512
LITELLM_START_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure."""

    engines: tuple[str, ...]
    streams: tuple[int, ...]
    rounds: int
    tokens: int
    burst: bool
    profile: bool
    server: str
    litellm: str | None
    nginx: str | None

    @staticmethod
    def parse(args: argparse.Namespace) -> Plan:
        """Check the arguments. Raises `ConfigError`."""
        try:
            streams = tuple(int(each) for each in args.streams.split(","))
        except ValueError:
            raise ConfigError(f"not a list of numbers: {args.streams!r}", advice="Write --streams 1,16,64") from None
        for name, values, most in (
            ("--streams", streams, STREAMS_MAX),
            ("--rounds", (args.rounds,), ROUNDS_MAX),
            ("--tokens", (args.tokens,), TOKENS_MAX),
        ):
            if not all(1 <= value <= most for value in values):
                raise ConfigError(f"{name} takes numbers from 1 to {most}")
        for name, path in (("--nginx", args.nginx), ("--litellm", args.litellm)):
            if path is not None and shutil.which(path) is None:
                raise ConfigError(f"{name}: {path} is not a program")
        return Plan(
            engines=("paced", "tiny") if args.engine == "both" else (args.engine,),
            streams=streams,
            rounds=args.rounds,
            tokens=args.tokens,
            burst=args.burst,
            profile=args.profile,
            server=args.server,
            litellm=args.litellm or shutil.which("litellm"),
            nginx=args.nginx or shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin"),
        )


@dataclass(slots=True, kw_only=True)
class Row:
    """A cell, and the CPU and memory that it took. CPU is in seconds per 1,000 tokens."""

    cell: Cell
    cpu_per_1000: dict[str, float]  # by process
    rss_mib: dict[str, float]
    added_first_token_p50_ms: float = math.nan
    added_first_token_p99_ms: float = math.nan
    tokens_per_s_ratio: float = math.nan
    gap_p99_ratio: float = math.nan


@dataclass(slots=True, kw_only=True)
class Competitor:
    """A target and the processes that stand between the load and the engine (the engine's own last, if separate)."""

    target: Target
    processes: list[Measured]
    ready_s: float


@dataclass(slots=True, kw_only=True)
class Outcome:
    """All rows of one engine, raw first."""

    engine: str
    rows: list[Row] = field(default_factory=list)
    engine_cpu_per_1000: dict[int, float] = field(default_factory=dict)  # by streams: taken off the provider's
    ready_s: dict[str, float] = field(default_factory=dict)
    profile: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


async def measure(plan: Plan, console: Console) -> None:
    """Run everything and print it."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="cocoon-bench-") as folder:
        for engine in plan.engines:
            outcome = await _measure_engine(engine, plan, Path(folder), console)
            outcome.profile = _profiles(engine, Path(folder))
            outcomes.append(outcome)
    for outcome in outcomes:
        console.line(table(outcome, burst=plan.burst))
    console.data(
        {
            "machine": f"{platform.machine()} · Python {platform.python_version()}",
            "plan": asdict(plan),
            "engines": [asdict(outcome) for outcome in outcomes],
        }
    )
    failed = sum(row.cell.failed + row.cell.altered for outcome in outcomes for row in outcome.rows)
    if failed:
        raise Unavailable(f"{failed} streams failed or were altered", advice="See the table: failed, altered.")


async def _measure_engine(engine: str, plan: Plan, folder: Path, console: Console) -> Outcome:
    outcome = Outcome(engine=engine)
    async with _targets(engine, plan, folder, console, outcome) as competitors:
        expected = await _warm_up(competitors, plan)
        for streams in plan.streams:
            raw: Row | None = None
            if engine == "paced":
                alone = await _measure_cell(_engine_alone(competitors[0]), streams, plan, None)
                outcome.engine_cpu_per_1000[streams] = alone.cpu_per_1000["raw"]
            for competitor in competitors:
                console.progress(f"{engine} · {streams} streams · {competitor.target.name} …")
                row = await _measure_cell(competitor, streams, plan, expected)
                raw = raw or row
                outcome.engine_cpu_per_1000.setdefault(streams, raw.cpu_per_1000["raw"])
                _compare(row, raw)
                outcome.rows.append(row)
    return outcome


def _engine_alone(raw: Competitor) -> Competitor:
    """The paced engine without a word of HTTP per token. (llama.cpp decodes in threads of its own: the raw server's
    CPU stands for it, its cheap C++ server included, which favours nobody by much.)"""
    return Competitor(
        target=replace(raw.target, name="engine alone", path=ENGINE_ALONE_PATH),
        processes=raw.processes,
        ready_s=raw.ready_s,
    )


def _profiles(engine: str, folder: Path) -> dict[str, dict[str, int]]:
    """Samples by part, of each process that was profiled."""
    paths = folder.glob(f"{engine}-*.profile")
    return {path.stem.removeprefix(f"{engine}-"): json.loads(path.read_text()) for path in paths}


async def _warm_up(competitors: list[Competitor], plan: Plan) -> str | None:
    """Open sessions, fill caches; the text that a right answer has. Batching may turn a greedy token of the real
    model, so only the paced engine's answers can be compared to the letter."""
    texts = []
    for competitor in competitors:
        _, streams = await run_cell(
            competitor.target,
            streams=WARM_UP_STREAMS,
            rounds=2,
            prompt=PROMPT,
            tokens=plan.tokens,
            expected=None,
        )
        bad = [each.error for each in streams if each.error]
        if bad:
            raise Unavailable(f"{competitor.target.name} failed while warming up: {bad[0]}")
        texts.append(streams[0].text)
        for process in competitor.processes:
            if process.name in ("gateway", "provider"):
                process.process.send_signal(signal.SIGUSR1)
    return texts[0] if len(set(texts)) == 1 else None


async def _measure_cell(competitor: Competitor, streams: int, plan: Plan, expected: str | None) -> Row:
    before = {process.name: process.cpu_s() for process in competitor.processes}
    cell, _ = await run_cell(
        competitor.target,
        streams=streams,
        rounds=plan.rounds,
        prompt=PROMPT,
        tokens=plan.tokens,
        expected=expected,
        spread_s=0.0 if plan.burst else plan.tokens / PACED_TOKENS_PER_S,
    )
    thousands = max(cell.tokens, 1) / 1_000
    return Row(
        cell=cell,
        cpu_per_1000={
            process.name: (process.cpu_s() - before[process.name]) / thousands for process in competitor.processes
        },
        rss_mib={process.name: process.rss_mib() for process in competitor.processes},
    )


def _compare(row: Row, raw: Row) -> None:
    """What this target adds to the raw engine at the same load."""
    row.added_first_token_p50_ms = row.cell.first_token_p50_ms - raw.cell.first_token_p50_ms
    row.added_first_token_p99_ms = row.cell.first_token_p99_ms - raw.cell.first_token_p99_ms
    row.tokens_per_s_ratio = row.cell.tokens_per_s / raw.cell.tokens_per_s if raw.cell.tokens_per_s else math.nan
    row.gap_p99_ratio = row.cell.gap_p99_ms / raw.cell.gap_p99_ms if raw.cell.gap_p99_ms else math.nan


@asynccontextmanager
async def _targets(
    engine: str, plan: Plan, folder: Path, console: Console, outcome: Outcome
) -> AsyncIterator[list[Competitor]]:
    async with AsyncExitStack() as stack:

        async def started(measured: Measured) -> Measured:
            stack.push_async_callback(processes.end, measured)
            return measured

        def profile(role: str) -> list[str]:
            return ["--profile", str(folder / f"{engine}-{role}.profile")] if plan.profile else []

        console.progress(f"{engine} · starting the raw engine …")
        raw = await started(
            await processes.start_peer("raw", ["raw", "--engine", engine], folder / f"{engine}-raw.log")
        )
        port = int(raw.ready["port"])
        competitors = [_competitor("raw engine", port, [raw], raw.ready_s)]
        for name, path, start in (("nginx", plan.nginx, _start_nginx), ("LiteLLM", plan.litellm, _start_litellm)):
            if path is None:
                outcome.left_out.append(f"{name}: not installed")
                continue
            console.progress(f"{engine} · starting {name} …")
            measured, own_port = await start(path, port, folder)
            await started(measured)
            try:
                measured.ready_s = await processes.wait_port(own_port, timeout_s=LITELLM_START_S)
            except Unavailable as error:
                outcome.left_out.append(f"{name}: {error}")
                continue
            competitors.append(_competitor(name, own_port, [measured, raw], measured.ready_s))
        console.progress(f"{engine} · starting provider and gateway …")
        words = ["provider", "--engine", engine, *profile("provider")]
        provider = await started(await processes.start_peer("provider", words, folder / f"{engine}-provider.log"))
        words = ["gateway", "--server", plan.server, "--key", KEY, *profile("gateway")]
        for address in provider.ready["addresses"]:
            words += ["--bootstrap", address]
        gateway = await started(await processes.start_peer("gateway", words, folder / f"{engine}-gateway.log"))
        ready_s = provider.ready_s + gateway.ready_s
        competitors.append(_competitor("cocoon", int(gateway.ready["port"]), [gateway, provider], ready_s))
        outcome.ready_s = {each.target.name: each.ready_s for each in competitors}
        yield competitors


def _competitor(name: str, port: int, measured: list[Measured], ready_s: float) -> Competitor:
    return Competitor(target=Target(name=name, port=port, key=KEY, model=MODEL), processes=measured, ready_s=ready_s)


async def _free_port() -> int:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = int(listeners[0].socket.getsockname()[1])
    await listeners[0].aclose()
    return port


async def _start_nginx(path: str, upstream: int, folder: Path) -> tuple[Measured, int]:
    """Unbuffered, one worker in one process, kept-alive upstream connections."""
    port = await _free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;
events {{ worker_connections 2048; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 256; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_buffering off; proxy_request_buffering off; keepalive_requests 1000000; }} }}
}}
"""
    )
    measured = await processes.start(
        "nginx", [path, "-c", str(config), "-p", str(folder)], folder / "nginx.log", waits_for_line=False
    )
    return measured, port


async def _start_litellm(path: str, upstream: int, folder: Path) -> tuple[Measured, int]:
    """One worker, no database."""
    port = await _free_port()
    config = folder / "litellm.json"
    config.write_text(
        json.dumps(
            {
                "model_list": [
                    {
                        "model_name": MODEL,
                        "litellm_params": {
                            "model": f"openai/{MODEL}",
                            "api_base": f"http://127.0.0.1:{upstream}/v1",
                            "api_key": "none",
                        },
                    }
                ],
                "litellm_settings": {"telemetry": False},
            }
        )
    )
    measured = await processes.start(
        "LiteLLM",
        [path, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
        folder / "litellm.log",
        waits_for_line=False,
        environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # otherwise it waits for a download first
    )
    return measured, port
