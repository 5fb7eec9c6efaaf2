"""Turns what `train.py` wrote into a GGUF file for llama.cpp.

    python to_gguf.py build cocoon-tiny-q8_0.gguf [q8_0|f16]

Two traps: llama.cpp wants the rows of q and k interleaved where Hugging Face keeps halves, and the pre-tokenizer must
be called `gpt-2` or numbers split differently than in training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def convert(source: Path, target: Path, kind: str) -> None:
    config = json.loads((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    writer = gguf.GGUFWriter(target, "llama")
    _describe(writer, config, kind)
    _tokenizer(writer, json.loads((source / "tokenizer.json").read_text()))
    writer.add_chat_template((Path(__file__).parent / "chat_template.jinja").read_text())
    _put(writer, "token_embd.weight", weights["model.embed_tokens.weight"], kind)
    _put(writer, "output_norm.weight", weights["model.norm.weight"], kind)
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in NAMES.items():
            value = weights[f"model.layers.{layer}.{theirs}.weight"]
            if theirs.endswith("q_proj"):
                value = _interleave(value, config["num_attention_heads"])
            if theirs.endswith("k_proj"):
                value = _interleave(value, config["num_key_value_heads"])
            _put(writer, f"blk.{layer}.{ours}.weight", value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, config: dict, kind: str) -> None:
    writer.add_name("cocoon-tiny")
    writer.add_description("A test model, for trying the software, not for answers")
    writer.add_license("Apache-2.0")
    writer.add_file_type(TYPES[kind])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])


def _tokenizer(writer: gguf.GGUFWriter, tokenizer: dict) -> None:
    tokens = [token for token, _ in sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if one in special else gguf.TokenType.NORMAL for one in tokens])
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)


def _interleave(value: np.ndarray, heads: int) -> np.ndarray:
    return value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _put(writer: gguf.GGUFWriter, name: str, value: np.ndarray, kind: str) -> None:
    if value.ndim == 1:
        writer.add_tensor(name, value.astype(np.float32))
    elif kind == "f16" or value.shape[-1] % 32:
        writer.add_tensor(name, value.astype(np.float16))
    else:
        packed = gguf.quantize(value.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "q8_0")
