"""The one trio loop that drives a payment machine (`Payee`, `Payer`): keep its records, prove accounts, keep its time.

Both ends of the market use it. The machine decides everything; here is only the store, the chain and the clock.
`Persist` goes to a queue that one task empties: whatever has come while a commit was under way is written together by
the next one, and only then the machine is told `persisted`, from which everything follows that had to wait. A `Submit`
waits in the same queue for the record that came before it.

Bounds: the queue holds at most one voucher per ledger, which the machines see to; `PROVING_MAX` look-ups and
`SUBMITTING_MAX` wallet messages run at once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from .errors import CocoonError, StoreError, Unavailable
from .pay.effects import Effect, Effects, Emit, Persist, Prove, Send, Submit
from .pay.refusals import PaymentRefused
from .pay.voucher import SignedVoucher
from .ports import Clock, PaymentRecord, Store
from .ports.chain import Chain, SpendingAccount
from .types import MILLISECOND_NS, SECOND_NS

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # what the stubs of trio know that libp2p brings

log = logging.getLogger("cocoon.pay")

PROVING_MAX: Final = 8
PROVE_TIMEOUT_S: Final = 20.0  # the adapter asks several servers in turn; who waits for an answer may wait so long
SUBMITTING_MAX: Final = 4  # a message in a dead chain takes minutes to be given up; the wallet sends one at a time
EARLY_NS: Final = 300 * MILLISECOND_NS  # a deadline that moves within this is found without being told


class PaymentMachine(Protocol):
    """What the two machines have in common."""

    def account_proven(self, state: SpendingAccount, *, now: int) -> Effects:
        """The chain's word on an account. Raises `PaymentRefused`."""
        ...

    def persisted(self, records: tuple[PaymentRecord, ...], *, now: int) -> Effects:
        """These are on disk."""
        ...

    def persist_failed(self, records: tuple[PaymentRecord, ...], *, now: int) -> Effects:
        """They are not."""
        ...

    def deadline(self) -> int | None:
        """When `on_time` has work, in ns."""
        ...

    def on_time(self, *, now: int) -> Effects:
        """Do what is due."""
        ...


