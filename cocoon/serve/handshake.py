"""What a Hello establishes, at both ends: evidence, session id, sealing key, and the client's account (S1, S2, K4, K5).

A new Hello on the same stream makes a new context; requests in flight keep theirs, and the provider honours the one
before for as long as its key has grace, because an Open may cross the Evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import BindingMismatch, DecodeError, LimitExceeded, LocalProtocolError, StreamBroken
from ..types import Digest, Network, PeerId
from ..wire.codec import decode_as, encode
from ..wire.messages import VERSION, Authenticate, Evidence, Hello, SessionAuthentication
from . import bounds, sealing
from .events import AuthenticationReceived, EvidenceReceived
from .receipts import Sign, Verify


@dataclass(slots=True, kw_only=True)
class ProviderContext:
    """One Hello's outcome at the provider."""

    session: Digest
    sealing_key: bytes  # public half
    ends_ns: int | None  # set when a newer one replaced it
    claimed_account: bytes | None = None  # V signed for it (S2)
    account: bytes | None = None  # and the role confirmed that V is the account's
    refusal: str | None = None  # or it did not, and why


class ProviderHandshake:
    """The provider's contexts, by the first bytes of their session ids."""

    def __init__(
        self,
        *,
        network: Network,
        peer: bytes,
        client: PeerId,
        keys: sealing.SealingKeys,
        crypto: sealing.Crypto,
        entropy: Callable[[int], bytes],
        verify: Verify,
    ) -> None:
        self._network = network
        self._peer = peer
        self._client = client
        self._keys = keys
        self._crypto = crypto
        self._entropy = entropy
        self._verify = verify
        self._hello: Hello | None = None  # unanswered
        self._hello_times: list[int] = []
        self._contexts: dict[bytes, ProviderContext] = {}

    @property
    def has_context(self) -> bool:
        """Whether evidence was ever sent on this stream."""
        return bool(self._contexts)

    def hello(self, hello: Hello, now: int) -> None:
        """Remember it. Raises `DecodeError` (another network) or `LimitExceeded`: evidence is dear to make (S6)."""
        if hello.version != VERSION or hello.network != int(self._network):
            raise DecodeError("a hello for another version or network")
        times = [at for at in self._hello_times if now - at < bounds.HELLO_AGAIN_NS]
        if self._hello is not None or len(times) >= bounds.HELLOS_PER_PERIOD_MAX:
            raise LimitExceeded("too many hellos")
        self._hello_times = [*times, now]
        self._hello = hello

    def evidence(
        self,
        *,
        statement: bytes,
        operator_signature: bytes,
        peer_signature: bytes,
        sealing_key: bytes,
        hardware: bytes,
        now: int,
    ) -> Evidence:
        """The answer to the Hello, and its context."""
        hello = self._hello
        if hello is None:
            raise LocalProtocolError("evidence without a hello")
        provider_nonce = self._entropy(32)
        session = sealing.session_id(
            statement=statement,
            client=self._client,
            peer=self._peer,
            client_nonce=hello.client_nonce,
            provider_nonce=provider_nonce,
        )
        self._hello = None
        live = {
            prefix: context
            for prefix, context in self._contexts.items()
            if context.ends_ns is None or now < context.ends_ns
        }
        for context in live.values():
            if context.ends_ns is None:
                context.ends_ns = now + bounds.KEY_GRACE_NS
        fresh = ProviderContext(session=session, sealing_key=sealing_key, ends_ns=None)
        self._contexts = {**live, session[: sealing.SESSION_PREFIX_BYTES]: fresh}
        return Evidence(
            statement=statement,
            operator_signature=operator_signature,
            peer_signature=peer_signature,
            provider_nonce=provider_nonce,
            hardware=hardware,
        )

    def find(self, prefix: bytes, now: int) -> tuple[ProviderContext, sealing.SealingKey] | None:
        """The live context with that prefix, and its key while it is not erased."""
        context = self._contexts.get(prefix)
        if context is None or (context.ends_ns is not None and now >= context.ends_ns):
            return None
        key = self._keys.find(context.sealing_key, now)
        return None if key is None else (context, key)

    def authenticate(self, message: Authenticate, now: int) -> AuthenticationReceived | None:
        """V's signature over the session, checked. None for a context that is gone: its Opens are refused as stale.

        Raises `SealError`, `DecodeError`, `BadSignature`, or `LimitExceeded` the second time.
        """
        found = self.find(message.session_prefix, now)
        if found is None:
            return None
        context, key = found
        if context.claimed_account is not None:
            raise LimitExceeded("authenticated twice")
        plaintext = self._crypto.open(key.private, message.sealed, sealing.authentication_info(context.session))
        claim = decode_as(plaintext, SessionAuthentication, bytes_max=512)
        signed = sealing.authentication_bytes(self._network, context.session, claim.account, claim.payout)
        self._verify(claim.voucher_key, claim.signature, signed)
        context.claimed_account = claim.account
        return AuthenticationReceived(
            session=context.session, account=claim.account, voucher_key=claim.voucher_key, payout=claim.payout
        )

    def authenticated(self, session: Digest, account: bytes) -> None:
        """The role confirmed the claim."""
        context = self._contexts.get(session[: sealing.SESSION_PREFIX_BYTES])
        if context is None or context.session != session:
            return  # replaced meanwhile
        if context.claimed_account != account:
            raise LocalProtocolError("this session did not claim that account")
        context.account = account

    def unauthenticated(self, session: Digest, detail: str) -> None:
        """The role did not confirm the claim, and says why."""
        context = self._contexts.get(session[: sealing.SESSION_PREFIX_BYTES])
        if context is not None and context.session == session:
            context.refusal = detail

    def is_authenticating(self, prefix: bytes) -> bool:
        """Whether the role has yet to say if this context's account is good."""
        context = self._contexts.get(prefix)
        return (
            context is not None
            and context.claimed_account is not None
            and context.account is None
            and context.refusal is None
        )

    def refusal(self, prefix: bytes) -> str:
        """Why this context's account is not good for payment; empty where nothing was said."""
        context = self._contexts.get(prefix)
        return "" if context is None else context.refusal or ""

    def clear(self) -> None:
        """The stream is over."""
        self._hello = None
        self._contexts.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientContext:
    """One trusted statement at the client."""

    session: Digest
    sealing_key: bytes

    @property
    def prefix(self) -> bytes:
        """How messages name it."""
        return self.session[: sealing.SESSION_PREFIX_BYTES]


