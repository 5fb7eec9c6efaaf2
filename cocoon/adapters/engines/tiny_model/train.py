"""Trains `cocoon-tiny`: a fixed number of steps from a fixed seed, on one CPU core.

    python train.py --out build --steps 4000

The run is a function of (seed, steps, torch version, CPU kernels): batch `i` is drawn from `Random(seed, i)` and
nothing depends on the clock. It saves its whole state every `--save-every` steps and goes on from there when it is
started again. `build/` ends as an ordinary Hugging Face directory (config.json, model.safetensors, tokenizer.json),
from which `to_gguf.py` makes the file that is shipped.

Loss counts fully on what the assistant says and a little on the rest: the questions are random by design, and a
network of two million weights has none to spare for guessing them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from random import Random

import corpus
import torch
from network import Network, Shape
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F

TORCH = "2.13.0"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATS = 60_000  # distinct chats; batches draw from them
PROMPT_WEIGHT = 0.1


def main() -> None:
    options = _options()
    if not torch.__version__.startswith(TORCH):
        print(f"warning: written for torch {TORCH}, this is {torch.__version__}: the weights will differ")
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)

    random = Random(options.seed)
    chats = [corpus.chat(random) for _ in range(options.chats)]
    tokenizer = make_tokenizer(chats[:8000])
    rows = [encode(tokenizer, chat) for chat in chats]
    shape = Shape(vocabulary=tokenizer.get_vocab_size())
    network = Network(shape)
    print("parameters", sum(p.numel() for p in network.parameters()), "tokens", sum(len(ids) for ids, _ in rows))
    run(network, rows, options, out)

    tokenizer.save(str(out / "tokenizer.json"))
    save_file(network.checkpoint(), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(shape.config(), indent=1))
    template = (Path(__file__).parent / "chat_template.jinja").read_text()
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": SPECIAL[0],
                "eos_token": SPECIAL[2],
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": template,
            },
            indent=1,
        )
    )


def make_tokenizer(chats: list[list[corpus.Message]]) -> Tokenizer:
    """Byte-level BPE of 768 tokens whose merges never join two digits, so that sums line up.

    The digits are kept apart while the merges are learned; afterwards the pre-tokenizer is GPT-2's own, which is
    what llama.cpp runs under the name `gpt-2`, and gives the same tokens because no merge crosses a digit.
    """
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((corpus.render(chat) for chat in chats), trainer)
    tokenizer.pre_tokenizer = byte_level
    return tokenizer


def encode(tokenizer: Tokenizer, chat: list[corpus.Message]) -> tuple[list[int], list[float]]:
    """Ids of a chat, and the weight of each in the loss."""
    ids: list[int] = []
    weights: list[float] = []

    def add(text: str, weight: float) -> None:
        new = tokenizer.encode(text, add_special_tokens=False).ids
        ids.extend(new)
        weights.extend([weight] * len(new))

    for role, text in chat:
        add(f"<|im_start|>{role}\n", PROMPT_WEIGHT)
        add(f"{text}<|im_end|>", 1.0 if role == "assistant" else PROMPT_WEIGHT)
        add("\n", PROMPT_WEIGHT)
    add(corpus.END, PROMPT_WEIGHT)
    return ids, weights


def batch(
    rows: list[tuple[list[int], list[float]]], options: argparse.Namespace, step: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whole chats, one after another, cut at the row's length. The step alone decides which."""
    random = Random(f"{options.seed}/{step}")
    ids = torch.zeros(options.batch, options.length + 1, dtype=torch.long)
    weights = torch.zeros(options.batch, options.length + 1)
    for row in range(options.batch):
        used = 0
        while used <= options.length:
            new_ids, new_weights = random.choice(rows)
            end = min(used + len(new_ids), options.length + 1)
            ids[row, used:end] = torch.tensor(new_ids[: end - used])
            weights[row, used:end] = torch.tensor(new_weights[: end - used])
            used = end
    return ids[:, :-1], ids[:, 1:], weights[:, 1:]


def run(network: Network, rows: list[tuple[list[int], list[float]]], options: argparse.Namespace, out: Path) -> None:
    """The training loop, from the last saved step on."""
    matrices = [p for name, p in network.named_parameters() if p.dim() == 2 and not name.startswith("embed")]
    others = [p for name, p in network.named_parameters() if p.dim() != 2 or name.startswith("embed")]
    adam = torch.optim.AdamW(others, lr=options.rate, betas=(0.9, 0.95), weight_decay=0.0)
    muon = torch.optim.Muon(matrices, lr=options.rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    state_file, begun = out / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        adam.load_state_dict(state["adam"])
        muon.load_state_dict(state["muon"])
        begun = state["step"]
        print("going on from step", begun)
    stop = min(options.steps, options.stop_at or options.steps)
    clock, shown = time.monotonic(), begun
    for step in range(begun, stop):
        for optimizer in (adam, muon):
            for group in optimizer.param_groups:
                group["lr"] = options.rate * schedule(step, options.steps)
        ids, targets, weights = batch(rows, options, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            logits = network(ids)
        each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        loss = (each * weights.flatten()).sum() / weights.sum()
        adam.zero_grad(set_to_none=True)
        muon.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        muon.step()
        done = step + 1
        if done % 25 == 0:
            speed = (done - shown) * ids.numel() / (time.monotonic() - clock)
            print(f"step {done} loss {loss.item():.3f} tokens/s {speed:.0f}", flush=True)
            clock, shown = time.monotonic(), done
        if done % options.save_every == 0 or done == stop:
            save = {"network": network.state_dict(), "adam": adam.state_dict(), "muon": muon.state_dict(), "step": done}
            torch.save(save, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)


def schedule(step: int, steps: int) -> float:
    """Warm up over 40 steps, hold, then fall to a fiftieth along a cosine over the last 70 %."""
    done = step / steps
    fall = 1.0 if done < 0.3 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - 0.3) / 0.7))
    return min(1.0, (step + 1) / 40) * fall


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=4000, help="the schedule's length")
    parser.add_argument("--stop-at", type=int, default=0, help="stop early, keeping the schedule")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--chats", type=int, default=CHATS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=384)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
