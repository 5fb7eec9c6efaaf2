"""Which engine serves a model: the operator's word, or what the model's form suggests."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ProviderConfig
from ..errors import ConfigError
from ..types import Secret
from .console import Console

if TYPE_CHECKING:
    from ..ports import Engine


def chosen(provider: ProviderConfig, path: Path) -> str:
    """The engine's name. Raises `ConfigError` when it cannot load such a model."""
    is_folder = path.is_dir()
    name = provider.engine
    if name == "auto":
        name = "upstream" if provider.upstream_url else "exllamav3" if is_folder else "llama.cpp"
    if (name == "llama.cpp") == is_folder:
        wanted = "a GGUF file" if name == "llama.cpp" else "a model folder (config.json, tokenizer.json, weights)"
        raise ConfigError(f"{name} wants {wanted}, and {path} is none", advice="Choose another --engine, or model.")
    if name == "upstream" and not provider.upstream_url:
        raise ConfigError("no server was named", advice="Pass --upstream http://127.0.0.1:PORT.")
    return name


def open_engine(provider: ProviderConfig, path: Path, console: Console) -> AbstractAsyncContextManager[Engine]:
    """Load the model. Libraries are imported only for the engine that is wanted."""
    name = chosen(provider, path)
    context = provider.context_tokens
    if name == "llama.cpp":
        from ..adapters.engines.llamacpp import open_llamacpp_engine

        return open_llamacpp_engine(
            path,
            slots=provider.slots,
            context_tokens=context,
            threads=provider.threads,
            progress=console.progress,
        )
    if name == "upstream":
        from ..adapters.engines.upstream import open_upstream_engine

        return open_upstream_engine(
            provider.upstream_url or "",
            path,
            slots=provider.slots,
            model=provider.upstream_model,
            key=_key(provider.upstream_key_path),
            context_tokens=context,
            progress=console.progress,
        )
    from ..adapters.engines import exllama_v2, exllama_v3

    module = exllama_v2 if name == "exllamav2" else exllama_v3
    opened: AbstractAsyncContextManager[Engine] = module.open_exllama_engine(
        path, slots=provider.slots, context_tokens=context, progress=console.progress
    )
    return opened


def _key(path: str | None) -> Secret | None:
    if path is None:
        return None
    try:
        data = Path(path).expanduser().read_bytes()[:4_096]
    except OSError as error:
        raise ConfigError(f"cannot read the key in {path}: {error.strerror}") from error
    return Secret(data.strip())
