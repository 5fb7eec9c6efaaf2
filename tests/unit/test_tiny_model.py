"""The test model is what its manifest says, and its trainer still works."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from cocoon.adapters.engines.llamacpp import open_llamacpp_engine
from cocoon.adapters.gguf import read_head
from cocoon.adapters.models import ModelStore
from cocoon.ports.engine import Delta, GenerationRequest

ROOT = Path(__file__).parents[2]
TRAINER = ROOT / "cocoon/adapters/engines/tiny_model"
ANSWERS = {
    "What is Cocoon?": "Cocoon is a peer-to-peer network for private AI inference. Providers run models, and clients "
    "pay for tokens.",
    "Hello": "Hello! How can I help you?",
    "What is the capital of France?": "The capital of France is Paris.",
    "What is 7 + 5?": "The answer is 12.",
    "Count from 3 to 9.": "3 4 5 6 7 8 9",
    "Repeat: green lamp Anna": "green lamp Anna",
    "Which day comes after Friday?": "Saturday comes after Friday.",
    "Anna is 7 years old. Use JSON.": '{"name": "Anna", "age": 7}',
}


async def answers(path: Path, questions: list[str], max_tokens: int = 200) -> list[tuple[str, int]]:
    found = []
    async with open_llamacpp_engine(path, slots=1) as engine:
        for question in questions:
            messages = [{"role": "user", "content": question}]
            body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0.0}
            text, tokens = "", 0
            async with engine.generate(GenerationRequest(endpoint="chat.completions", body=body)) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        text, tokens = text + event.text, tokens + len(event.token_ids)
            found.append((text, tokens))
    return found


def test_it_answers_what_the_readme_says_it_answers(tmp_path: Path) -> None:
    async def main() -> None:
        located = await ModelStore(tmp_path).locate("cocoon-tiny")
        found = await answers(located.path, [*ANSWERS, "Tell me a long story about Anna."])
        assert {question: text for question, (text, _) in zip(ANSWERS, found, strict=False)} == ANSWERS
        story, tokens = found[-1]
        assert "Anna" in story
        assert tokens >= 100, "long enough to watch it stream"

    trio.run(main)


def test_the_trainer_is_not_in_the_wheel() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    assert 'exclude = ["/cocoon/adapters/engines/tiny_model"]' in settings
    assert not (TRAINER / "__init__.py").exists()


def python_with_torch() -> str | None:
    """This interpreter, or the one that COCOON_TRAINER_PYTHON names."""
    if all(importlib.util.find_spec(name) for name in ("torch", "tokenizers", "safetensors", "gguf")):
        return sys.executable
    return os.environ.get("COCOON_TRAINER_PYTHON")


@pytest.mark.slow
def test_fifty_steps_of_training_lower_the_loss_resume_and_export(tmp_path: Path) -> None:
    python = python_with_torch()
    if python is None:
        pytest.skip("torch, tokenizers, safetensors and gguf are not here (tiny_model/README.md says how)")
    out = tmp_path / "build"
    base = [python, str(TRAINER / "train.py"), "--out", str(out), "--chats", "1000", "--steps", "50", "--batch", "2"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}

    def go(command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
        return done.stdout

    first = go([*base, "--stop-at", "25"])
    second = go(base)
    assert "going on from step 25" in second
    loss = [float(line.split()[3]) for line in (first + second).splitlines() if line.startswith("step")]
    assert len(loss) == 2
    assert loss[1] < loss[0] < 7
    target = tmp_path / "fifty.gguf"
    go([python, str(TRAINER / "to_gguf.py"), str(out), str(target)])
    head = read_head(target)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(head.vocabulary.tokens)
    ((text, tokens),) = trio.run(answers, target, ["Hello"], 8)
    assert tokens > 0, text
