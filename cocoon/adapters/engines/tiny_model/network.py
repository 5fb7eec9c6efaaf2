"""The network of `cocoon-tiny`: Llama's architecture, small, in plain torch.

RoPE is in the half-split convention of Hugging Face, so that `train.py` writes an ordinary checkpoint directory;
`to_gguf.py` turns the rows around for llama.cpp.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the network."""

    vocabulary: int = 768
    width: int = 256
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512
    context: int = 2048
    rope_base: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        return self.width // self.heads

    def config(self) -> dict:
        """`config.json` of a Hugging Face checkpoint."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.rope_base,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "torch_dtype": "float16",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }


class Block(nn.Module):
    """Attention and feed-forward, each with its norm before it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, kv = shape.width, shape.kv_heads * shape.head
        self.shape = shape
        self.input_layernorm = nn.RMSNorm(width, eps=shape.epsilon)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=shape.epsilon)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv, bias=False)
        self.v_proj = nn.Linear(width, kv, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.gate_proj = nn.Linear(width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        shape = self.shape
        h = self.input_layernorm(x)
        q = self.q_proj(h).view(batch, length, shape.heads, shape.head).transpose(1, 2)
        k = self.k_proj(h).view(batch, length, shape.kv_heads, shape.head).transpose(1, 2)
        v = self.v_proj(h).view(batch, length, shape.kv_heads, shape.head).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        repeat = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(attended.transpose(1, 2).reshape(batch, length, shape.width))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


def _rotate(z: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = z.chunk(2, -1)
    return z * cos.to(z.dtype) + torch.cat((-second, first), -1) * sin.to(z.dtype)


class Network(nn.Module):
    """Token ids in, logits out; input and output embeddings are tied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                tied = parameter.shape[0] == shape.vocabulary
                nn.init.normal_(parameter, 0, 0.02 if tied else 0.7 * parameter.shape[1] ** -0.5)
        frequencies = shape.rope_base ** (-torch.arange(0, shape.head, 2) / shape.head)
        angles = torch.outer(torch.arange(shape.context).float(), frequencies)
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin(), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """Weights under Hugging Face's names, in half precision."""
        out = {"model.embed_tokens.weight": self.embed_tokens.weight, "model.norm.weight": self.norm.weight}
        for i, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                short = name.removesuffix(".weight")
                group = "self_attn." if short in ("q_proj", "k_proj", "v_proj", "o_proj") else ""
                group = "mlp." if short in ("gate_proj", "up_proj", "down_proj") else group
                out[f"model.layers.{i}.{group}{short}.weight"] = parameter
        return {name: value.detach().half().contiguous() for name, value in out.items()}


def describe(shape: Shape) -> dict:
    """The shape as plain values, for logs and manifests."""
    return asdict(shape)
