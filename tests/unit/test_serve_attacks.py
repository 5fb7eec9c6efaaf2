"""The session rules S1-S6, K4 and K5 of the protocol, each seen from the side of somebody who tries to break it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import nacl.signing
import pytest

from cocoon.attest.statement import (
    MODE_OPEN,
    STATEMENT_VERSION,
    Statement,
    check_statement,
    encode_statement,
    signed_statement,
    statement_digest,
)
from cocoon.errors import BadSignature, BindingMismatch, Blame, CocoonError, LimitExceeded, SealError, StreamBroken
from cocoon.serve import bounds, sealing
from cocoon.serve.chunks import associated_data, chain_next
from cocoon.serve.effects import Disconnect
from cocoon.serve.events import (
    HelloReceived,
    OutputReceived,
    RequestAccepted,
    RequestEnded,
    RequestFailed,
    RequestOpened,
    RequestRefused,
)
from cocoon.serve.reasons import Reason
from cocoon.serve.testing import CLIENT, START_NS, CountingEntropy, SessionPair, message_in
from cocoon.types import SECOND_NS, FinishReason, Network, Usage
from cocoon.wire.codec import decode_as, encode
from cocoon.wire.messages import (
    Accepted,
    Chunk,
    Credit,
    EndBody,
    Evidence,
    Failed,
    Frame,
    Hello,
    Message,
    Open,
    Ping,
    Receipt,
    ReceiptBody,
    Refused,
)
from cocoon.wire.signing import Domain, domain_hash, signed_bytes

USAGE = Usage(prompt_tokens=12, completion_tokens=0)
FREE = {"input_tokens_max": 256, "output_tokens_max": 64, "cost_max_nano": 0, "wait_ms_max": 0}


def changed(message: Message, **fields: Any) -> Message:
    return msgspec.structs.replace(message, **fields)


# --- S1, S3: replay -----------------------------------------------------------------------------------------


def test_replayed_open_same_and_new_session() -> None:
    """The same bytes run once: a second time on the stream ends it, and on any other stream they do not open."""
    pair = SessionPair().start()
    pair.open()
    recorded = pair.to_provider[0]
    pair.run()
    pair.to_provider.append(recorded)
    pair.run()
    assert len(pair.provider_saw(RequestOpened)) == 1
    assert pair.provider_hung_up is not None
    assert pair.provider_hung_up.why is not None

    for seed in ("other", "pair"):
        other = SessionPair(keys=pair.keys, seed=seed, crypto=pair.crypto)
        if seed == "pair":  # even a client that repeats its own nonces meets a fresh one of the provider
            other.provider._handshake._entropy = CountingEntropy("fresh")
        other.start()
        opened = message_in(recorded)
        assert isinstance(opened, Open)
        other.to_provider.append(encode(opened))
        session = other.client.session
        assert session is not None
        other.to_provider.append(encode(changed(opened, id=1, session_prefix=session[:8])))
        other.to_provider.append(encode(changed(opened, id=2, session_prefix=session[:8])))
        other.provider_did(other.provider.receive_bytes(other.to_provider.popleft(), now=other.now))
        other.provider_did(other.provider.receive_bytes(other.to_provider.popleft(), now=other.now))
        refused = [message_in(frame) for frame in other.to_client]
        assert [one.reason for one in refused if isinstance(one, Refused)] == ["stale_key", "seal"]
        assert not other.provider_saw(RequestOpened)


@pytest.mark.parametrize("part", ["id", "header", "sealed"])
def test_a_request_opens_only_as_it_was_sealed(part: str) -> None:
    pair = SessionPair().start()
    pair.open()
    sent = message_in(pair.to_provider.pop())
    assert isinstance(sent, Open)
    header = bytearray(sent.header)
    header[-1] ^= 1  # the cost limit
    forged = {
        "id": {"id": 7},
        "header": {"header": bytes(header)},
        "sealed": {"sealed": sent.sealed[:-1] + bytes((sent.sealed[-1] ^ 1,))},
    }[part]
    pair.provider_did(pair.provider.receive(changed(sent, **forged), now=pair.now))
    (answer,) = [message_in(frame) for frame in pair.to_client]
    assert isinstance(answer, Refused)
    assert answer.reason == "seal"
    assert pair.provider.requests_open == 0
    assert pair.provider_hung_up is None


def test_whatever_is_wrong_inside_or_outside_a_seal_the_answer_is_the_same() -> None:
    """S6: who probes learns nothing from the kind of failure."""
    pair = SessionPair().start()
    session, public = pair.client.session, pair.keys.current(pair.now).public
    assert session is not None
    answers = set()
    request_id = 0
    pair.open()
    good = message_in(pair.to_provider.pop())
    assert isinstance(good, Open)

    def sealed(plaintext: bytes) -> bytes:
        return pair.crypto.seal(public, plaintext, sealing.request_info(session, request_id, good.header))

    makers: list[Callable[[], bytes]] = [
        lambda: b"x",
        lambda: bytes(48),
        lambda: bytes(4_096),
        lambda: sealed(b""),
        lambda: sealed(b"\0"),
        lambda: sealed(bytes(1_024)),
        lambda: sealed(b"\xff" * 1_024),
        lambda: sealed(sealing.pad_request(b"\xff")),
        lambda: sealed(sealing.pad_request(b"ok")[:-1] + b"\1"),
        lambda: sealed(sealing.pad_request(b"ok") + bytes(1_024)),
        lambda: sealed(sealing.pad_request(b"\x84" * 100)),
    ]
    for make in makers:
        request_id += 1
        message = changed(good, id=request_id, sealed=make())
        effects = pair.provider.receive(message, now=pair.now)
        (answer,) = effects
        answers.add(encode(changed(answer.message, id=0)))  # type: ignore[union-attr]
    assert len(answers) == 1


# --- S4: answers --------------------------------------------------------------------------------------------


def test_same_response_key_twice_distinct_keystreams() -> None:
    """A client that repeats its response key still gets another keystream for each request: salt, sid and id differ."""

    class StuckEntropy(CountingEntropy):
        def __call__(self, count: int, /) -> bytes:
            return bytes(count)

    ciphertexts = []
    for seed in ("one", "two"):
        pair = SessionPair(seed=seed)
        pair.start()
        pair.client._entropy = StuckEntropy("")
        for _ in range(2):
            request_id = pair.open()
            pair.run()
            pair.output(request_id, "the same text", 1)
            pair.tick()
            for frame in pair.to_client:
                message = message_in(frame)
                if isinstance(message, Frame):
                    ciphertexts += [chunk.sealed[:-16] for chunk in message.chunks]
            pair.run(bounds.FRAME_INTERVAL_NS)
    assert len(ciphertexts) == 4
    keystreams = {bytes(a ^ b for a, b in zip(ciphertexts[0], other, strict=True)) for other in ciphertexts[1:]}
    assert len(set(ciphertexts)) == 4
    assert bytes(len(ciphertexts[0])) not in keystreams
    key = sealing.chunk_key(bytes(32), bytes(32), bytes(32), 1)
    assert key != sealing.chunk_key(bytes(32), bytes(31) + b"\1", bytes(32), 1)
    assert key != sealing.chunk_key(bytes(32), bytes(32), bytes(31) + b"\1", 1)
    assert key != sealing.chunk_key(bytes(32), bytes(32), bytes(32), 2)


def answered() -> tuple[SessionPair, int, list[Message]]:
    """A finished answer of five chunks, an end and a receipt, still on the wire."""
    pair = SessionPair().start()
    request_id = pair.open()
    pair.run()
    messages: list[Message] = []
    for number in range(5):
        pair.output(request_id, f"{number}", number)
        pair.now += bounds.FRAME_INTERVAL_NS
        pair.tick()
        messages += [message_in(frame) for frame in pair.to_client]
        pair.to_client.clear()
    pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, USAGE, now=pair.now))
    pair.now += bounds.FRAME_INTERVAL_NS
    pair.tick()
    messages += [message_in(frame) for frame in pair.to_client]
    pair.to_client.clear()
    assert [type(message) for message in messages] == [Frame] * 6 + [Receipt]
    return pair, request_id, messages


def chunk_of(message: Message) -> Chunk:
    assert isinstance(message, Frame)
    (chunk,) = message.chunks
    return chunk


def with_chunk(message: Message, **fields: Any) -> Message:
    return changed(message, chunks=[msgspec.structs.replace(chunk_of(message), **fields)])


def flip(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def forged_end(messages: list[Message]) -> list[Message]:
    """Somebody without the key ends the answer after two chunks."""
    body = encode(EndBody(finish_reason="stop", prompt_tokens=12, cached_tokens=0, completion_tokens=2))
    end = with_chunk(messages[5], number=2, completion_tokens=2, sealed=body + bytes(16))
    return [*messages[:2], end, messages[6]]


TAMPERINGS: dict[str, Callable[[list[Message]], list[Message]]] = {
    "a chunk is dropped": lambda m: [*m[:2], *m[3:]],
    "the first chunk is dropped": lambda m: m[1:],
    "two chunks are swapped": lambda m: [m[0], m[2], m[1], *m[3:]],
    "a chunk comes twice": lambda m: [*m[:3], m[2], *m[3:]],
    "the end comes twice": lambda m: [*m[:6], m[5], m[6]],
    "a chunk comes after the end": lambda m: [*m[:6], m[4], m[6]],
    "a chunk is renumbered over a gap": lambda m: [*m[:2], with_chunk(m[3], number=2, completion_tokens=3), *m[4:]],
    "a ciphertext is cut": lambda m: [m[0], with_chunk(m[1], sealed=chunk_of(m[1]).sealed[:-1]), *m[2:]],
    "a ciphertext is flipped": lambda m: [m[0], with_chunk(m[1], sealed=flip(chunk_of(m[1]).sealed)), *m[2:]],
    "the tokens are inflated": lambda m: [with_chunk(m[0], completion_tokens=2), *m[1:]],
    "the prompt is inflated": lambda m: [with_chunk(m[0], prompt_tokens=200), *m[1:]],
    "the prompt grows later": lambda m: [m[0], with_chunk(m[1], prompt_tokens=13), *m[2:]],
    "a chunk is passed off as the end": lambda m: [*m[:4], with_chunk(m[4], final=True), m[6]],
    "the end is passed off as a chunk": lambda m: [*m[:5], with_chunk(m[5], final=False), m[6]],
    "the end comes early": lambda m: [*m[:2], m[5], m[6]],
    "the end is forged": forged_end,
    "the receipt comes early": lambda m: [*m[:3], m[6]],
    "the receipt comes twice": lambda m: [*m, m[6]],
    "the receipt's signature is flipped": lambda m: [*m[:6], changed(m[6], signature=flip(m[6].signature))],  # type: ignore[attr-defined]
    "the answer fails after its end": lambda m: [*m[:6], Failed(id=0, reason="engine_failed", detail="")],
    "it is accepted again": lambda m: [*m[:2], Accepted(id=0, salt=bytes(32), queue_position=0), *m[2:]],
    "it is refused late": lambda m: [*m[:2], Refused(id=0, reason="busy", retry_after_ms=0, detail=""), *m[2:]],
    "it is cut off before the end": lambda m: m[:5],
    "it is cut off before the receipt": lambda m: m[:6],
    "everything after the first is lost": lambda m: m[:1],
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_drop_swap_repeat_truncate_chunk_and_forged_end(tampering: str) -> None:
    """Whoever is in the way, the reader has a true beginning of the answer and a typed error, never a wrong text."""
    pair, request_id, messages = answered()
    for message in TAMPERINGS[tampering](messages):
        pair.client_did(pair.client.receive(message, now=pair.now))
    pair.client_did(pair.client.disconnected(now=pair.now))
    assert "01234".startswith(pair.text(request_id))
    ended, failed = pair.client_saw(RequestEnded), pair.client_saw(RequestFailed)
    if tampering == "the receipt comes twice":  # it was complete before
        assert (len(ended), len(failed)) == (1, 0)
        assert pair.client_hung_up is not None
        return
    assert not ended
    (event,) = failed
    assert isinstance(event.error, StreamBroken)
    if not tampering.startswith(("it is cut", "everything after")):
        assert pair.client_hung_up is not None
        assert isinstance(pair.client_hung_up.why, CocoonError)
        assert pair.client_hung_up.why.blame is Blame.REMOTE


def test_the_untampered_answer_is_complete() -> None:
    """The control for the table above."""
    pair, request_id, messages = answered()
    for message in messages:
        pair.client_did(pair.client.receive(message, now=pair.now))
    assert pair.text(request_id) == "01234"
    assert pair.client_saw(RequestEnded)
    assert pair.client_hung_up is None


@pytest.mark.parametrize("name", ReceiptBody.__struct_fields__)
def test_a_receipt_that_differs_in_one_field_breaks_the_stream_and_is_named(name: str) -> None:
    """Even correctly signed: the provider itself lies here."""
    pair, request_id, messages = answered()
    receipt = messages[-1]
    assert isinstance(receipt, Receipt)
    body = decode_as(receipt.receipt, ReceiptBody, bytes_max=512)
    value = getattr(body, name)
    other: Any = (
        (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else flip(value or b"\0")
    )
    if name == "account":
        other = b"x" * 32
    lie = encode(changed(body, **{name: other}))
    signature = pair.signing_key.sign(signed_bytes(Domain.RECEIPT, Network.DEVNET, lie)).signature
    for message in [*messages[:-1], changed(receipt, receipt=lie, signature=signature)]:
        pair.client_did(pair.client.receive(message, now=pair.now))
    assert not pair.client_saw(RequestEnded)
    (failed,) = pair.client_saw(RequestFailed)
    assert failed.id == request_id
    assert name in str(failed.error) or name == "final"
    assert pair.text(request_id) == "01234"


def test_a_breach_fails_its_own_request_with_the_cause_and_the_others_with_a_broken_stream() -> None:
    pair = SessionPair().start()
    guilty, bystander = pair.open(), pair.open()
    pair.run()
    pair.output(guilty, "a", 1)
    pair.tick()
    frame = message_in(pair.to_client.pop())
    pair.client_did(pair.client.receive(with_chunk(frame, completion_tokens=9), now=pair.now))
    errors = {event.id: str(event.error) for event in pair.client_saw(RequestFailed)}
    assert "broke the protocol" in errors[guilty]
    assert "without an end" in errors[bystander]


UNASKED = Chunk(id=5, number=0, final=False, prompt_tokens=0, completion_tokens=0, sealed=bytes(16))
UNASKED_EVIDENCE = Evidence(
    statement=b"S",
    operator_signature=bytes(64),
    peer_signature=bytes(64),
    provider_nonce=bytes(32),
    hardware=b"",
)


def test_messages_of_the_other_role_or_for_unknown_requests_end_the_stream() -> None:
    for message in (
        Credit(id=0, total_bytes=1),
        Frame(chunks=[UNASKED], padding=b""),
        Receipt(id=5, receipt=b"x", signature=bytes(64)),
        Accepted(id=5, salt=bytes(32), queue_position=0),
        Hello(version=1, network=-217, nonce=bytes(32), client_nonce=bytes(32)),
        UNASKED_EVIDENCE,
    ):
        pair = SessionPair().start()
        pair.client_did(pair.client.receive(message, now=pair.now))
        assert pair.client_hung_up is not None, message
    for message in (
        Accepted(id=0, salt=bytes(32), queue_position=0),
        Credit(id=5, total_bytes=1),
        Failed(id=0, reason="x", detail=""),
        Hello(version=2, network=-217, nonce=bytes(32), client_nonce=bytes(32)),
        Hello(version=1, network=-239, nonce=bytes(32), client_nonce=bytes(32)),
    ):
        pair = SessionPair().start()
        pair.provider_did(pair.provider.receive(message, now=pair.now))
        assert pair.provider_hung_up is not None, message


def test_floods_of_hellos_and_pings_are_cut_off() -> None:
    pair = SessionPair().start()
    for number in range(bounds.HELLOS_PER_PERIOD_MAX + 1):
        hello = Hello(version=1, network=-217, nonce=bytes(32), client_nonce=number.to_bytes(32, "big"))
        pair.provider_did(pair.provider.receive(hello, now=pair.now))
    assert pair.provider_hung_up is not None
    assert len(pair.provider_saw(HelloReceived)) == bounds.HELLOS_PER_PERIOD_MAX
    pair = SessionPair().start()
    for number in range(bounds.PINGS_PER_IDLE_MAX + 1):
        pair.provider_did(pair.provider.receive(Ping(token=number), now=pair.now))
    assert pair.provider_hung_up is not None


@pytest.mark.parametrize("kind", ["sealed to nothing", "cancelled at once"])
def test_a_flood_of_requests_that_are_never_served_is_cut_off(kind: str) -> None:
    def ask(pair: SessionPair) -> None:
        request_id = pair.open()
        if kind == "cancelled at once":
            pair.client_did(pair.client.cancel(request_id, now=pair.now))
        else:
            opening = message_in(pair.to_provider.pop())
            assert isinstance(opening, Open)
            pair.to_provider.append(encode(changed(opening, sealed=bytes(1_072))))
        pair.run()

    pair = SessionPair().start()
    for _ in range(bounds.UNSERVED_PER_PERIOD_MAX):
        ask(pair)
    assert pair.provider_hung_up is None
    ask(pair)
    assert pair.provider_hung_up is not None
    assert isinstance(pair.provider_hung_up.why, LimitExceeded)
    patient = SessionPair().start()
    for _ in range(2 * bounds.UNSERVED_PER_PERIOD_MAX):
        ask(patient)
        patient.run(for_ns=bounds.UNSERVED_PERIOD_NS // 256)
    assert patient.provider_hung_up is None


def test_a_busy_provider_may_refuse_any_number_of_requests() -> None:
    pair = SessionPair().start()
    pair.accepts = False
    for _ in range(2 * bounds.UNSERVED_PER_PERIOD_MAX):
        request_id = pair.open()
        pair.run()
        pair.provider_did(pair.provider.refuse(request_id, Reason.BUSY, now=pair.now))
        pair.run()
    assert pair.provider_hung_up is None


# --- K5: keys -----------------------------------------------------------------------------------------------


def test_sealing_key_rotation_midstream() -> None:
    """E rotates under a running request: it goes on; the old key opens requests in its grace, then never again."""
    crypto = sealing.HpkeCrypto()
    keys = sealing.SealingKeys(crypto, CountingEntropy("keys"), now=START_NS - 300 * SECOND_NS)
    pair = SessionPair(keys=keys, crypto=crypto).start()
    first = keys.current(pair.now).public
    running = pair.open()
    pair.run()
    pair.output(running, "before, ", 1)
    pair.run(3_310 * SECOND_NS)  # E was replaced ten seconds ago; the next hello is due at 3,600 s
    assert keys.current(pair.now).public != first
    assert pair.client._handshake.need().sealing_key == first
    in_grace = pair.open()
    late = message_in(pair.to_provider[0])
    pair.run()
    assert in_grace in {event.id for event in pair.client_saw(RequestAccepted)}
    pair.output(running, "after", 2)
    pair.output(in_grace, "old key", 3)
    pair.run(bounds.FRAME_INTERVAL_NS)
    assert (pair.text(running), pair.text(in_grace)) == ("before, after", "old key")

    pair.run(bounds.KEY_GRACE_NS)
    assert keys.find(first, pair.now) is None, "erased"
    fresh = pair.open()
    pair.run()
    assert fresh in {event.id for event in pair.client_saw(RequestAccepted)}
    for request_id in (running, in_grace, fresh):
        pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, USAGE, now=pair.now))
    pair.run(bounds.FRAME_INTERVAL_NS)
    assert {event.id for event in pair.client_saw(RequestEnded)} == {running, in_grace, fresh}

    # What was sealed to the erased key is refused, unbilled, and never decrypted.
    pair.provider_did(pair.provider.receive(changed(late, id=fresh + 1), now=pair.now))
    refusal = message_in(pair.to_client.pop())
    assert isinstance(refusal, Refused)
    assert refusal.reason == "stale_key"


def test_a_stale_key_is_refused_unbilled_and_answered_with_a_fresh_hello() -> None:
    """The provider restarts its keys (or the client slept): one refusal, one Hello, and the next request works."""
    pair = SessionPair().start()
    pair.keys._keys.clear()
    pair.keys._keys.append(pair.keys._make(pair.now))
    pair.open()
    pair.run()
    (refused,) = pair.client_saw(RequestRefused)
    assert refused.reason == "stale_key"
    assert refused.error.retryable
    assert len(pair.provider_saw(HelloReceived)) == 2
    second = pair.open()
    pair.run()
    assert pair.client_saw(RequestAccepted)[0].id == second


def test_a_provider_that_keeps_refusing_its_own_key_loses_the_client() -> None:
    pair = SessionPair().start()
    for _ in range(bounds.HELLOS_PER_PERIOD_MAX + 1):
        if not pair.client.is_ready:
            break
        request_id = pair.open()
        pair.to_provider.clear()
        refusal = Refused(id=request_id, reason="stale_key", retry_after_ms=0, detail="")
        pair.client_did(pair.client.receive(refusal, now=pair.now))
        pair.run()
    assert pair.client_hung_up is not None


def test_a_second_hello_on_the_stream_makes_another_session_and_leaves_running_requests_alone() -> None:
    pair = SessionPair().start()
    before = pair.client.session
    request_id = pair.open()
    pair.run()
    pair.output(request_id, "a", 1)
    pair.run(bounds.HELLO_AGAIN_NS + SECOND_NS)
    assert pair.client.session != before
    pair.output(request_id, "b", 2)
    pair.provider_did(pair.provider.finish(request_id, FinishReason.STOP, USAGE, now=pair.now))
    pair.run(bounds.FRAME_INTERVAL_NS)
    assert pair.text(request_id) == "ab"
    (ended,) = pair.client_saw(RequestEnded)
    assert ended.receipt.body.session == before


# --- K4: swapped keys ---------------------------------------------------------------------------------------

NONCE = hashlib.sha256(b"nonce").digest()
MODEL = hashlib.sha256(b"model").digest()
OPERATOR = nacl.signing.SigningKey(hashlib.sha256(b"operator").digest())
PEER = nacl.signing.SigningKey(hashlib.sha256(b"peer").digest())
FRONT = nacl.signing.SigningKey(hashlib.sha256(b"front").digest())


def statement(**fields: Any) -> Statement:
    honest = Statement(
        version=STATEMENT_VERSION,
        mode=MODE_OPEN,
        network=int(Network.DEVNET),
        nonce=NONCE,
        peer=bytes(PEER.verify_key),
        sealing_suite=1,
        sealing_key=hashlib.sha256(b"E").digest(),
        operator=bytes(OPERATOR.verify_key),
        payout=bytes(32),
        image=bytes(32),
        config=bytes(32),
        models=[MODEL],
        gpus=[],
    )
    return msgspec.structs.replace(honest, **fields)


def check(data: bytes, operator: nacl.signing.SigningKey, peer: nacl.signing.SigningKey, signed: bytes) -> Statement:
    """The client's check: offer and connection name OPERATOR and PEER."""
    message = signed_statement(Network.DEVNET, signed)
    return check_statement(
        data,
        operator_signature=operator.sign(message).signature,
        peer_signature=peer.sign(message).signature,
        network=Network.DEVNET,
        nonce=NONCE,
        peer=bytes(PEER.verify_key),
        operator=bytes(OPERATOR.verify_key),
        model=MODEL,
        payout=bytes(32),
    )


