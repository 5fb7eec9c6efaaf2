"""Logs say what happened and never what was said: canaries go in by every door, and none comes out."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from cocoon.errors import NoProvider
from cocoon.logs import configure
from cocoon.types import PrivateText, Secret

CANARY = "canary-7f3a-what-is-my-diagnosis"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure(level="debug", json_lines=True, stream=stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def test_an_event_is_one_json_line_with_its_fields(lines: io.StringIO) -> None:
    logging.getLogger("cocoon.gateway").info("request.finished", extra={"tokens": 12, "provider": "12D3KooWx"})
    record = json.loads(lines.getvalue())
    assert record["event"] == "request.finished"
    assert (record["tokens"], record["provider"], record["level"]) == (12, "12D3KooWx", "info")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": CANARY},
        {"messages": [{"role": "user", "content": CANARY}]},
        {"details": {"nested": {"content": CANARY}}},
        {"harmless": PrivateText(CANARY)},
        {"harmless": Secret(CANARY.encode())},
        {"harmless": [PrivateText(CANARY)]},
        {"harmless": CANARY.encode()},
        {"harmless": ValueError(CANARY)},
        {"Authorization": f"Bearer {CANARY}"},
        {"token_ids": [CANARY]},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_no_field_carries_content_out(lines: io.StringIO, fields: dict[str, object]) -> None:
    logging.getLogger("cocoon.x").warning("something.happened", extra=fields)
    assert "something.happened" in lines.getvalue()
    assert CANARY not in lines.getvalue()


def test_a_foreign_exception_is_named_and_placed_but_not_quoted(lines: io.StringIO) -> None:
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("cocoon.x").exception("task.failed")
    assert CANARY not in lines.getvalue()
    record = json.loads(lines.getvalue())
    assert record["error"] == "ValueError"
    assert record["error_at"].startswith("test_logs.py:")


def test_our_own_error_keeps_its_message(lines: io.StringIO) -> None:
    try:
        raise NoProvider("nobody serves x")
    except NoProvider:
        logging.getLogger("cocoon.x").exception("task.failed")
    assert json.loads(lines.getvalue())["error"] == "no_provider: nobody serves x"


def test_foreign_libraries_are_heard_without_their_arguments(lines: io.StringIO) -> None:
    logging.getLogger("somelib").warning("got %s", CANARY)
    logging.getLogger("somelib").warning(f"got {CANARY}")
    assert lines.getvalue().count("\n") == 2
    assert CANARY not in lines.getvalue()


def test_a_person_sees_one_readable_line() -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    try:
        configure(level="info", json_lines=False, stream=stream)
        logging.getLogger("cocoon.node").info("offer.published", extra={"seq": 3})
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert "offer.published" in stream.getvalue()
    assert "seq=3" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1
