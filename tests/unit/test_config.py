"""Settings: what a person may write, and what the answer is to a slip."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from cocoon.config import Config, Home, override, parse_config
from cocoon.errors import ConfigError


def test_an_empty_file_is_the_defaults() -> None:
    assert parse_config("") == Config()


def test_every_section_can_be_set() -> None:
    config = parse_config(
        """
        network = "testnet"
        [peer]
        bootstrap = ["/ip4/192.0.2.1/tcp/4642/p2p/12D3KooW"]
        [client]
        trust = "open"
        [gateway]
        port = 9000
        spend_day_max_ton = "2.5"
        [provider]
        model = "cocoon-tiny"
        price_output_ton = "0.4"
        """
    )
    assert config.network == "testnet"
    assert config.gateway.port == 9000
    assert config.provider.price_output_ton == "0.4"
    assert config.listen == ("/ip4/0.0.0.0/tcp/4642",)


def test_the_devnet_listens_on_loopback_only() -> None:
    assert Config().listen == ("/ip4/127.0.0.1/tcp/0",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('netwrok = "devnet"', "network"),
        ("[gateway]\nprot = 1", "gateway.port"),
        ("[gateway]\nport = 70000", "range"),
        ('[gateway]\nport = "8642"', "port"),
        ("[provider]\nprice_output_ton = 0.1", "price_output_ton"),
        ('[provider]\nprice_output_ton = "ten"', "price_output_ton"),
        ("[provider]\nslots = 0", "slots"),
        ('network = "mainet"', "mainet"),
        ("network = ", "TOML"),
    ],
)
def test_a_slip_is_refused_and_named(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(text)
    assert told in refused.value.diagnostics()
    assert refused.value.exit_code == 2


def test_the_command_line_goes_over_the_file_and_none_changes_nothing() -> None:
    config = parse_config('[gateway]\nport = 9000\nhost = "127.0.0.2"')
    changed = override(config, {"gateway.port": 9001, "gateway.host": None, "peer.bootstrap": ["a"]})
    assert (changed.gateway.port, changed.gateway.host, changed.peer.bootstrap) == (9001, "127.0.0.2", ("a",))


def test_an_argument_is_checked_like_the_file() -> None:
    with pytest.raises(ConfigError, match="price_input_ton"):
        override(Config(), {"provider.price_input_ton": "-1"})


def test_the_home_is_private_and_a_missing_config_is_fine(tmp_path: Path) -> None:
    home = Home.locate(tmp_path / "home").create()
    assert home.path.stat().st_mode & 0o077 == 0
    assert home.read_config() == Config()


def test_a_config_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        Home.locate(tmp_path).read_config()


def test_home_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COCOON_HOME", str(tmp_path / "elsewhere"))
    assert Home.locate().path == tmp_path / "elsewhere"


def test_the_page_on_settings_names_every_key_and_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "getting-started.md").read_text()
    (block,) = [text for text in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL) if "[gateway]" in text]
    assert parse_config(block) == Config(), "the page shows the defaults"
    section = ""
    shown = set()
    for line in block.splitlines():
        if match := re.match(r"\[(\w+)\]", line):
            section = match[1] + "."
        elif match := re.match(r"#? ?(\w+) = ", line):
            shown.add(section + match[1])
    known = {"network"}
    for field in msgspec.structs.fields(Config):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            known |= {f"{field.name}.{inner.name}" for inner in msgspec.structs.fields(field.type)}
    assert shown == known
