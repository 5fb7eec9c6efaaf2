"""What the two session machines cost per token, without any network.

Run it with `python tests/benchmarks/bench_session_machines.py`.

16 streams of 50 tokens/s: every 20 ms each stream gives one token, one frame carries all 16. Counted is CPU time of
this process for both ends together: queueing, sealing, encoding, decoding, opening, receipts and their checks.
Two engines' habits are shown: all streams in one step (batched), and each at its own moment (spread).
`--profile` prints where the time goes.
"""

from __future__ import annotations

import cProfile
import hashlib
import os
import pstats
import sys
import time

import nacl.signing

from cocoon.pay.metering import vested_due_nano
from cocoon.ports.engine import Delta
from cocoon.serve.client_session import ClientSession
from cocoon.serve.effects import Effects, Emit, Send
from cocoon.serve.events import OfferFacts, OutputReceived, RequestEnded
from cocoon.serve.provider_session import ProviderSession
from cocoon.serve.sealing import SUITE_X25519, HpkeCrypto, SealingKeys
from cocoon.types import MILLISECOND_NS, SECOND_NS, FinishReason, Network, PeerId, Prices, Usage
from cocoon.wire.signing import verify

STREAMS = 16
TOKENS = 1_024
START_NS = 1_795_000_000 * SECOND_NS


class Pair:
    """Both ends, joined without a network."""

    def __init__(self) -> None:
        self.now = START_NS
        key = nacl.signing.SigningKey.generate()
        crypto = HpkeCrypto()
        keys = SealingKeys(crypto, os.urandom, now=self.now)
        self.offer = OfferFacts(
            digest=hashlib.sha256(b"offer").digest(),
            model=hashlib.sha256(b"model").digest(),
            prices=Prices(input_nano=0, cached_input_nano=0, output_nano=0),
            context_tokens_max=8_192,
            output_tokens_max=4_096,
            payout=bytes(32),
            consent=bytes(32),
            expiry_ns=self.now + 3_600 * SECOND_NS,
        )
        client = PeerId("12D3KooWEqnTdgqHnkkwarSrJjeMP2ZJiADWLYADaNvUb6SQNyPF")
        self.provider = ProviderSession(
            network=Network.DEVNET,
            peer=bytes(key.verify_key),
            client=client,
            keys=keys,
            crypto=crypto,
            entropy=os.urandom,
            sign=lambda message: key.sign(message).signature,
            verify=verify,
            due=vested_due_nano,
            offers={self.offer.digest: self.offer}.get,
            now=self.now,
        )
        self.client = ClientSession(
            network=Network.DEVNET,
            client=client,
            peer=bytes(key.verify_key),
            crypto=crypto,
            entropy=os.urandom,
            verify=verify,
            due=vested_due_nano,
            now=self.now,
        )
        self.outputs = self.ended = self.frames = 0
        self.to_provider(self.client.start(now=self.now))
        public = keys.current(self.now).public
        self.to_client(
            self.provider.evidence(
                statement=b"S", operator_signature=bytes(64), peer_signature=bytes(64), sealing_key=public, now=self.now
            )
        )
        self.client.trust(sealing_suite=SUITE_X25519, sealing_key=public, now=self.now)

    def to_provider(self, effects: Effects) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.provider.receive_bytes(effect.data, now=self.now)

    def to_client(self, effects: Effects) -> None:
        for effect in effects:
            if not isinstance(effect, Send):
                continue
            self.frames += 1
            for back in self.client.receive_bytes(effect.data, now=self.now):
                if isinstance(back, Emit) and isinstance(back.event, OutputReceived):
                    self.outputs += 1
                    event = back.event
                    self.to_provider(self.client.consumed(event.id, event.sealed_bytes, now=self.now))
                elif isinstance(back, Emit) and isinstance(back.event, RequestEnded):
                    self.ended += 1

    def flush(self) -> None:
        deadline = self.provider.deadline()
        if deadline is not None and deadline <= self.now:
            self.to_client(self.provider.on_time(now=self.now))

    def open(self) -> int:
        request_id, effects = self.client.open(
            offer=self.offer,
            endpoint="chat.completions",
            body=b'{"messages":[{"role":"user","content":"Hello"}],"max_tokens":1024}',
            cache_tag=bytes(16),
            input_tokens_max=256,
            output_tokens_max=TOKENS,
            cost_max_nano=0,
            wait_ms_max=1_000,
            now=self.now,
        )
        self.to_provider(effects)
        self.to_client(self.provider.accept(request_id, prompt_tokens=12, now=self.now))
        return request_id


def run(*, spread: bool) -> tuple[float, Pair]:
    """CPU seconds for all tokens."""
    pair = Pair()
    ids = [pair.open() for _ in range(STREAMS)]
    delta = Delta(text=" token", token_ids=(1_234,))
    step_ns = 20 * MILLISECOND_NS // STREAMS if spread else 0
    start = time.process_time()
    for _ in range(TOKENS):
        for request_id in ids:
            pair.to_client(pair.provider.output(request_id, delta, now=pair.now))
            if spread:
                pair.now += step_ns
                pair.flush()
        if not spread:
            pair.flush()
            pair.now += 20 * MILLISECOND_NS
    usage = Usage(prompt_tokens=12, completion_tokens=TOKENS)
    for request_id in ids:
        pair.to_client(pair.provider.finish(request_id, FinishReason.LENGTH, usage, now=pair.now))
    pair.now += 20 * MILLISECOND_NS
    pair.flush()
    used = time.process_time() - start
    assert pair.ended == STREAMS
    return used, pair


def main() -> None:
    """Print one line per habit."""
    if "--profile" in sys.argv:
        profile = cProfile.Profile()
        profile.enable()
        run(spread=False)
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return
    for spread in (False, True):
        used, pair = min((run(spread=spread) for _ in range(3)), key=lambda one: one[0])
        tokens = STREAMS * TOKENS
        print(
            f"{'spread' if spread else 'batched':8} {used / tokens * 1e6:6.1f} us CPU per token, both ends; "
            f"{tokens} tokens in {pair.outputs} chunks and {pair.frames} messages"
        )


if __name__ == "__main__":
    main()
