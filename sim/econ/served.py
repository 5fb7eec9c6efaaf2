"""One client's stream at a provider: the session's machine, and what stands between it, the engine and the till.

What `cocoon.node` does as tasks, here as plain calls: prove the account, admit by money and by slots, run the engine,
let output out as it is paid, tell the engine when nobody wants it any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cocoon.errors import DecodeError
from cocoon.pay.effects import RequestKey
from cocoon.pay.metering import vested_due_nano
from cocoon.pay.refusals import PaymentRefused
from cocoon.pay.voucher import VOUCHER_BYTES
from cocoon.ports import Delta
from cocoon.serve.effects import Disconnect, Effects, Emit, Send
from cocoon.serve.events import (
    AuthenticationReceived,
    HelloReceived,
    OutputDrained,
    RequestCancelled,
    RequestClosed,
    RequestOpened,
    VoucherReceived,
)
from cocoon.serve.provider_session import ProviderSession
from cocoon.serve.reasons import Reason
from cocoon.types import Digest, FinishReason, PeerId, Usage
from sim.econ.engine import Job
from sim.econ.env import Conn, Syn, Wake

if TYPE_CHECKING:
    from sim.econ.provider import ProviderPeer

WORD: Final = "abcd"  # English has about four letters to a token
WRONG_WORD: Final = "WRNG"  # as many of another model's


@dataclass(slots=True)
class _Run:
    """One accepted request."""

    job: Job
    key: RequestKey


class Served:
    """One client's stream at a provider."""

    def __init__(self, peer: ProviderPeer, conn: Conn, client: PeerId) -> None:
        self.peer = peer
        self.conn = conn
        self.account: bytes | None = None
        self._accounts: dict[Digest, bytes] = {}
        self._runs: dict[int, _Run] = {}
        self._admitting: set[int] = set()
        self._is_over = False
        self.machine = ProviderSession(
            network=peer.env.network,
            peer=peer.key.public,
            client=client,
            keys=peer.keys,
            crypto=peer.env.crypto,
            entropy=peer._entropy,
            sign=peer.key.sign,
            verify=peer.env.memo.verify,
            offers=peer.find_offer,
            due=vested_due_nano,
            gate=self,
            now=peer.now,
        )
        self.wake = Wake(peer.env.kernel, self.machine.deadline, self._on_time)
        self.wake.offset_ns = peer.clock_ahead_ns
        conn.listen(peer.number, self._received, self.broken)

    # --- the gate: what may leave ------------------------------------------------------------------------

    def allowed(self, session: Digest, request_id: int, wanted: int, *, now: int) -> int:
        """As many tokens as the payee lets out."""
        return self.peer.till.payee.tokens_allowed(RequestKey(session=session, id=request_id), wanted, now=now)

    def released(self, session: Digest, request_id: int, tokens: int, *, cached_tokens: int, now: int) -> None:
        """They leave."""
        till = self.peer.till
        key = RequestKey(session=session, id=request_id)
        till.did(till.payee.release(key, tokens, cached_tokens=cached_tokens, now=now))
        self.peer.sold.tokens += tokens

    # --- the stream --------------------------------------------------------------------------------------

    def _received(self, message: Any) -> None:
        if self._is_over:
            return
        if message is None:
            self.broken()
        elif isinstance(message, Syn):
            self.conn.send(self.peer.number, Syn(message.number), 40)
        else:
            self.did(self.machine.receive(message, now=self.peer.now))

    def _on_time(self) -> None:
        self.did(self.machine.on_time(now=self.peer.now))

    def did(self, effects: Effects) -> None:
        """Perform what the machine asked for."""
        for effect in effects:
            match effect:
                case Send():
                    self.conn.send(self.peer.number, effect.message, len(effect.data))
                case Emit(event=event):
                    self._on_event(event)
                case Disconnect():
                    self._hang_up()
        self.wake.look()

    def _hang_up(self) -> None:
        if not self._is_over:
            self.conn.close(self.peer.number)
            self._end()

    def broken(self) -> None:
        """The stream is gone."""
        if not self._is_over:
            for effect in self.machine.disconnected(now=self.peer.now):
                if isinstance(effect, Emit):
                    self._on_event(effect.event)
            self._end()

    def forget(self) -> None:
        """The process is gone: nobody is told."""
        self._is_over = True
        self.wake.is_dead = True

    def _end(self) -> None:
        self._is_over = True
        self.wake.is_dead = True
        self.peer.sessions.pop(self.conn, None)
        for request_id in list(self._runs):
            self._cancelled(request_id)
        for session in self._accounts:
            self.peer.till.did(self.peer.till.payee.session_closed(session, now=self.peer.now))

    # --- events ------------------------------------------------------------------------------------------

    def _on_event(self, event: Any) -> None:
        match event:
            case HelloReceived(hello=hello):
                self.peer.env.kernel.after(self.peer.setup.evidence_ns, self._evidence, hello.nonce)
            case AuthenticationReceived():
                self._prove(event.account, partial(self._authenticated, event))
            case RequestOpened():
                self._opened(event)
            case VoucherReceived(voucher=voucher, signature=signature):
                self._take_voucher(voucher, signature)
            case RequestCancelled(id=request_id):
                self._cancelled(request_id)
            case OutputDrained(id=request_id):
                if request_id in self._runs:
                    self.peer.engine.resume(self._runs[request_id].job)
            case RequestClosed(id=request_id, is_ended=is_ended):
                run = self._runs.pop(request_id, None)
                if run is not None:
                    self._money_ended(run.key, is_natural=is_ended)
            case _:
                pass

    def _evidence(self, nonce: bytes) -> None:
        if self._is_over:
            return
        key = self.peer.keys.current(self.peer.now).public
        statement = b"a statement of the simulation" + bytes(200) + nonce + key
        self.did(
            self.machine.evidence(
                statement=statement,
                operator_signature=bytes(64),
                peer_signature=bytes(64),
                sealing_key=key,
                hardware=bytes(self.peer.setup.evidence_bytes),
                now=self.peer.now,
            )
        )

    def _prove(self, account: bytes, then: Callable[[], None]) -> None:
        till = self.peer.till
        if till.payee.needs_proof(account, now=self.peer.now):
            till.prove(account, then)
        else:
            then()

    def _authenticated(self, event: AuthenticationReceived) -> None:
        if self._is_over:
            return
        now = self.peer.now
        try:
            self.peer.till.payee.authenticate(
                event.session, account=event.account, voucher_key=event.voucher_key, payout=event.payout, now=now
            )
        except PaymentRefused as refused:
            self.did(self.machine.unauthenticated(session=event.session, detail=refused.fault.value, now=now))
            return
        self.account = event.account
        self._accounts[event.session] = event.account
        self.did(self.machine.authenticated(session=event.session, account=event.account, now=now))

    def _take_voucher(self, voucher: bytes, signature: bytes) -> bool:
        till = self.peer.till
        session = next(reversed(self._accounts), None)
        if session is None:
            return False
        try:
            till.did(till.payee.receive_voucher(session, voucher, signature, now=self.peer.now))
        except (PaymentRefused, DecodeError):
            self._hang_up()
            return False
        return True

    def _opened(self, event: RequestOpened) -> None:
        if event.voucher and event.session in self._accounts:
            self._take_voucher(event.voucher[:VOUCHER_BYTES], event.voucher[VOUCHER_BYTES:])
        if self._is_over:
            return
        if not event.offer.is_paid or self.account is None:
            self._admit(event)
            return
        self._admitting.add(event.id)
        self._prove(self.account, partial(self._admit_if_waiting, event))

    def _admit_if_waiting(self, event: RequestOpened) -> None:
        if not self._is_over and event.id in self._admitting:
            self._admitting.discard(event.id)
            self._admit(event)

    def _admit(self, event: RequestOpened) -> None:
        peer, now = self.peer, self.peer.now
        asked = json.loads(event.body)
        retry_ms = peer.engine.refuses(event.wait_ms_max)
        if retry_ms is not None:
            peer.sold.refused += 1
            self.did(self.machine.refuse(event.id, Reason.BUSY, retry_after_ms=retry_ms, now=now))
            return
        prompt = min(peer.on_bill(asked["prompt"], event.header.input_tokens_max), event.header.input_tokens_max)
        key = RequestKey(session=event.session, id=event.id)
        if event.offer.is_paid:
            try:
                peer.till.did(peer.till.payee.admit(key, prices=event.offer.prices, input_tokens=prompt, now=now))
            except PaymentRefused as refused:
                detail = f"{refused.fault.value} {refused.ceiling_nano}"
                self.did(self.machine.refuse(event.id, Reason.PAYMENT_REQUIRED, detail=detail, now=now))
                return
        place = peer.engine.place()
        self.did(self.machine.accept(event.id, prompt_tokens=prompt, queue_position=place, now=now))
        tokens = min(asked["tokens"], event.header.output_tokens_max)
        job = Job(asked["prompt"], tokens, partial(self._tokens, event.id), partial(self._over, event.id))
        job.extra["output_tokens_max"] = event.header.output_tokens_max
        job.extra["request"] = asked.get("request", 0)
        self._runs[event.id] = _Run(job, key)
        peer.sold.requests += 1
        peer.sold.prompt_tokens += prompt
        peer.engine.submit(job)

    # --- the engine --------------------------------------------------------------------------------------

    def _tokens(self, request_id: int, job: Job, count: int) -> None:
        if self._is_over or request_id not in self._runs:
            return
        first = job.made - count
        ids = tuple(range(first, job.made))
        text = (WRONG_WORD if job.is_wrong else WORD) * count
        self.did(self.machine.output(request_id, Delta(text=text, token_ids=ids), now=self.peer.now))
        if request_id in self._runs and self.machine.is_full(request_id):
            self.peer.engine.pause(job)

    def _over(self, request_id: int, job: Job, why: str | None) -> None:
        if self._is_over or request_id not in self._runs:
            return
        now = self.peer.now
        if why is None:
            usage = Usage(prompt_tokens=job.prompt_tokens, completion_tokens=job.made)
            self.did(self.machine.finish(request_id, FinishReason.STOP, usage, now=now))
            return
        run = self._runs.pop(request_id)
        self._money_ended(run.key, is_natural=False, is_our_fault=True)
        self.did(self.machine.fail(request_id, Reason.ENGINE_FAILED, now=now))

    def _cancelled(self, request_id: int) -> None:
        self._admitting.discard(request_id)
        run = self._runs.pop(request_id, None)
        if run is not None:
            self.peer.engine.cancel(run.job)
            self._money_ended(run.key, is_natural=False)

    def _money_ended(self, key: RequestKey, *, is_natural: bool, is_our_fault: bool = False) -> None:
        till = self.peer.till
        effects = till.payee.ended(key, is_natural=is_natural, is_our_fault=is_our_fault, now=self.peer.now)
        till.did(effects)

    def unblock(self) -> None:
        """Payment came: what waited may leave."""
        for session in self._accounts:
            self.did(self.machine.paid(session, now=self.peer.now))

    def reserve(self, ceiling_nano: int) -> None:
        """Ask the client for a reservation."""
        if not self._is_over:
            self.did(self.machine.reserve(ceiling_nano))

    def stop(self, requests: tuple[RequestKey, ...], why: str) -> None:
        """These are not paid for."""
        for key in requests:
            run = self._runs.get(key.id)
            if run is not None and run.key == key:
                del self._runs[key.id]
                self.peer.engine.cancel(run.job)
                self.did(self.machine.fail(key.id, Reason.PAYMENT_REQUIRED, detail=why, now=self.peer.now))
