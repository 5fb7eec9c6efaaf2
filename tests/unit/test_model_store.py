"""Models are found, downloaded to the end or not at all, and refused when they are not what they were."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from cocoon.adapters import model_download
from cocoon.adapters.gguf import read_head
from cocoon.adapters.model_manifest import manifest_bytes, manifest_of, model_id, read_manifest
from cocoon.adapters.models import SHIPPED, HubFile, LocatedModel, ModelStore, shipped_models
from cocoon.errors import CocoonError, ConfigError, ModelFileError, ModelNotFound, Unavailable

MODEL = SHIPPED / "cocoon-tiny" / "cocoon-tiny-q8_0.gguf"
WHOLE = MODEL.read_bytes()
DIGEST = hashlib.sha256(WHOLE).hexdigest()
WANTED = "hf:acme/tiny/tiny-q8.gguf@abc123"


class Hub:
    """A loopback server with one file, and faults on request."""

    def __init__(self) -> None:
        self.content = WHOLE
        self.tag = '"v1"'
        self.announced: str | None = None
        self.break_after: int | None = None  # bytes of a body, then the connection drops
        self.pause_s = 0.0  # per 64 kB
        self.status: int | None = None
        self.ranges: list[str | None] = []
        self.agents: list[str | None] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.serve(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        if "/resolve/" in request.path and not request.path.startswith("/cdn"):
            if self.status is not None:
                request.send_error(self.status)
                return
            assert request.path == "/acme/tiny/resolve/abc123/tiny-q8.gguf"
            request.send_response(302)
            request.send_header("Location", "/cdn" + request.path)
            if self.announced:
                request.send_header("X-Linked-Etag", f'"{self.announced}"')
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        begin = 0
        if asked and request.headers.get("If-Range") == self.tag:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {begin}-{len(self.content) - 1}/{len(self.content)}")
        else:
            request.send_response(200)
        body = self.content[begin:]
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", self.tag)
        request.end_headers()
        cut = len(body) if self.break_after is None else self.break_after
        try:
            for at in range(0, min(cut, len(body)), 65536):
                request.wfile.write(body[at : min(at + 65536, cut)])
                time.sleep(self.pause_s)
        except OSError:
            pass
        if cut < len(body):
            request.connection.close()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()


def locate(store: ModelStore, wanted: str, said: list[str] | None = None) -> LocatedModel:
    return trio.run(store.locate, wanted, None if said is None else said.append)


def failure(store: ModelStore, wanted: str) -> CocoonError:
    with pytest.raises(CocoonError) as caught:
        locate(store, wanted)
    return caught.value


# --- shipped, and by path ------------------------------------------------------------------------------------


def test_the_shipped_model_is_found_by_name_and_labelled_a_test_model(tmp_path: Path) -> None:
    found = locate(ModelStore(tmp_path), "cocoon-tiny")
    assert found.path == MODEL
    assert found.test_model
    assert "test model" in found.label
    assert found.model in shipped_models()
    assert (SHIPPED / "cocoon-tiny" / "manifest.json").is_file()


def test_a_model_id_follows_from_the_file_alone(tmp_path: Path) -> None:
    copy = tmp_path / "renamed.gguf"
    shutil.copyfile(MODEL, copy)
    found = locate(ModelStore(tmp_path / "store"), str(copy))
    assert found.model.digest == shipped_models()[0].digest
    assert found.model.name == "renamed"
    data = manifest_bytes(found.manifest)
    assert hashlib.sha256(data).digest() == found.model.digest == model_id(found.manifest)
    assert read_manifest(data, found.model.digest) == found.manifest
    with pytest.raises(ModelFileError):
        read_manifest(data, bytes(32))
    assert manifest_of(read_head(copy), bytes(32)) != found.manifest


def test_a_wrong_name_gets_near_matches(tmp_path: Path) -> None:
    error = failure(ModelStore(tmp_path), "cocoon-tyni")
    assert isinstance(error, ModelNotFound)
    assert "Did you mean cocoon-tiny?" in error.diagnostics()
    assert "path to a .gguf" in failure(ModelStore(tmp_path), "gpt-9").diagnostics()


def test_missing_files_folders_and_other_files_get_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "note.gguf").write_text("hello, this is no model")
    store = ModelStore(tmp_path / "store")
    for wanted, word in (
        (str(tmp_path / "none.gguf"), "no file"),
        (str(tmp_path), "folder"),
        (str(tmp_path / "note.gguf"), "does not begin with GGUF"),
    ):
        error = failure(store, wanted)
        assert isinstance(error, ModelFileError)
        assert word in str(error)
        assert wanted in str(error)
        assert error.advice


def test_a_file_that_changed_is_refused_with_both_hashes_and_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(WHOLE)
    store = ModelStore(tmp_path / "store")
    assert locate(store, str(path)).first_use
    assert not locate(store, str(path)).first_use
    changed = bytearray(WHOLE)
    changed[-1] ^= 1
    path.write_bytes(changed)
    error = failure(store, str(path))
    assert isinstance(error, ModelFileError)
    for word in (str(path), DIGEST, hashlib.sha256(changed).hexdigest()):
        assert word in str(error)
    record = Path(error.advice.rsplit(" ", 1)[-1])
    assert record.is_file()
    record.unlink()
    assert locate(store, str(path)).first_use


def test_what_was_used_is_pinned_and_two_contents_of_one_name_are_both_kept(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/same.gguf").write_bytes(WHOLE)
    changed = bytearray(WHOLE)
    changed[-1] ^= 1
    (tmp_path / "b/same.gguf").write_bytes(changed)
    first, second = (locate(store, str(tmp_path / folder / "same.gguf")).model for folder in "ab")
    assert first.digest != second.digest
    assert {first, second} <= set(store.pinned())


def test_a_damaged_record_is_an_error_and_not_a_first_use(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(WHOLE)
    store = ModelStore(tmp_path / "store")
    locate(store, str(path))
    (record,) = (tmp_path / "store/records").iterdir()
    record.write_text("{")
    assert "record" in str(failure(store, str(path)))


# --- the hub ---------------------------------------------------------------------------------------------------


def test_a_download_arrives_whole_is_told_about_and_happens_once(tmp_path: Path, hub: Hub) -> None:
    hub.announced = DIGEST
    said: list[str] = []
    store = ModelStore(tmp_path, hub=hub.url)
    found = locate(store, WANTED, said)
    assert found.path.read_bytes() == WHOLE
    assert found.first_use
    assert found.model.name == "tiny-q8"
    assert any("100 %" in line for line in said)
    assert not locate(store, WANTED).first_use
    assert hub.ranges == [None]
    assert [path.name for path in found.path.parent.iterdir() if "part" in path.name] == []


def test_a_broken_connection_goes_on_where_it_stopped(tmp_path: Path, hub: Hub) -> None:
    hub.break_after = 700_000
    found = locate(ModelStore(tmp_path, hub=hub.url), WANTED)
    assert found.path.read_bytes() == WHOLE
    assert [value and int(value[6:-1]) for value in hub.ranges] == [None, 700_000, 1_400_000, 2_100_000]


def test_a_killed_download_goes_on_in_the_next_process(tmp_path: Path, hub: Hub) -> None:
    hub.pause_s = 0.1
    script = (
        "import sys, trio; from pathlib import Path; from cocoon.adapters.models import ModelStore; "
        "trio.run(ModelStore(Path(sys.argv[1]), hub=sys.argv[2]).locate, sys.argv[3])"
    )
    command = [sys.executable, "-c", script, str(tmp_path), hub.url, WANTED]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    part = tmp_path / "hub/acme/tiny/abc123/tiny-q8.gguf.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 200_000):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not part.with_name("tiny-q8.gguf").exists()
    kept = part.stat().st_size
    hub.pause_s = 0.0
    assert locate(ModelStore(tmp_path, hub=hub.url), WANTED).path.read_bytes() == WHOLE
    assert hub.ranges[-1] == f"bytes={kept}-"


def test_a_file_that_changed_on_the_hub_meanwhile_is_fetched_anew(tmp_path: Path, hub: Hub) -> None:
    hub.break_after = 100_000
    assert isinstance(failure(ModelStore(tmp_path, hub=hub.url), WANTED), Unavailable)
    changed = bytearray(WHOLE)
    changed[-1] ^= 1
    hub.content, hub.tag, hub.break_after = bytes(changed), '"v2"', None
    assert locate(ModelStore(tmp_path, hub=hub.url), WANTED).path.read_bytes() == changed


def test_a_content_that_is_not_what_the_hub_announced_is_refused_and_removed(tmp_path: Path, hub: Hub) -> None:
    hub.announced = "0" * 64
    error = failure(ModelStore(tmp_path, hub=hub.url), WANTED)
    assert isinstance(error, ModelFileError)
    assert DIGEST in str(error)
    hub.announced = DIGEST
    assert locate(ModelStore(tmp_path, hub=hub.url), WANTED).first_use


def test_a_page_instead_of_a_model_is_refused_and_removed(tmp_path: Path, hub: Hub) -> None:
    hub.content = b"<html>sign in</html>"
    store = ModelStore(tmp_path, hub=hub.url)
    assert "does not begin with GGUF" in str(failure(store, WANTED))
    assert not (tmp_path / "hub/acme/tiny/abc123/tiny-q8.gguf").exists() or (
        "does not begin with GGUF" in str(failure(store, WANTED))
    )
    hub.content = WHOLE


def test_a_downloaded_file_that_changes_on_disk_is_refused(tmp_path: Path, hub: Hub) -> None:
    store = ModelStore(tmp_path, hub=hub.url)
    path = locate(store, WANTED).path
    data = bytearray(WHOLE)
    data[-1] ^= 1
    path.write_bytes(data)
    error = failure(store, WANTED)
    assert "is not the file it was" in str(error)
    assert path.exists(), "what somebody may have put there is theirs to remove"


@pytest.mark.parametrize(
    ("status", "kind", "word"),
    [(404, ModelFileError, "Check owner"), (403, ModelFileError, "browser"), (503, Unavailable, "503")],
)
def test_the_hubs_refusals_say_what_to_do(
    tmp_path: Path, hub: Hub, status: int, kind: type[CocoonError], word: str
) -> None:
    hub.status = status
    error = failure(ModelStore(tmp_path, hub=hub.url), WANTED)
    assert isinstance(error, kind)
    assert word in error.diagnostics()


def test_being_offline_is_said(tmp_path: Path, hub: Hub) -> None:
    hub.close()
    error = failure(ModelStore(tmp_path, hub=hub.url), WANTED)
    assert isinstance(error, Unavailable)
    assert "Are you online?" in error.diagnostics()
    hub.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    hub.thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02})
    hub.thread.start()


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(model_download.shutil, "disk_usage", lambda _: real._replace(free=1_000_000))
    error = failure(ModelStore(tmp_path, hub=hub.url), WANTED)
    assert isinstance(error, ModelFileError)
    assert "1 MB free" in str(error)
    assert "--home" in error.advice


def test_two_processes_do_not_write_one_file(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "hub/acme/tiny/abc123"
    folder.mkdir(parents=True)
    script = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a+b'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(30)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(folder / "tiny-q8.gguf.part")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert "another process" in str(failure(ModelStore(tmp_path, hub=hub.url), WANTED))
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_cancelling_a_download_keeps_what_has_arrived(tmp_path: Path, hub: Hub) -> None:
    hub.pause_s = 0.1

    async def main() -> None:
        with trio.move_on_after(0.6) as scope:
            await ModelStore(tmp_path, hub=hub.url).locate(WANTED)
        assert scope.cancelled_caught

    trio.run(main)
    hub.pause_s = 0.0
    assert locate(ModelStore(tmp_path, hub=hub.url), WANTED).path.read_bytes() == WHOLE


@pytest.mark.parametrize(
    "wanted",
    [
        "hf:",
        "hf:acme/tiny",
        "hf:acme/../tiny/x.gguf@main",
        "hf:acme/tiny/../../x.gguf@main",
        "hf:acme/tiny/x.gguf@../main",
        "hf:acme/tiny/x.safetensors@main",
        "hf:acme/tiny/x-00001-of-00003.gguf@main",
        "hf:acme/tiny/a?b.gguf@main",
        "hf:" + "a/" * 50 + "x.gguf@main",
    ],
)
def test_malformed_hub_names_are_refused_before_anything_is_asked(tmp_path: Path, wanted: str) -> None:
    assert isinstance(failure(ModelStore(tmp_path, hub="http://127.0.0.1:9"), wanted), ConfigError)


def test_hub_names_without_a_revision_mean_main() -> None:
    place = HubFile.parse("hf:acme/tiny/sub/x.gguf")
    assert place.url("http://h/") == "http://h/acme/tiny/resolve/main/sub/x.gguf"


def test_only_web_addresses_are_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="http and https only"):
        model_download.fetch("file:///etc/passwd", tmp_path / "x", progress=lambda *_: None, check=lambda: None)
    assert os.listdir(tmp_path) == []


def test_the_pins_file_is_plain_to_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(WHOLE)
    found = locate(ModelStore(tmp_path / "store"), str(path))
    assert json.loads((tmp_path / "store/pins.json").read_text()) == {"mine": [found.model.digest.hex()]}
