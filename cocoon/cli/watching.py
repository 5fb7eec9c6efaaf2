"""How a running service shows itself: a socket in the home for `cocoon status`, and `/metrics` where it is wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from .. import __version__
from ..adapters.clock import SystemClock
from ..adapters.network import PeerNetwork
from ..client.interface import ClientRole
from ..config import Config, Home
from ..gateway.generation import GatewayRecord, Trace, TracedChoice
from ..gateway.local import open_local
from ..gateway.objects import receipt_object
from ..gateway.server import GatewayHandle
from ..market.records import choice_record
from ..node.plain import PlainNode
from ..node.provider import ProviderRole
from ..ports import Engine, Store
from ..status import Status, control, reading
from ..types import ton
from .console import Console
from .keys import api_key as key_in_file

StatusSource = Callable[[], Awaitable[Status]]


def started(config: Config, clock: SystemClock) -> reading.Started:
    """This process, from now on."""
    return reading.Started(version=__version__, network_id=config.network_id, at_ns=clock.now())


@asynccontextmanager
async def shown(
    home: Home,
    role: str,
    status: StatusSource,
    console: Console,
    *,
    why: Callable[[str], dict[str, Any]] | None = None,
) -> AsyncIterator[None]:
    """Answer `cocoon status` until the block is left."""

    async def answer(what: str) -> dict[str, Any]:
        if why is not None and what.partition(":")[0] == "why":
            return why(what)
        if what != "status":
            return {"error": "unknown question"}
        found: dict[str, Any] = msgspec.to_builtins(await status())
        return found

    async with control.open_control(home.path, role, answer) as path:
        if path is None:
            console.say(f"`cocoon status` cannot ask this process: the path of {home.path} is too long for a socket.")
        yield


@asynccontextmanager
async def watched(
    config: Config, home: Home, role: str, status: StatusSource, console: Console
) -> AsyncIterator[str | None]:
    """`shown`, and metrics on `metrics.port` if there is one; their URL."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(shown(home, role, status, console))
        if config.metrics.port is None:
            yield None
            return
        key = key_in_file(home.metrics_key_path)
        local = await stack.enter_async_context(
            open_local(config.metrics.host, config.metrics.port, key=key, status=status)
        )
        url = f"{local.base_url}/metrics"
        console.line(f"metrics    {url} (key in {home.metrics_key_path})")
        yield url


def of_node(node: PlainNode, network: PeerNetwork, config: Config, clock: SystemClock) -> StatusSource:
    """A plain node's status."""
    begun = started(config, clock)

    async def status() -> Status:
        return reading.of_node(node, network, started=begun, clock=clock)

    return status


def of_provider(
    role: ProviderRole,
    network: PeerNetwork,
    engine: Engine,
    store: Store,
    config: Config,
    clock: SystemClock,
    *,
    payout: bytes | None,
) -> StatusSource:
    """A provider's status."""
    begun = started(config, clock)

    async def status() -> Status:
        return await reading.of_provider(role, network, engine, started=begun, clock=clock, store=store, payout=payout)

    return status


class GatewayStatus:
    """A gateway's status. The gateway asks it for `/metrics`, so it is there before the gateway is."""

    def __init__(self, role: ClientRole, config: Config, clock: SystemClock) -> None:
        self.record = GatewayRecord()
        self.handle: GatewayHandle | None = None
        self._role = role
        self._clock = clock
        self._begun = started(config, clock)
        self._day_max_nano = ton(config.gateway.spend_day_max_ton)

    async def __call__(self) -> Status:
        """Now."""
        role, ledger = self._role, None if self.handle is None else self.handle.ledger
        return reading.of_gateway(
            peer=role.peer,
            connections=role.connections(),
            failures=role.dial_failures(),
            models=reading.model_facts((one.model_name, one.prices.output_nano) for one in await role.offers()),
            record=self.record,
            spent_today_nano=0 if ledger is None else ledger.spent_nano,
            reserved_nano=0 if ledger is None else ledger.reserved_nano,
            day_max_nano=self._day_max_nano,
            account_left_nano=role.account_left_nano,
            started=self._begun,
            clock=self._clock,
        )


def explained(record: GatewayRecord, config: Config) -> Callable[[str], dict[str, Any]]:
    """What a gateway answers to `cocoon why`."""

    def one(trace: Trace) -> dict[str, Any]:
        return {
            "id": trace.id,
            "at_ns": trace.at_ns,
            "model": trace.model,
            "status": trace.status,
            "cost_nano": sum(choice.cost_nano for choice in trace.choices),
        }

    def whole(trace: Trace) -> dict[str, Any]:
        return {**one(trace), "choices": [_choice(choice, config) for choice in trace.choices]}

    def why(question: str) -> dict[str, Any]:
        wanted = question.partition(":")[2]
        if not wanted:
            return {"requests": [one(trace) for trace in reversed(record.traces)]}
        traces = [trace for trace in record.traces if wanted in ("last", trace.id)]
        return whole(traces[-1]) if traces else {"error": f"no request {wanted[:64]!r} is remembered"}

    return why


def _choice(choice: TracedChoice, config: Config) -> dict[str, Any]:
    return {
        "provider": choice.provider,
        "trust": None if choice.trust is None else choice.trust.value,
        "first_token_ms": choice.first_token_ms,
        "attempts": list(choice.attempts),
        "cost_nano": choice.cost_nano,
        "receipt": None if choice.summary is None else receipt_object(choice.summary),
        "decisions": [choice_record(one, network=config.network_id) for one in choice.decisions],
    }