class ClientHandshake:
    """The client's one current context, and the Hello that will replace it."""

    def __init__(
        self, *, network: Network, client: PeerId, peer: bytes, crypto: sealing.Crypto, entropy: Callable[[int], bytes]
    ) -> None:
        self._network = network
        self._client = client
        self._peer = peer
        self._crypto = crypto
        self._entropy = entropy
        self._hello: Hello | None = None  # not yet trusted
        self._answer_by_ns: int | None = None
        self._evidence: Evidence | None = None  # what `trust` is about
        self._hello_times: list[int] = []
        self._again_ns: int | None = None
        self.context: ClientContext | None = None

    @property
    def has_started(self) -> bool:
        """Whether a Hello was sent."""
        return bool(self._hello_times)

    @property
    def is_pending(self) -> bool:
        """Whether a Hello is on its way to being trusted."""
        return self._hello is not None

    def hello(self, now: int) -> Hello:
        """A fresh Hello to send. Raises `StreamBroken` when the provider makes us ask too often."""
        times = [at for at in self._hello_times if now - at < bounds.HELLO_AGAIN_NS]
        if len(times) >= bounds.HELLOS_PER_PERIOD_MAX:
            raise StreamBroken("the provider keeps refusing its own fresh key")
        self._hello_times = [*times, now]
        self._hello = Hello(
            version=VERSION, network=int(self._network), nonce=self._entropy(32), client_nonce=self._entropy(32)
        )
        self._answer_by_ns = now + bounds.HELLO_TIMEOUT_NS
        return self._hello

    def evidence(self, message: Evidence) -> EvidenceReceived:
        """The provider's answer. Raises `StreamBroken` when nobody asked."""
        if self._hello is None or self._evidence is not None:
            raise StreamBroken("evidence that was not asked for")
        self._evidence = message
        self._answer_by_ns = None
        return EvidenceReceived(
            nonce=self._hello.nonce,
            statement=message.statement,
            operator_signature=message.operator_signature,
            peer_signature=message.peer_signature,
            hardware=message.hardware,
        )

    def trust(self, *, sealing_suite: int, sealing_key: bytes, now: int) -> None:
        """The evidence passed. Raises `BindingMismatch` for a suite that we cannot seal to."""
        if self._evidence is None or self._hello is None:
            raise LocalProtocolError("trust without evidence")
        if sealing_suite != sealing.SUITE_X25519 or len(sealing_key) != sealing.KEY_BYTES:
            raise BindingMismatch("the statement names a sealing suite that this client does not have")
        session = sealing.session_id(
            statement=self._evidence.statement,
            client=self._client,
            peer=self._peer,
            client_nonce=self._hello.client_nonce,
            provider_nonce=self._evidence.provider_nonce,
        )
        self.context = ClientContext(session=session, sealing_key=sealing_key)
        self._evidence = self._hello = None
        self._again_ns = now + bounds.HELLO_AGAIN_NS

    def authenticate(self, *, account: bytes, payout: bytes, voucher_key: bytes, sign: Sign) -> Authenticate:
        """V's signature over the session, sealed to E (S2)."""
        context = self.need()
        signature = sign(sealing.authentication_bytes(self._network, context.session, account, payout))
        claim = SessionAuthentication(account=account, voucher_key=voucher_key, payout=payout, signature=signature)
        sealed = self._crypto.seal(context.sealing_key, encode(claim), sealing.authentication_info(context.session))
        return Authenticate(session_prefix=context.prefix, sealed=sealed)

    def need(self) -> ClientContext:
        """The context; without one, asking for it is our bug."""
        if self.context is None:
            raise LocalProtocolError("no statement of this provider is trusted yet")
        return self.context

    def is_late(self, now: int) -> bool:
        """Whether the provider should have answered by now."""
        return self._answer_by_ns is not None and now >= self._answer_by_ns

    def is_due(self, now: int) -> bool:
        """Whether it is time for another Hello."""
        return self._hello is None and self._again_ns is not None and now >= self._again_ns

    def deadline(self) -> int | None:
        """When one of the two above becomes true."""
        if self._answer_by_ns is not None:
            return self._answer_by_ns
        return self._again_ns if self._hello is None else None