class PaymentDriver:
    """Drives `machine` while `run` runs. `perform` may be called from any task of the program.

    `unreachable(account)` is the machine's word for a failed look-up; `told` gets `Send` and `Emit`; `submit` sends
    claims and `submit_failed` says that they did not arrive.
    """

    def __init__(
        self,
        machine: PaymentMachine,
        *,
        store: Store,
        chain: Chain,
        clock: Clock,
        unreachable: Callable[[bytes], Effects],
        told: Callable[[Send | Emit], None],
        submit: Callable[[tuple[SignedVoucher, ...]], Awaitable[None]] | None = None,
        submit_failed: Callable[[tuple[SignedVoucher, ...]], Effects] | None = None,
    ) -> None:
        self._machine = machine
        self._store = store
        self._chain = chain
        self._clock = clock
        self._unreachable = unreachable
        self._told = told
        self._submit = submit
        self._submit_failed = submit_failed
        self._waiting: list[Persist | Submit] = []
        self._has_waiting = trio.Event()
        self._later: list[Effect] = []
        self._is_saving = False
        self._is_kept = trio.Event()
        self._moved = trio.Event()
        self._slept_to: int | None = 0
        self._proving: dict[bytes, trio.Event] = {}
        self._proving_limit = trio.CapacityLimiter(PROVING_MAX)
        self._submitting = 0
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """All tasks, until cancelled. A record that is being written then is on disk or not, as after a crash."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep)
            nursery.start_soon(self._keep_time)
            task_status.started()

    # --- from the role -----------------------------------------------------------------------------------

    def perform(self, effects: Effects) -> None:
        """Carry out what the machine asked for, in order."""
        for effect in effects:
            match effect:
                case Persist() | Submit():
                    self._waiting.append(effect)
                    self._has_waiting.set()
                case Prove(account=account):
                    self._look_up(account)
                case Send() | Emit():
                    self._told(effect)
        self.touch()

    def perform_later(self, effects: Effects) -> None:
        """The same, a moment later: for calls from inside another machine's step."""
        if effects:
            self._later.extend(effects)
            self._moved.set()

    def touch(self) -> None:
        """The machine was called; its deadline may have come nearer."""
        if self._slept_to is None or self._slept_to - self._clock.now() > EARLY_NS:
            self._moved.set()

    async def prove(self, account: bytes) -> None:
        """Return once the machine has the chain's word on this account, or knows that there is none."""
        await self._look_up(account).wait()

    async def wait_kept(self) -> None:
        """Return once everything that was asked to be persisted is on disk, and its consequences were performed."""
        while self._waiting or self._is_saving:
            await self._is_kept.wait()

    # --- tasks -------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            while not self._waiting:
                self._has_waiting = trio.Event()
                await self._has_waiting.wait()
            batch, self._waiting = self._waiting, []
            self._is_saving, self._is_kept = True, trio.Event()
            records = tuple(record for effect in batch if isinstance(effect, Persist) for record in effect.records)
            claims = [effect.claims for effect in batch if isinstance(effect, Submit)]
            try:
                if records:
                    await self._store.save_payments(records)
            except StoreError as error:
                log.error("payments.unsaved", extra={"reason": str(error)})
                self.perform(self._machine.persist_failed(records, now=self._clock.now()))
                for each in claims:
                    self._not_submitted(each)
            else:
                self.perform(self._machine.persisted(records, now=self._clock.now()))
                for each in claims:
                    self._start_submitting(each)
            self._is_saving = False
            self._is_kept.set()

    async def _keep_time(self) -> None:
        while True:
            later, self._later = self._later, []
            self.perform(tuple(later))
            due = self._slept_to = self._machine.deadline()
            self._moved = trio.Event()
            if self._later:
                continue
            seconds = float("inf") if due is None else max(0, due - self._clock.now()) / SECOND_NS
            with trio.move_on_after(seconds):
                await self._moved.wait()
            now = self._clock.now()
            due = self._machine.deadline()
            if due is not None and due <= now:
                self.perform(self._machine.on_time(now=now))

    # --- the chain ---------------------------------------------------------------------------------------

    def _look_up(self, account: bytes) -> trio.Event:
        """Start a look-up unless one runs; its end."""
        running = self._proving.get(account)
        if running is None:
            assert self._nursery is not None, "run() comes first"
            running = self._proving[account] = trio.Event()
            self._nursery.start_soon(self._prove, account, running)
        return running

    async def _prove(self, account: bytes, ended: trio.Event) -> None:
        state: SpendingAccount | None = None
        try:
            async with self._proving_limit:
                with trio.move_on_after(PROVE_TIMEOUT_S) as patience:
                    state = await self._chain.spending_account(account)
                if patience.cancelled_caught:
                    raise Unavailable(f"no answer within {PROVE_TIMEOUT_S:.0f} s")
        except CocoonError as error:
            log.warning("account.unproven", extra={"account": account.hex(), "reason": str(error)})
        try:
            if state is None:
                self.perform(self._unreachable(account))
            else:
                self.perform(self._machine.account_proven(state, now=self._clock.now()))
        except PaymentRefused as refusal:
            log.warning("account.refused", extra={"account": account.hex(), "reason": refusal.fault.value})
        finally:
            del self._proving[account]
            ended.set()

    def _start_submitting(self, claims: tuple[SignedVoucher, ...]) -> None:
        if self._submit is None or self._submitting >= SUBMITTING_MAX:
            self._not_submitted(claims)
            return
        assert self._nursery is not None
        self._submitting += 1
        self._nursery.start_soon(self._submit_now, self._submit, claims)

    async def _submit_now(
        self, submit: Callable[[tuple[SignedVoucher, ...]], Awaitable[None]], claims: tuple[SignedVoucher, ...]
    ) -> None:
        try:
            await submit(claims)
            log.info("claims.submitted", extra={"count": len(claims)})
        except CocoonError as error:
            log.error("claims.failed", extra={"count": len(claims), "reason": str(error)})
            self._not_submitted(claims)
        finally:
            self._submitting -= 1

    def _not_submitted(self, claims: tuple[SignedVoucher, ...]) -> None:
        if self._submit_failed is not None:
            self.perform(self._submit_failed(claims))