def test_relay_or_front_swaps_key_refused_operator_blamed() -> None:
    """Somebody in front of the enclave puts its own E into S: nothing is sealed to it, and the operator is blamed."""
    honest = encode_statement(statement())
    assert check(honest, OPERATOR, PEER, honest).sealing_key == hashlib.sha256(b"E").digest()
    swapped = encode_statement(statement(sealing_key=hashlib.sha256(b"front's own").digest()))
    with pytest.raises(BadSignature):  # the honest signatures do not cover it
        check(swapped, OPERATOR, PEER, honest)
    with pytest.raises(BadSignature):  # and the front cannot make P's
        check(swapped, OPERATOR, FRONT, swapped)
    with pytest.raises(BindingMismatch) as mismatch:  # nor name itself as P
        check(encode_statement(statement(peer=bytes(FRONT.verify_key))), OPERATOR, FRONT, swapped)
    assert mismatch.value.blame is Blame.REMOTE
    assert "operator" in mismatch.value.diagnostics()
    with pytest.raises(BindingMismatch):  # nor replay an old S
        check(encode_statement(statement(nonce=bytes(32))), OPERATOR, PEER, honest)

    # Should a front swap S on the wire all the same, the two ends derive different sessions: nothing opens.
    pair = SessionPair()
    pair.client_did(pair.client.start(now=pair.now))
    pair.provider_did(pair.provider.receive_bytes(pair.to_provider.popleft(), now=pair.now))
    evidence = message_in(pair.to_client.popleft())
    pair.client_did(pair.client.receive(changed(evidence, statement=b"another statement"), now=pair.now))
    pair.open()
    pair.run()
    assert not pair.provider_saw(RequestOpened)
    assert pair.client_saw(RequestRefused)[0].reason == "stale_key"


