"""Laws of the attestation parts that hold for every input: Merkle paths, canonical XML, ratchets, event replay."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from cocoon.adapters.tee.software import build_ccel, build_json_log
from cocoon.attest import ratchet
from cocoon.attest.eventlog import LogKind, read_log, replay, trim_ccel
from cocoon.attest.gpu import xml
from cocoon.attest.nonces import commit, committed_nonce
from cocoon.attest.trail import Trail
from cocoon.errors import StaleEvidence

nonces = some.lists(some.binary(min_size=32, max_size=32), min_size=1, max_size=40)


@given(nonces)
def test_every_nonce_finds_its_root_and_no_other_place_does(batch):
    root, paths = commit(batch)
    for nonce, path in zip(batch, paths, strict=True):
        assert committed_nonce(nonce, index=path.index, path=path.siblings) == root
        for wrong in range(1 << len(path.siblings)):
            if wrong != path.index and batch[min(wrong, len(batch) - 1)] != nonce:
                assert committed_nonce(nonce, index=wrong, path=path.siblings) != root


@given(nonces, some.binary(min_size=32, max_size=32))
def test_a_nonce_outside_the_batch_has_no_path(batch, stranger):
    root, paths = commit(batch)
    if stranger not in batch:
        for path in paths:
            assert committed_nonce(stranger, index=path.index, path=path.siblings) != root


@given(nonces.filter(lambda batch: len(batch) > 2))
def test_an_inner_node_cannot_be_shown_as_a_nonce(batch):
    root, paths = commit(batch)
    first = paths[0]
    node = committed_nonce(batch[0], index=0, path=first.siblings[:1])
    assert committed_nonce(node, index=0, path=first.siblings[1:]) != root


@given(some.integers(0, 70_000), some.integers(0, 20))
def test_a_path_is_bounded_and_an_index_stays_inside(index, depth):
    path = [bytes(32)] * depth
    if depth > 10 or index >= 1 << depth:
        with pytest.raises(StaleEvidence):
            committed_nonce(bytes(32), index=index, path=path)
    else:
        committed_nonce(bytes(32), index=index, path=path)


names = some.sampled_from(["a", "b", "p:a", "q:c"])
values = some.text(some.sampled_from("ab <>&\"'\t\n\r é"), max_size=8)


@some.composite
def elements(draw, depth=0):
    attributes = draw(some.dictionaries(some.sampled_from(["x", "y", "p:z"]), values, max_size=3))
    text = some.text(some.sampled_from("ab <>&\n é"), max_size=8)
    children = [] if depth > 2 else draw(some.lists(some.one_of(text, elements(depth=depth + 1)), max_size=3))
    return draw(names), attributes, children


def escape(text):
    for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;"), ("\t", "&#9;"),
                           ("\n", "&#10;"), ("\r", "&#13;")):  # fmt: skip
        text = text.replace(plain, escaped)
    return text


def write(node, root=True):
    name, attributes, children = node
    spaces = ' xmlns:p="urn:p" xmlns:q="urn:q" xmlns="urn:d"' if root else ""
    inner = "".join(escape(c) if isinstance(c, str) else write(c, False) for c in children)
    written = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name}{spaces}{written}>{inner}</{name}>"


@given(elements())
def test_the_canonical_form_is_a_fixed_point_and_keeps_the_content(node):
    first = xml.canonical(xml.parse(write(node).encode()))
    assert xml.canonical(xml.parse(first)) == first


@given(elements())
def test_the_order_of_attributes_does_not_matter(node):
    def reordered(n):
        name, attributes, children = n
        return name, dict(reversed(attributes.items())), [c if isinstance(c, str) else reordered(c) for c in children]

    assert xml.canonical(xml.parse(write(node).encode())) == xml.canonical(xml.parse(write(reordered(node)).encode()))


entries = some.dictionaries(
    some.sampled_from(["date/a", "number/a", "sim/date/b", "number/tcb/x"]), some.integers(0, 10**10)
)


@given(entries, entries)
def test_a_ratchet_never_goes_down(seen, found):
    after = {**seen, **ratchet.advance(seen, found)}
    assert all(after[name] >= value for name, value in seen.items())
    try:
        ratchet.check(seen, found, Trail())
    except StaleEvidence:
        assert any(value < seen.get(name, 0) for name, value in found.items())


events = some.lists(some.tuples(some.integers(0, 2), some.binary(max_size=40)), max_size=12)
runtime = some.lists(some.tuples(some.text("abc/", min_size=1, max_size=8), some.binary(max_size=40)), max_size=8)


@settings(max_examples=50)
@given(events, runtime)
def test_replay_is_the_chain_of_hashes_over_both_logs(firmware, later):
    log = build_ccel(firmware)
    read = read_log(log, LogKind.CCEL) + read_log(build_json_log(later), LogKind.JSON)
    want = [bytes(48)] * 4
    for register, text in firmware:
        want[register] = hashlib.sha384(want[register] + hashlib.sha384(text).digest()).digest()
    for name, payload in later:
        digest = hashlib.sha384(b"\x01\x00\x00\x08:" + name.encode() + b":" + payload).digest()
        want[3] = hashlib.sha384(want[3] + digest).digest()
    assert list(replay(read)) == want
    assert trim_ccel(log + b"\xff" * 100) == log
