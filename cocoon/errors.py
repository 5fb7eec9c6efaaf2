"""The one error hierarchy of Cocoon.

Every error says whose fault it is (`blame`), whether trying again can help (`retryable`), and what a
person should do next (`diagnostics()`). Protocol code raises these and nothing else for anything that came
from outside; `assert` is kept for our own bugs. `p2p` has its own root, `P2PError`, mapped once in
`cocoon.adapters.network`.

No error text ever holds a prompt, a key, a token or anything else that a peer could not already see.
"""

from __future__ import annotations

from enum import Enum


class Blame(Enum):
    """Who has to change something for this not to happen again."""

    LOCAL = "local"  # this program or its configuration
    USER = "user"  # the person or app that made the request
    REMOTE = "remote"  # the peer at the other end
    NETWORK = "network"  # nobody in particular: reachability, time-outs


class CocoonError(Exception):
    """Root of all errors that cross a public border of `cocoon`."""

    retryable: bool = False
    blame: Blame = Blame.LOCAL
    advice: str = ""
    exit_code: int = 1

    def __init__(self, message: str, *, advice: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        if advice is not None:
            self.advice = advice
        if retryable is not None:
            self.retryable = retryable

    @property
    def code(self) -> str:
        """A stable machine-readable name: the class name in snake case."""
        name = type(self).__name__
        return "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))

    def diagnostics(self) -> str:
        """What happened and what to do next, for a person."""
        return f"{self}\n{self.advice}" if self.advice else str(self)


# --- configuration and use -----------------------------------------------------------------------------


class ConfigError(CocoonError):
    """A setting, argument or file of ours is wrong."""

    exit_code = 2


class InvalidRequest(CocoonError):
    """The user's request cannot be served as it stands. `param` names the field, as OpenAI's API does."""

    blame = Blame.USER
    exit_code = 2

    def __init__(
        self, message: str, *, param: str | None = None, kind: str | None = None, advice: str | None = None
    ) -> None:
        super().__init__(message, advice=advice)
        self.param = param
        self.kind = kind  # OpenAI's `code`, e.g. "context_length_exceeded"


class ModelNotFound(InvalidRequest):
    """No such model. The message lists near matches."""


# --- protocol --------------------------------------------------------------------------------------------


class LocalProtocolError(CocoonError):
    """We tried to do something that the protocol does not allow now: a bug of ours."""


class RemoteProtocolError(CocoonError):
    """A peer broke the protocol. State is unchanged."""

    blame = Blame.REMOTE


class DecodeError(RemoteProtocolError):
    """Bytes that are not the one canonical encoding of a message we know."""


class LimitExceeded(RemoteProtocolError):
    """A size, depth, count or rate beyond its named bound."""


class BadSignature(RemoteProtocolError):
    """A signature does not verify over the bytes as received."""


class SealError(RemoteProtocolError):
    """A sealed request or chunk does not open. Always this one error, whatever the cause (rule S6)."""


class OfferInvalid(RemoteProtocolError):
    """An offer or beacon that breaks a rule every peer judges alike."""


class StreamBroken(RemoteProtocolError):
    """The stream ended without `End`, out of order, or with a receipt that does not fit."""

    retryable = True


# --- trust -----------------------------------------------------------------------------------------------


class AttestationError(CocoonError):
    """Evidence does not prove what the policy asks for. Nothing secret was sent."""

    blame = Blame.REMOTE
    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        advice: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        """`reason` names the one check that failed, e.g. "gpu.fwid-missing"; stable, for programs."""
        super().__init__(message, advice=advice, retryable=retryable)
        self.reason = reason if reason is not None else self.code


class EvidenceMalformed(AttestationError):
    """Evidence whose bytes do not have the shape, size or nesting that its format prescribes."""


class QuoteInvalid(AttestationError):
    """The quote's bytes, chain or signature are wrong."""


class EventLogInvalid(AttestationError):
    """An event log that does not replay to the quote's RTMRs, or holds what no accepted image measures."""


class GpuReportInvalid(AttestationError):
    """A GPU report's bytes, chain, firmware id, signature, nonce or kind of device are wrong."""


class RimInvalid(AttestationError):
    """A reference-measurement file (RIM) is malformed, unsigned, expired, or not the one for this GPU."""


class CertificateRevoked(AttestationError):
    """A certificate in the evidence is revoked, or its issuer does not vouch for it."""


class RevocationUnknown(AttestationError):
    """The revocation list or OCSP answer that would clear a certificate is missing or not genuine."""


class TcbOutOfDate(AttestationError):
    """The platform's security version is below what the policy accepts."""


class UnknownMeasurement(AttestationError):
    """An image, model or firmware that no accepted release names."""


class StaleEvidence(AttestationError):
    """Evidence, collateral or nonce is too old, too new, or rolled back."""


class BindingMismatch(AttestationError):
    """Statement, keys, offer, CPU and GPU evidence do not belong together. Blames the operator (K4)."""

    advice = "The operator's offer and its machine disagree; choose another provider."


class TrustRefused(AttestationError):
    """The client's policy does not accept this level of evidence."""


# --- market, money, service ------------------------------------------------------------------------------


class PaymentError(CocoonError):
    """Money is missing, locked, or a voucher was refused."""

    exit_code = 4


class ProofInvalid(CocoonError):
    """What a chain server answered does not prove itself, or is no contract of ours. Nothing was believed."""

    blame = Blame.REMOTE


class ChainDisagrees(CocoonError):
    """Chain servers contradict one another, so none is believed until a person has looked."""

    blame = Blame.REMOTE
    advice = "Compare the servers with an explorer, and remove the one that is wrong from the configuration."


class NoProvider(CocoonError):
    """Nobody on the network can serve this request now. The message says what was tried."""

    blame = Blame.NETWORK
    retryable = True


class PriceTooHigh(NoProvider):
    """Providers exist, but all ask more than the caller allows. The message names the cheapest."""

    blame = Blame.USER
    retryable = False
    exit_code = 4


class SpendCapReached(PaymentError):
    """The local spending cap would be exceeded."""

    blame = Blame.USER


class Refused(CocoonError):
    """A provider declined before serving, unbilled. `reason` is the wire name of the refusal."""

    blame = Blame.REMOTE
    retryable = True

    def __init__(self, reason: str, *, retry_after_ms: int = 0) -> None:
        super().__init__(f"the provider refused: {reason}")
        self.reason = reason
        self.retry_after_ms = retry_after_ms


class Unavailable(CocoonError):
    """Network, chain or engine did not answer in time."""

    blame = Blame.NETWORK
    retryable = True


class EngineError(CocoonError):
    """The inference engine failed or cannot do what was asked."""


class ModelFileError(CocoonError):
    """A model file is missing, corrupt, or not the one its manifest names."""


class StoreError(CocoonError):
    """The database cannot be read or written; nothing that depended on it was sent."""
