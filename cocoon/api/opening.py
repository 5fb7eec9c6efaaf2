"""Puts a client together: the network, the models that this machine has pinned, the clock, and the role over them.

The one place where the edges (`api`, `gateway`, `cli`) compose a client peer. Its identity is fresh every time and
it serves no DHT queries (rule H2).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

import trio

from ..adapters.clock import SystemClock, entropy
from ..adapters.models import ModelStore
from ..adapters.network import PeerNetwork, open_network
from ..adapters.store import SqliteStore
from ..attest.judging import AcceptNothing
from ..client.interface import ClientRole
from ..client.role import Client, open_client
from ..client.settings import ClientSettings, PaymentAccount
from ..config import override
from ..errors import CocoonError, Unavailable
from ..market.catalogue import Catalogue
from ..ports import Store
from ..trust import TrustPolicy
from ..types import Network, Secret
from .paying import opened_account
from .terms import OpenTerms

log = logging.getLogger("cocoon.client")

SEED_BYTES = 32
POLICY_READ_AGAIN_S: Final = 30.0  # a denied machine gets no prompt half a minute later


@asynccontextmanager
async def open_client_network(*, bootstrap: Iterable[str], network: Network) -> AsyncIterator[PeerNetwork]:
    """A client peer's network, dialling its bootstrap peers in the background. Raises `ConfigError`."""
    async with open_network(
        seed=Secret(entropy(SEED_BYTES)),
        listen=(),  # a client only dials: nobody needs to reach it
        bootstrap=bootstrap,
        serves_dht=False,
        allow_private_addresses=network is Network.DEVNET,
        agent="cocoon-client",
    ) as opened:
        yield opened


@asynccontextmanager
async def open_role(
    terms: OpenTerms, *, store: Store | None = None, payment: PaymentAccount | None = None
) -> AsyncIterator[ClientRole]:
    """A client role that is connected to the network; with `payment` it pays, and needs a store.

    Raises `ConfigError`; `Unavailable` with every dial tried; `LocalProtocolError` when another client pays from this
    account.
    """
    async with open_client_network(bootstrap=terms.bootstrap, network=terms.network) as network:
        await wait_connected(network, timeout_s=terms.timeout_s)
        settings = ClientSettings(
            policy=terms.trust.rules(terms.network),
            software_anchors=terms.trust.software_anchors(terms.network),
            payment=payment,
        )
        async with open_client(
            network,
            settings,
            catalogue=Catalogue(ModelStore(terms.home.models_path).pinned()),
            clock=SystemClock(),
            entropy=entropy,
            store=store,
        ) as role:
            async with trio.open_nursery() as nursery:
                if terms.trust.may_change:
                    nursery.start_soon(follow_policy, role, terms.trust)
                yield role
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_paying_role(terms: OpenTerms) -> AsyncIterator[ClientRole]:
    """As `open_role`, paying from the home's account if it has one; its settings of the chain come from its file."""
    if not terms.pays or not terms.home.account_path(terms.network).exists():
        async with open_role(terms) as role:
            yield role
        return
    config = override(terms.home.read_config(), {"network": terms.network.label})
    async with opened_account(terms.home, config) as payment:
        if payment is None:
            async with open_role(terms) as role:
                yield role
            return
        async with (
            await SqliteStore.open(terms.home.database_path, clock=SystemClock(), entropy=entropy) as store,
            open_role(terms, store=store, payment=payment) as role,
        ):
            yield role


async def follow_policy(role: Client, trust: TrustPolicy, *, every_s: float = POLICY_READ_AGAIN_S) -> None:
    """Let the client obey what its policy's files say now (rule S8). While they cannot be read it accepts nothing."""
    readable = role.policy
    while True:
        await trio.sleep(every_s)
        try:
            rules = readable = await trio.to_thread.run_sync(trust.rules, readable.network)
        except CocoonError as error:
            rules = readable.tightened(AcceptNothing(why=str(error)))
        if rules != role.policy:
            log.warning("policy.changed")
            role.change_policy(rules)


async def wait_connected(network: PeerNetwork, *, timeout_s: float) -> None:
    """Return once a peer is connected. Raises `Unavailable` with every dial that failed and what to do."""
    try:
        await network.wait_connected(timeout_s=timeout_s)
    except Unavailable as error:
        failures = network.dial_failures()
        tried = "; ".join(f"{one.address}: {one.reason}" for one in failures[:8]) or str(error)
        raise Unavailable(
            f"no bootstrap peer could be reached within {timeout_s:.0f} s ({tried})",
            advice="Check the --bootstrap address and that its node runs; `cocoon peers` shows each attempt.",
        ) from error
