"""A model folder as the hub's libraries write it: its chat template and what must be known before loading.

Templates are programs that came with the model. They run in Jinja's immutable sandbox, which bars attributes and
writes; a template that loops for long is bounded by `RENDERED_CHARS_MAX` only, so a model's files are trusted as its
weights are: by the digest of the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final, NoReturn

from ...errors import ConfigError, InvalidRequest, ModelFileError

FILE_BYTES_MAX: Final = 64 * 1024 * 1024  # tokenizer_config.json of a large vocabulary has some 10 MB
TEMPLATE_CHARS_MAX: Final = 256 * 1024
RENDERED_CHARS_MAX: Final = 16 * 1024 * 1024
_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class HfFolder:
    """What the folder's JSON files say."""

    path: Path
    template: str = field(repr=False)  # "" if the model has none
    tokens: Mapping[str, str]  # bos_token, eos_token … as text
    context_tokens: int  # that it was trained for; 0 if it does not say

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.name


def read_folder(path: Path) -> HfFolder:
    """Read it. Raises `ModelFileError`."""
    if not path.is_dir():
        raise ModelFileError(
            f"{path} is not a folder", advice="Give the folder that holds config.json and the weights."
        )
    if not (path / "config.json").is_file():
        raise ModelFileError(f"{path} is a folder without a config.json", advice="Get the whole model folder.")
    config = _json(path / "config.json", required=True)
    tokenizer = _json(path / "tokenizer_config.json", required=False)
    if not (path / "tokenizer.json").is_file():
        raise ModelFileError(f"{path} has no tokenizer.json", advice="Get the whole model folder.")
    inner = config.get("text_config")
    lengths = [part.get("max_position_embeddings") for part in (config, inner if isinstance(inner, dict) else {})]
    return HfFolder(
        path=path,
        template=_template(path, tokenizer.get("chat_template")),
        tokens={
            key: text
            for key in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (text := _token(tokenizer.get(key)))
        },
        context_tokens=next((one for one in lengths if isinstance(one, int) and one > 0), 0),
    )


def _template(path: Path, given: object) -> str:
    own = path / "chat_template.jinja"
    if own.is_file():
        text = _read(own).decode("utf-8", "replace")
    elif isinstance(given, str):
        text = given
    elif isinstance(given, list):  # several, by name
        pairs = ((one.get("name"), one.get("template")) for one in given if isinstance(one, dict))
        named = {name: one for name, one in pairs if isinstance(name, str) and isinstance(one, str)}
        text = named.get("tool_use") or named.get("default") or ""
    else:
        text = ""
    if len(text) > TEMPLATE_CHARS_MAX:
        raise ModelFileError(f"the chat template in {path} is longer than {TEMPLATE_CHARS_MAX} characters")
    return text


def _token(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ModelFileError(f"{path} is larger than {FILE_BYTES_MAX} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error


def _json(path: Path, *, required: bool) -> dict[str, Any]:
    if not required and not path.exists():
        return {}
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object")
    return value


class ChatTemplate:
    """Renders messages as the model was trained to see them."""

    def __init__(self, folder: HfFolder) -> None:
        """Raises `ConfigError` (Jinja not installed), `ModelFileError` (the template is none)."""
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise ConfigError("chat templates need jinja2", advice="Install cocoon-network[exllamav3].") from error
        self._error = TemplateError
        self._tokens = dict(folder.tokens)
        self._template = None
        if not folder.template:
            return
        world = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        world.globals["raise_exception"] = _raise
        world.globals["strftime_now"] = lambda form: date.today().strftime(form)
        world.filters["tojson"] = _to_json
        try:
            self._template = world.from_string(folder.template)
        except TemplateError as error:
            raise ModelFileError(f"the chat template of {folder.name} cannot be read: {str(error)[:200]}") from error

    def render(self, body: Mapping[str, Any]) -> str:
        """`body` as `fields.chat_body` gives it, with the opening of the answer. Raises `InvalidRequest`."""
        if self._template is None:
            raise InvalidRequest("this model has no chat template; use completions", param="messages")
        try:
            text = self._template.render(
                messages=body["messages"], tools=body.get("tools"), add_generation_prompt=True, **self._tokens
            )
        except self._error as error:
            raise InvalidRequest(f"the chat template refuses: {str(error)[:200]}", param="messages") from error
        except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
            # A template is somebody's program; what it trips over is in the messages it was given.
            raise InvalidRequest("the chat template cannot render these messages", param="messages") from error
        if len(text) > RENDERED_CHARS_MAX:
            raise InvalidRequest("the rendered prompt is too long", param="messages", kind="context_length_exceeded")
        return text


def _raise(message: object = "") -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(str(message))


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    """Without Jinja's escaping for web pages, which models have never seen."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
