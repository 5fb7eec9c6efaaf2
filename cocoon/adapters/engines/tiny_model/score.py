"""Exact-match score of a GGUF on fresh questions, through the engine that serves it.

    python cocoon/adapters/engines/tiny_model/score.py cocoon-tiny-q8_0.gguf

Most facts occur in training, so this measures whether the model learned its tables, not whether it generalises; sums,
counting and copying are mostly unseen combinations.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from random import Random

import trio

sys.path.insert(0, str(Path(__file__).parent))
import corpus

from cocoon.adapters.engines.llamacpp import open_llamacpp_engine
from cocoon.ports.engine import Delta, GenerationRequest

PER_KIND = 40


async def main(path: Path) -> None:
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    wrong: dict[str, tuple[str, str, str]] = {}
    async with open_llamacpp_engine(path, slots=4) as engine:
        for kind, question, answer in corpus.questions(Random(20261122), PER_KIND):
            body = {"messages": [{"role": "user", "content": question}], "max_tokens": 120, "temperature": 0.0}
            text = ""
            async with engine.generate(GenerationRequest(endpoint="chat.completions", body=body)) as events:
                async for event in events:
                    text += event.text if isinstance(event, Delta) else ""
            asked[kind] += 1
            right[kind] += text == answer
            if text != answer:
                wrong[kind] = (question, answer, text)
    for kind in asked:
        example = "   e.g. {} -> {!r}, not {!r}".format(*(wrong[kind][i] for i in (0, 2, 1))) if kind in wrong else ""
        print(f"{kind:14} {right[kind]:3}/{asked[kind]}{example}")
    print(f"{'all':14} {right.total():3}/{asked.total()}  {100 * right.total() / asked.total():.1f} %")


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
