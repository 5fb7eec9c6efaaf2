"""Attacks on what is on offer: a flood of invented offers, and two offers under one sequence number.

Spam costs an identity and a message each and can at most fill the pool of unstaked offers. Equivocation costs its
author everything: the two signatures are a proof that anybody may show to the stake contract.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import Any

from cocoon.market.keys import offers_topic, shard_of
from cocoon.market.offer import OfferSpec, draft_offer, finish_offer
from cocoon.types import NO_DIGEST, SECOND_NS
from cocoon.wire.signing import stake_statement
from sim.adversary.base import HOST_HOUR_NANO, IDENTITY_NANO, MESSAGE_NANO, Action, Adversary, View
from sim.econ.crypto import Key
from sim.econ.provider import ProviderPeer

SPAM_PER_S = 5  # new identities per second and node


class OfferSpam(Adversary):
    """Offers of operators that do not exist, at half the price: whoever asks them finds nobody."""

    kind = "offer-spam"
    takes = "provider"
    market: Any = None

    def plan(self, view: View) -> list[Action]:
        """So many more, each a key and a message."""
        actions = [Action(name="hosts", cost_nano=len(view.own) * HOST_HOUR_NANO // 3_600, do=_nothing)]
        for number in view.own:
            provider = self.provider(number)
            spam = Action(name="offers", cost_nano=IDENTITY_NANO + MESSAGE_NANO, do=partial(self._publish, provider))
            actions += [spam] * int(self.param("per_second", SPAM_PER_S))
        return actions

    def provider(self, number: int) -> ProviderPeer:
        """The node's own provider."""
        found: ProviderPeer = next(each for each in self.market.providers if each.number == number)
        return found

    def _publish(self, provider: ProviderPeer) -> None:
        self.damage.count("offers")
        name = f"spam {self.index}/{self.damage.counts['offers']}"
        peer, operator = Key(name + "/P"), Key(name + "/O")
        spec = provider.spec
        cheap = replace(spec.prices, output_nano=spec.prices.output_nano // 2, input_nano=spec.prices.input_nano // 2)
        message = sign_offer(provider, replace(spec, prices=cheap), peer=peer, operator=operator, seq=1)
        self.market._publish(provider, offers_topic(provider.env.network, shard_of(spec.model)), message)


class Equivocation(Adversary):
    """Shows one half of the network another price under the same sequence number."""

    kind = "equivocation"
    takes = "provider"
    market: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._done: set[int] = set()

    def plan(self, view: View) -> list[Action]:
        """Once per node: the second offer, and what it costs when somebody has both."""
        actions = [Action(name="hosts", cost_nano=len(view.own) * HOST_HOUR_NANO // 3_600, do=_nothing)]
        for number in view.own:
            provider = next(each for each in self.market.providers if each.number == number)
            current = provider.publisher.current(provider.spec.model, now=provider.now)
            if number in self._done or current is None:
                continue
            actions.append(
                Action(
                    name="offers",
                    cost_nano=MESSAGE_NANO,
                    do=partial(self._equivocate, provider, current),
                )
            )
        return actions

    def _equivocate(self, provider: ProviderPeer, current: Any) -> None:
        self._done.add(provider.number)
        self.damage.count("equivocations")
        spec = provider.spec
        dear = replace(spec, prices=replace(spec.prices, output_nano=spec.prices.output_nano * 2))
        message = sign_offer(
            provider, dear, peer=provider.key, operator=provider.operator, seq=current.offer.seq, staked=True
        )  # fmt: skip
        topic = offers_topic(provider.env.network, shard_of(spec.model))
        for client in self.market.clients[::2]:
            self.market._deliver(client, provider.peer, message, shard_of(spec.model), True)
        self.market._publish(provider, topic, message)


def sign_offer(
    provider: ProviderPeer, spec: OfferSpec, *, peer: Key, operator: Key, seq: int, staked: bool = False
) -> bytes:
    """An offer that passes every check of a signature."""
    network = provider.env.network
    now_s = provider.now // SECOND_NS - 30
    setup = provider.setup
    stake, epoch = (setup.stake, setup.key_epoch) if staked else (NO_DIGEST, 0)
    draft = draft_offer(
        replace(spec, payout=hashlib.sha256(peer.public).digest()),
        network=network,
        peer=peer.public,
        operator=operator.public,
        seq=seq,
        not_before_s=now_s,
        expiry_s=now_s + 3_600,
        sign_as_peer=peer.sign,
        stake=stake,
        key_epoch=epoch,
    )
    signature = operator.sign(stake_statement(network, stake, epoch, draft.slot, draft.digest))
    return finish_offer(draft, signature, network=network).message


def _nothing() -> None:
    pass
