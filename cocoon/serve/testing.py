"""Two real session machines and a wire between them that a test holds in its hands.

The wire is two queues of frames. `run` delivers everything and plays the drivers' part: it answers every Hello with
a statement, trusts it, and accepts what opens unless told otherwise. Keys and nonces come from a counter, so a
failure repeats; only HPKE's own randomness differs from run to run. For tests and simulators; no node uses this.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import TypeVar

import nacl.signing

from ..ports.engine import Delta
from ..types import SECOND_NS, Digest, Nano, Network, PeerId, Prices, due_nano
from ..wire.signing import verify
from .client_session import ClientSession
from .effects import Disconnect, Effects, Emit, Send, decode_session
from .events import Event, EvidenceReceived, HelloReceived, OfferFacts, OutputReceived, RequestOpened
from .provider_session import ProviderSession
from .sealing import SUITE_X25519, Crypto, HpkeCrypto, SealingKeys

message_in = decode_session
"""What a frame on the wire says."""

START_NS = 1_795_000_000 * SECOND_NS
CLIENT = PeerId("12D3KooWEqnTdgqHnkkwarSrJjeMP2ZJiADWLYADaNvUb6SQNyPF")
EventT = TypeVar("EventT")


class CountingEntropy:
    """Bytes that look random, never repeat, and are the same in every run."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._count = 0

    def __call__(self, count: int, /) -> bytes:
        """The next `count` bytes."""
        self._count += 1
        return hashlib.shake_128(self._seed + self._count.to_bytes(8, "big")).digest(count)


def due_for_all(prices: Prices, *, input_tokens: int, cached_tokens: int, output_tokens: int, is_ended: bool) -> Nano:
    """A rule without vesting: everything counted is due, ended or not."""
    return due_nano(prices, input_tokens=input_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens)


class OpenGate:
    """Lets paid tokens leave, all of them or up to `tokens_max`, and counts them."""

    def __init__(self) -> None:
        self.tokens = 0
        self.tokens_max: int | None = None

    def allowed(self, session: Digest, request_id: int, wanted: int, *, now: int) -> int:
        """What is left of the bound."""
        return wanted if self.tokens_max is None else min(wanted, self.tokens_max - self.tokens)

    def released(self, session: Digest, request_id: int, tokens: int, *, cached_tokens: int, now: int) -> None:
        """Counted."""
        self.tokens += tokens


