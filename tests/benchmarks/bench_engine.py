"""What our engine adapter costs over bare xllamacpp: tokens per second and CPU per token, in one run, taking turns.

    .venv/bin/python tests/benchmarks/bench_engine.py [--tokens 400] [--rounds 5] [--model FILE] [--json]

"raw" is the library as its README shows it: one Python thread per stream, the chat endpoint, a callback that counts.
Both sides load the model with the same parameters, run the same requests, and end none early. The test model makes a
token in half a millisecond of CPU, so this is the hardest case: with a model that anybody would use, the difference
disappears. CPU covers the whole process, llama.cpp included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path

import trio

from cocoon.adapters.engines import llamacpp_server
from cocoon.adapters.engines.llamacpp import open_llamacpp_engine
from cocoon.adapters.engines.llamacpp_server import ServerOptions
from cocoon.ports.engine import Delta, GenerationRequest

MODEL = Path(__file__).parents[2] / "cocoon/data/models/cocoon-tiny/cocoon-tiny-q8_0.gguf"
BAN_ENDS = {"0": -100.0, "2": -100.0}  # so that every stream makes as many tokens as asked for
STREAMS = (1, 4, 16)


def message(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Tell me a long story about {number}."}]


class Sample:
    """One round of one side."""

    def __init__(self, tokens: int, wall_s: float, cpu_s: float, first_ms: list[float]) -> None:
        self.tokens_per_s = tokens / wall_s
        self.cpu_ms_per_token = cpu_s * 1e3 / tokens
        self.first_ms = statistics.median(first_ms)


def raw_round(server: llamacpp_server.Server, streams: int, tokens: int) -> Sample:
    firsts: list[float] = []
    counts = [0] * streams

    def one(number: int) -> None:
        body = {
            "messages": message(number),
            "max_tokens": tokens,
            "temperature": 0.0,
            "stream": True,
            "cache_prompt": False,
            "logit_bias": BAN_ENDS,
        }

        def on_event(event: bytes) -> bool:
            if not counts[number]:
                firsts.append((time.perf_counter() - started) * 1e3)
            counts[number] += json.loads(event)["choices"][0]["finish_reason"] is None
            return False

        server._native.handle_chat_completions(json.dumps(body).encode(), on_event)

    started, cpu = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=one, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The chat endpoint sends no event for a token it holds back, so the tokens asked for are the count.
    return Sample(streams * tokens, time.perf_counter() - started, time.process_time() - cpu, firsts)


async def our_round(engine: object, streams: int, tokens: int) -> Sample:
    firsts: list[float] = []
    total = 0

    async def one(number: int) -> None:
        nonlocal total
        body = {"messages": message(number), "max_tokens": tokens, "temperature": 0.0, "logit_bias": BAN_ENDS}
        request = GenerationRequest(endpoint="chat.completions", body=body)
        seen = 0
        async with engine.generate(request) as events:  # type: ignore[attr-defined]
            async for event in events:
                if isinstance(event, Delta):
                    if not seen:
                        firsts.append((time.perf_counter() - started) * 1e3)
                    seen += len(event.token_ids)
        total += seen

    started, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for number in range(streams):
            nursery.start_soon(one, number)
    assert total == streams * tokens, (total, streams * tokens)
    return Sample(total, time.perf_counter() - started, time.process_time() - cpu, firsts)


def median(samples: list[Sample]) -> dict[str, float]:
    return {
        "tokens_per_s": round(statistics.median(one.tokens_per_s for one in samples)),
        "cpu_ms_per_token": round(statistics.median(one.cpu_ms_per_token for one in samples), 3),
        "first_token_ms": round(statistics.median(one.first_ms for one in samples), 1),
    }


async def measure(path: Path, streams: int, tokens: int, rounds: int) -> dict[str, object]:
    context = 1_024
    raw_server = llamacpp_server.start(ServerOptions(path=path, slots=streams, context_tokens=context, threads=1))
    raw: list[Sample] = []
    ours: list[Sample] = []
    try:
        async with open_llamacpp_engine(path, slots=streams, context_tokens=context, threads=1) as engine:
            for turn in range(rounds + 1):
                raw_sample = await trio.to_thread.run_sync(raw_round, raw_server, streams, tokens)
                our_sample = await our_round(engine, streams, tokens)
                if turn:  # the first round warms both up
                    raw.append(raw_sample)
                    ours.append(our_sample)
    finally:
        await trio.to_thread.run_sync(raw_server.close)
    pairs = [(our.tokens_per_s / base.tokens_per_s) for our, base in zip(ours, raw, strict=True)]
    cpu = [(our.cpu_ms_per_token / base.cpu_ms_per_token) for our, base in zip(ours, raw, strict=True)]
    return {
        "streams": streams,
        "raw": median(raw),
        "ours": median(ours),
        "speed_ratio": round(statistics.median(pairs), 3),
        "cpu_ratio": round(statistics.median(cpu), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [trio.run(measure, options.model, streams, options.tokens, options.rounds) for streams in STREAMS]
    if options.json:
        print(json.dumps(results))
        return
    print("streams   raw tok/s  ours tok/s  ratio   raw cpu ms/tok  ours   ratio   first token raw / ours ms")
    for one in results:
        raw, ours = one["raw"], one["ours"]
        print(
            f"{one['streams']:7}   {raw['tokens_per_s']:9}  {ours['tokens_per_s']:10}  {one['speed_ratio']:5}   "
            f"{raw['cpu_ms_per_token']:14}  {ours['cpu_ms_per_token']:5}  {one['cpu_ratio']:5}   "
            f"{raw['first_token_ms']:.1f} / {ours['first_token_ms']:.1f}"
        )


if __name__ == "__main__":
    main()