def test_both_ends_and_the_attestation_agree_on_the_statement_digest() -> None:
    data = encode_statement(statement())
    parts = {"client": CLIENT, "peer": bytes(32), "client_nonce": bytes(32), "provider_nonce": bytes(32)}
    name = CLIENT.encode()
    expected = domain_hash("session", statement_digest(data), bytes((len(name),)), name, bytes(96))
    assert sealing.session_id(statement=data, **parts) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["statement", "client", "peer", "client_nonce", "provider_nonce"])
def test_the_session_id_depends_on_every_part(part: str) -> None:
    parts: dict[str, Any] = {
        "statement": b"S",
        "client": CLIENT,
        "peer": bytes(32),
        "client_nonce": bytes(32),
        "provider_nonce": bytes(32),
    }
    other = {**parts, part: parts[part][:-1] + ("x" if part == "client" else b"x")}
    assert sealing.session_id(**parts) != sealing.session_id(**other)


def test_chain_and_associated_data_tell_every_part_apart() -> None:
    base = {"final": False, "prompt_tokens": 1, "completion_tokens": 1}
    variants = {
        associated_data(1, 1, **base),  # type: ignore[arg-type]
        associated_data(2, 1, **base),  # type: ignore[arg-type]
        associated_data(1, 2, **base),  # type: ignore[arg-type]
        associated_data(1, 1, final=True, prompt_tokens=1, completion_tokens=1),
        associated_data(1, 1, final=False, prompt_tokens=2, completion_tokens=1),
        associated_data(1, 1, final=False, prompt_tokens=1, completion_tokens=2),
    }
    assert len(variants) == 6
    assert {len(one) for one in variants} == {21}
    links = {chain_next(bytes(32), 0, b"a"), chain_next(bytes(32), 1, b"a"), chain_next(bytes(32), 0, b"b")}
    assert len(links) == 3


