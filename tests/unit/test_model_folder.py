"""Models that are folders: one manifest for the same files, another for any other file, and a record that notices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from cocoon.adapters.model_manifest import model_id
from cocoon.adapters.models import LocatedModel, ModelStore
from cocoon.cli.engines import chosen
from cocoon.config import ProviderConfig
from cocoon.errors import ConfigError, ModelFileError
from tests.fakes import exllama


def folder(path: Path, weights: bytes = b"weights") -> Path:
    path.mkdir(parents=True)
    exllama.write_folder(path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4_096,
        "quantization_config": {"quant_method": "exl3", "bits": 4.0},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "model-00001-of-00002.safetensors").write_bytes(weights)
    (path / "model-00002-of-00002.safetensors").write_bytes(b"more")
    (path / "notes.md").write_text("mine")
    return path


def locate(store: Path, wanted: Path) -> LocatedModel:
    return trio.run(ModelStore(store).locate, str(wanted))


def test_the_same_files_are_the_same_model_wherever_they_lie(tmp_path: Path) -> None:
    first = locate(tmp_path / "s", folder(tmp_path / "a" / "Llama-3 exl3"))
    (tmp_path / "a" / "Llama-3 exl3" / "notes.md").write_text("changed")
    again = locate(tmp_path / "s", tmp_path / "a" / "Llama-3 exl3")
    second = locate(tmp_path / "t", folder(tmp_path / "b" / "other"))
    assert first.model.digest == second.model.digest == model_id(first.manifest)
    assert (first.first_use, again.first_use) == (True, False)
    assert first.model.name == "Llama-3-exl3"
    assert first.manifest.architecture == "LlamaForCausalLM"
    assert first.manifest.quantisation == "exl3 4.0"
    assert first.manifest.context_tokens == 4_096


@pytest.mark.parametrize(
    "file", ["model-00002-of-00002.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"]
)
def test_any_other_byte_is_another_model_and_is_noticed(tmp_path: Path, file: str) -> None:
    place = folder(tmp_path / "m")
    before = locate(tmp_path / "s", place)
    changed = (place / file).read_text().replace("{", "{ ", 1) if file.endswith(".json") else "other"
    (place / file).write_text(changed)
    with pytest.raises(ModelFileError, match="not what they were"):
        locate(tmp_path / "s", place)
    assert locate(tmp_path / "t", place).model.digest != before.model.digest


def test_a_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(ModelFileError, match=r"without a config\.json"):
        locate(tmp_path / "s", tmp_path / "m")
    exllama.write_folder(tmp_path / "m")
    with pytest.raises(ModelFileError, match=r"no \.safetensors"):
        locate(tmp_path / "s", tmp_path / "m")


def test_the_engine_follows_the_models_form(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"")
    place = folder(tmp_path / "m")
    assert chosen(ProviderConfig(), file) == "llama.cpp"
    assert chosen(ProviderConfig(), place) == "exllamav3"
    assert chosen(ProviderConfig(upstream_url="http://127.0.0.1:1"), place) == "upstream"
    assert chosen(ProviderConfig(engine="exllamav2"), place) == "exllamav2"
    for wrong in (ProviderConfig(engine="llama.cpp"), ProviderConfig(engine="upstream")):
        with pytest.raises(ConfigError):
            chosen(wrong, place)
    with pytest.raises(ConfigError, match="wants a model folder"):
        chosen(ProviderConfig(engine="exllamav3"), file)
