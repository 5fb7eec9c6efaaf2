"""Two QUIC machines and a wire between them, in virtual time: it loses and cuts what a test wants lost or cut."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from p2p.driver.quic_certificate import make_certificate
from p2p.driver.quic_machine import QuicMachine
from p2p.driver.quic_state import DEFAULT_SETTINGS, Opened, QuicEvent, QuicSettings, StreamArrived, StreamState
from p2p.driver.quic_tamed import configuration
from p2p.identity import peer_id_of_seed, peer_id_to_bytes

WHEN = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)
CLIENT, SERVER = ("127.0.0.1", 1000), ("127.0.0.1", 2000)
SEEDS = {"client": b"c" * 32, "server": b"s" * 32}
PEERS = {name: peer_id_to_bytes(peer_id_of_seed(seed)) for name, seed in SEEDS.items()}
ROUNDS_MAX = 20_000  # a conversation that does not settle is a failure
STEP_S = 0.0005

CERTIFICATES = {name: make_certificate(seed, now=WHEN) for name, seed in SEEDS.items()}


class Pair:
    """`loses(datagram)` says which datagrams do not arrive."""

    def __init__(
        self,
        *,
        client_type: type[QuicMachine] = QuicMachine,
        server_settings: QuicSettings = DEFAULT_SETTINGS,
        client_settings: QuicSettings = DEFAULT_SETTINGS,
        client_certificate: Any = CERTIFICATES["client"],
        server_certificate: Any = CERTIFICATES["server"],
        expected_peer: bytes | None = PEERS["server"],
        loses: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        self.now = 1.0
        self.loses = loses
        self.largest_burst = 0
        self.client = client_type(
            configuration(is_client=True, certificate=client_certificate[0], private_key=client_certificate[1]),
            utc_now=lambda: WHEN,
            settings=client_settings,
            expected_peer=expected_peer,
        )
        self.client.connect(SERVER, now=self.now)
        self.server = QuicMachine(
            configuration(is_client=False, certificate=server_certificate[0], private_key=server_certificate[1]),
            utc_now=lambda: WHEN,
            settings=server_settings,
            original_destination_connection_id=self.client.original_destination_connection_id,
        )
        self.events: dict[QuicMachine, list[QuicEvent]] = {self.client: [], self.server: []}

    def step(self) -> int:
        """One exchange; how many datagrams went."""
        self.now += STEP_S
        sent = 0
        for sender, receiver, source in (
            (self.client, self.server, CLIENT),
            (self.server, self.client, SERVER),
        ):
            due = sender.get_timer() if sender is self.client or sender.has_understood else None
            if due is not None and self.now >= due and not sender.is_over:
                sender.handle_timer(self.now)
            datagrams = sender.datagrams_to_send(self.now) if sender is self.client or sender.has_understood else []
            for data, _ in datagrams:
                sent += 1
                if not self.loses(data):
                    receiver.receive_datagram(data, source, self.now)
            for machine in (sender, receiver):
                self.events[machine] += machine.take_events(now=self.now)
        self.largest_burst = max(self.largest_burst, sent)
        return sent

    def run(self, until: Callable[[], object], *, rounds: int = ROUNDS_MAX) -> None:
        for _ in range(rounds):
            if until():
                return
            self.step()
        raise AssertionError(f"did not happen: client {self.client.end_reason}, server {self.server.end_reason}")

    def settle(self, *, rounds: int = 300) -> None:
        """Long enough for everything that can be said to be said."""
        for _ in range(rounds):
            self.step()

    def open(self) -> Pair:
        self.run(lambda: self.client.remote_peer and self.server.remote_peer)
        assert any(isinstance(event, Opened) for event in self.events[self.server])
        self.settle(rounds=20)
        return self

    def arrived(self, machine: QuicMachine) -> list[StreamState]:
        return [event.stream for event in self.events[machine] if isinstance(event, StreamArrived)]