def offer_facts(*, paid: bool = False, seed: str = "offer", now: int = START_NS) -> OfferFacts:
    """An offer of a model with 8,192 tokens of context, free unless `paid`."""
    price = 1_000_000 if paid else 0
    return OfferFacts(
        digest=hashlib.sha256(seed.encode()).digest(),
        model=hashlib.sha256(b"model").digest(),
        prices=Prices(input_nano=price, cached_input_nano=price // 2, output_nano=2 * price, request_nano=0),
        context_tokens_max=8_192,
        output_tokens_max=4_096,
        payout=hashlib.sha256(b"payout").digest(),
        consent=hashlib.sha256(b"consent").digest(),
        expiry_ns=now + 7_200 * SECOND_NS,
    )


class SessionPair:
    """A client's and a provider's machine, and the frames between them."""

    def __init__(
        self,
        *,
        offer: OfferFacts | None = None,
        crypto: Crypto | None = None,
        keys: SealingKeys | None = None,
        seed: str = "pair",
        now: int = START_NS,
    ) -> None:
        self.now = now
        self.offer = offer_facts(now=now) if offer is None else offer
        self.crypto: Crypto = HpkeCrypto() if crypto is None else crypto
        self.signing_key = nacl.signing.SigningKey(hashlib.sha256(b"provider").digest())
        self.peer = bytes(self.signing_key.verify_key)
        self.gate = OpenGate()
        self.keys = SealingKeys(self.crypto, CountingEntropy(seed + "-keys"), now=now) if keys is None else keys
        self.provider = ProviderSession(
            network=Network.DEVNET,
            peer=self.peer,
            client=CLIENT,
            keys=self.keys,
            crypto=self.crypto,
            entropy=CountingEntropy(seed + "-provider"),
            sign=lambda message: self.signing_key.sign(message).signature,
            verify=verify,
            due=due_for_all,
            gate=self.gate,
            offers={self.offer.digest: self.offer}.get,
            now=now,
        )
        self.client = ClientSession(
            network=Network.DEVNET,
            client=CLIENT,
            peer=self.peer,
            crypto=self.crypto,
            entropy=CountingEntropy(seed + "-client"),
            verify=verify,
            due=due_for_all,
            now=now,
        )
        self.to_provider: deque[bytes] = deque()
        self.to_client: deque[bytes] = deque()
        self.provider_events: list[Event] = []
        self.client_events: list[Event] = []
        self.provider_hung_up: Disconnect | None = None
        self.client_hung_up: Disconnect | None = None
        self.trusts = True  # answer EvidenceReceived with trust
        self.accepts = True  # answer RequestOpened with accept
        self.reads = True  # answer OutputReceived with consumed

    # --- drivers -----------------------------------------------------------------------------------------

    def client_did(self, effects: Effects) -> None:
        """Perform the client's effects."""
        for effect in effects:
            match effect:
                case Send():
                    self.to_provider.append(effect.data)
                case Emit(event=event):
                    self.client_events.append(event)
                    if isinstance(event, EvidenceReceived) and self.trusts:
                        key = self.keys.current(self.now).public
                        self.client_did(self.client.trust(sealing_suite=SUITE_X25519, sealing_key=key, now=self.now))
                    elif isinstance(event, OutputReceived) and self.reads:
                        self.client_did(self.client.consumed(event.id, event.sealed_bytes, now=self.now))
                case Disconnect():
                    self.client_hung_up = effect

    def provider_did(self, effects: Effects) -> None:
        """Perform the provider's effects."""
        for effect in effects:
            match effect:
                case Send():
                    self.to_client.append(effect.data)
                case Emit(event=event):
                    self.provider_events.append(event)
                    if isinstance(event, HelloReceived):
                        self.provider_did(
                            self.provider.evidence(
                                statement=b"statement for " + event.hello.nonce,
                                operator_signature=bytes(64),
                                peer_signature=bytes(64),
                                sealing_key=self.keys.current(self.now).public,
                                now=self.now,
                            )
                        )
                    elif isinstance(event, RequestOpened) and self.accepts:
                        self.provider_did(self.provider.accept(event.id, prompt_tokens=12, now=self.now))
                case Disconnect():
                    self.provider_hung_up = effect

    # --- the wire ----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Call `on_time` of both while a deadline has passed."""
        for _ in range(1_000):
            client_at, provider_at = self.client.deadline(), self.provider.deadline()
            if client_at is not None and client_at <= self.now:
                self.client_did(self.client.on_time(now=self.now))
            elif provider_at is not None and provider_at <= self.now:
                self.provider_did(self.provider.on_time(now=self.now))
            else:
                return
        raise AssertionError("a machine asks to be called again and again")

    def deliver(self) -> bool:
        """Carry one frame each way, if there is one."""
        moved = False
        if self.to_provider:
            moved = True
            self.provider_did(self.provider.receive_bytes(self.to_provider.popleft(), now=self.now))
        if self.to_client:
            moved = True
            self.client_did(self.client.receive_bytes(self.to_client.popleft(), now=self.now))
        return moved

    def run(self, for_ns: int = 0) -> None:
        """Deliver everything; let `for_ns` pass, stopping at every deadline on the way."""
        end = self.now + for_ns
        while True:
            self.tick()
            while self.deliver():
                self.tick()
            deadlines = [at for at in (self.client.deadline(), self.provider.deadline()) if at is not None]
            if not deadlines or min(deadlines) > end:
                break
            self.now = max(self.now, min(deadlines))
        self.now = end

    # --- shortcuts ---------------------------------------------------------------------------------------

    def start(self) -> SessionPair:
        """Say Hello and trust the answer."""
        self.client_did(self.client.start(now=self.now))
        self.run()
        return self

    def open(
        self,
        *,
        body: bytes = b'{"messages":[{"role":"user","content":"Hello"}],"max_tokens":64}',
        output_tokens_max: int = 1_024,
        credit_bytes: int = 128 * 1024,
        cost_max_nano: int = 0,
        account: bytes = b"",
    ) -> int:
        """Send one request; nothing is delivered yet."""
        request_id, effects = self.client.open(
            offer=self.offer,
            endpoint="chat.completions",
            body=body,
            cache_tag=bytes(16),
            input_tokens_max=256,
            output_tokens_max=output_tokens_max,
            cost_max_nano=cost_max_nano,
            wait_ms_max=1_000,
            account=account,
            credit_bytes=credit_bytes,
            now=self.now,
        )
        self.client_did(effects)
        return request_id

    def output(self, request_id: int, text: str, *token_ids: int) -> None:
        """The engine made this."""
        self.provider_did(self.provider.output(request_id, Delta(text=text, token_ids=token_ids), now=self.now))

    def client_saw(self, kind: type[EventT]) -> list[EventT]:
        """Events of this kind at the client, in order."""
        return [event for event in self.client_events if isinstance(event, kind)]

    def provider_saw(self, kind: type[EventT]) -> list[EventT]:
        """Events of this kind at the provider, in order."""
        return [event for event in self.provider_events if isinstance(event, kind)]

    def text(self, request_id: int) -> str:
        """What the client's reader has of this request."""
        return "".join(event.delta.text for event in self.client_saw(OutputReceived) if event.id == request_id)
