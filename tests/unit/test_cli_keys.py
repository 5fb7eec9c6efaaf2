"""The gateway's key file: private, made once, refused when others can read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cocoon.cli.keys import api_key
from cocoon.errors import ConfigError


def test_a_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    key = api_key(path)
    assert len(key.reveal()) > 40
    assert api_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert key.reveal().decode() not in repr(key)


def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    api_key(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="read by others") as refused:
        api_key(path)
    assert "chmod 600" in refused.value.advice


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    path.write_bytes(b"x" * 5_000)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="does not hold a key"):
        api_key(path)


def test_a_missing_home_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        api_key(tmp_path / "nowhere" / "gateway.key")
