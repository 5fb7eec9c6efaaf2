"""Every error of Cocoon has its HTTP form, and none says more than it may."""

from __future__ import annotations

import json

import pytest

from cocoon import errors as e
from cocoon.gateway.errors import HttpRefusal, http_error

CASES: list[tuple[BaseException, int, str, str | None, str | None]] = [
    (e.InvalidRequest("bad", param="n"), 400, "invalid_request_error", None, "n"),
    (
        e.InvalidRequest("too long", param="messages", kind="context_length_exceeded"),
        400, "invalid_request_error", "context_length_exceeded", "messages",
    ),
    (e.ModelNotFound("no such model; near matches: a, b"), 404, "invalid_request_error", "model_not_found", "model"),
    (e.SpendCapReached("cap"), 402, "insufficient_funds", "spend_cap_reached", None),
    (e.PaymentError("pay"), 402, "insufficient_funds", "payment_error", None),
    (e.PriceTooHigh("cheapest is 5"), 402, "insufficient_funds", "price_too_high", None),
    (e.NoProvider("tried: dht, gossip"), 503, "service_unavailable_error", "no_provider", None),
    (e.Refused("busy", retry_after_ms=1_500), 429, "rate_limit_error", "busy", None),
    (e.Refused("draining"), 503, "service_unavailable_error", "draining", None),
    (e.BindingMismatch("keys", reason="statement.key"), 502, "attestation_error", "statement.key", None),
    (e.TrustRefused("open is not enough"), 502, "attestation_error", "trust_refused", None),
    (e.StreamBroken("died"), 502, "provider_error", "stream_broken", None),
    (e.DecodeError("junk"), 502, "provider_error", "decode_error", None),
    (e.Unavailable("slow"), 504, "timeout_error", "timeout", None),
    (e.StoreError("disk"), 503, "server_error", "store_error", None),
    (e.LocalProtocolError("ours"), 500, "server_error", "local_protocol_error", None),
    (HttpRefusal(413, "request_too_large", "big"), 413, "invalid_request_error", "request_too_large", None),
    (HttpRefusal(401, "invalid_api_key", "key"), 401, "authentication_error", "invalid_api_key", None),
    (HttpRefusal(403, "host_not_allowed", "host"), 403, "permission_error", "host_not_allowed", None),
]  # fmt: skip


@pytest.mark.parametrize(("error", "status", "kind", "code", "param"), CASES, ids=lambda value: str(value)[:24])
def test_the_error_has_openais_form(
    error: BaseException, status: int, kind: str, code: str | None, param: str | None
) -> None:
    answer = http_error(error)
    assert answer.status == status
    assert json.loads(answer.body) == {
        "error": {"message": error.diagnostics(), "type": kind, "param": param, "code": code}  # type: ignore[attr-defined]
    }


def test_a_bug_of_ours_says_nothing_of_what_it_was() -> None:
    answer = http_error(ValueError("the prompt was: my secret"))
    assert answer.status == 500
    assert b"secret" not in answer.body


def test_sdks_are_told_when_to_try_again() -> None:
    busy = dict(http_error(e.Refused("busy", retry_after_ms=1_500)).headers)
    assert busy[b"retry-after"] == b"2"
    assert busy[b"retry-after-ms"] == b"1500"
    assert busy[b"x-should-retry"] == b"true"
    assert dict(http_error(e.NoProvider("none")).headers)[b"retry-after"] == b"5"
    final = dict(http_error(e.TrustRefused("no")).headers)
    assert final[b"x-should-retry"] == b"false"
    assert b"retry-after" not in final


def test_every_error_class_finds_a_row() -> None:
    classes, seen = [e.CocoonError], set()
    while classes:
        cls = classes.pop()
        seen.add(cls)
        classes += cls.__subclasses__()
    assert len(seen) > 30
    # Packages that other tests have imported may add classes with arguments of their own; their bases are here.
    for cls in {each for each in seen if each.__module__ == e.__name__} - {HttpRefusal}:
        answer = http_error(cls("text"))
        assert 400 <= answer.status < 600
        assert answer.error["type"]
        assert (answer.status >= 500) or cls.blame is not e.Blame.REMOTE or cls is e.Refused, cls
