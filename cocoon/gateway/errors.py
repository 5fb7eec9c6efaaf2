"""How errors look over HTTP: one table from `cocoon.errors` to OpenAI's error objects, and nothing else.

Texts of `CocoonError` hold no prompt, key or token, so they are shown as they are. Anything that is not a
`CocoonError` is a bug of ours and becomes a plain 500 that says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from .. import errors as e
from ..serve.reasons import Reason
from .asgi import Headers


class HttpRefusal(e.CocoonError):
    """The gateway itself refuses a request, before any provider hears of it. Nothing was spent."""

    blame = e.Blame.USER

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message, retryable=retry_after_s is not None)
        self.status = status
        self.kind = code
        self.param = param
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `code` None: the error's own name."""

    status: int
    type: str
    code: str | None = None
    retry_after_s: int | None = None


# The first class of an error's MRO that has a row decides.
ERROR_TABLE: Final[dict[type[BaseException], Row]] = {
    e.InvalidRequest: Row(400, "invalid_request_error"),
    e.ModelNotFound: Row(404, "invalid_request_error", "model_not_found"),
    e.SpendCapReached: Row(402, "insufficient_funds"),
    e.PaymentError: Row(402, "insufficient_funds"),
    e.PriceTooHigh: Row(402, "insufficient_funds"),
    e.NoProvider: Row(503, "service_unavailable_error", retry_after_s=5),
    e.Refused: Row(503, "service_unavailable_error", retry_after_s=1),
    e.AttestationError: Row(502, "attestation_error"),
    e.StreamBroken: Row(502, "provider_error", retry_after_s=1),
    e.RemoteProtocolError: Row(502, "provider_error"),
    e.EngineError: Row(502, "provider_error"),
    e.Unavailable: Row(504, "timeout_error", "timeout", retry_after_s=1),
    e.StoreError: Row(503, "server_error"),
    e.CocoonError: Row(500, "server_error"),
    BaseException: Row(500, "server_error", "internal_error"),
}

# Of a provider's refusals, "too much at once" is 429; the others are 503: somebody else may do it.
REFUSALS_429: Final = frozenset({Reason.BUSY.value})

TYPE_OF_STATUS: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpError:
    """An error, ready to be sent."""

    status: int
    error: dict[str, Any]
    retry_after_ms: int | None
    retryable: bool

    @property
    def body(self) -> bytes:
        """`{"error": {...}}` as OpenAI writes it."""
        return msgspec.json.encode({"error": self.error})

    @property
    def headers(self) -> Headers:
        """Content type and length, and what SDKs obey about trying again."""
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body)),
            (b"x-should-retry", b"true" if self.retryable else b"false"),
        ]
        if self.retry_after_ms is not None:
            headers.append((b"retry-after", b"%d" % -(-self.retry_after_ms // 1_000)))
            headers.append((b"retry-after-ms", b"%d" % self.retry_after_ms))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def http_error(error: BaseException) -> HttpError:
    """The HTTP form of any error."""
    row = next(ERROR_TABLE[cls] for cls in type(error).__mro__ if cls in ERROR_TABLE)
    status, kind, code, retry_after_s = row.status, row.type, row.code, row.retry_after_s
    param: str | None = None
    message = "the gateway failed on this request; its log has the name of the error"
    retry_after_ms = None if retry_after_s is None else retry_after_s * 1_000
    retryable = False
    if isinstance(error, e.CocoonError):
        message, retryable = error.diagnostics(), error.retryable
        code = code or error.code
    if isinstance(error, e.InvalidRequest):
        param = error.param
        code = "model_not_found" if isinstance(error, e.ModelNotFound) else error.kind
        if isinstance(error, e.ModelNotFound):
            param = param or "model"
    elif isinstance(error, e.AttestationError):
        code = error.reason
    elif isinstance(error, e.Refused):
        code = error.reason
        status = 429 if error.reason in REFUSALS_429 else status
        retry_after_ms = max(error.retry_after_ms, 1) if error.retry_after_ms else retry_after_ms
        if not retryable:
            retry_after_ms = None
    elif isinstance(error, HttpRefusal):
        status, code, param, kind = error.status, error.kind, error.param, "invalid_request_error"
        retry_after_ms = None if error.retry_after_s is None else error.retry_after_s * 1_000
    return HttpError(
        status=status,
        error={"message": message, "type": TYPE_OF_STATUS.get(status, kind), "param": param, "code": code},
        retry_after_ms=retry_after_ms,
        retryable=retryable,
    )