def test_a_refused_message_leaves_the_provider_as_it_was() -> None:
    """After the refusals that do not end a stream, the next honest request is served."""
    pair = SessionPair().start()
    pair.open()
    sent = message_in(pair.to_provider.pop())
    assert isinstance(sent, Open)
    for number, fields in enumerate(({"sealed": bytes(100)}, {"session_prefix": bytes(8)}), start=1):
        effects = pair.provider.receive(changed(sent, id=number, **fields), now=pair.now)
        assert not any(isinstance(effect, Disconnect) for effect in effects)
    assert pair.provider.requests_open == 0
    pair.client._next_id = 10
    request_id = pair.open()
    pair.run()
    assert pair.client_saw(RequestAccepted)[0].id == request_id
    assert not pair.client_saw(OutputReceived)


def test_a_sealing_key_that_is_no_key_is_one_more_seal_error() -> None:
    crypto = sealing.HpkeCrypto()
    with pytest.raises(SealError):
        crypto.seal(bytes(32), b"x", b"info")
    with pytest.raises(SealError):
        crypto.seal(bytes(31), b"x", b"info")


def test_a_statement_with_a_foreign_sealing_suite_is_not_trusted() -> None:
    pair = SessionPair()
    pair.trusts = False
    pair.start()
    with pytest.raises(BindingMismatch):
        pair.client.trust(sealing_suite=2, sealing_key=bytes(1_216), now=pair.now)
    assert not pair.client.is_ready
    assert pair.now == START_NS
