"""The network between simulated nodes: when does what is sent now arrive, and does it?

    network = Network(kernel, latency, jitter=0.1, loss=0.0)
    number = network.add(key, up_bytes_per_s=…, down_bytes_per_s=…)
    network.send(3, 7, size, deliver, *args)          # deliver(*args) when it arrives; False: it never will

The way of a message: the sender's uplink (a FIFO queue over all its connections), the pair's latency and the message's
own jitter, then the receiver's downlink (a FIFO queue). Messages of one ordered pair never overtake each other: they
are parts of one stream. A message that does not fit into a full queue, is lost, or crosses a partition, is gone: what a
stream would do instead, wait and send again, is not modelled, so losses are harsher here than over TCP.

Jitter: `latency * jitter * U[0, 1)` on top, drawn from the sender's own stream, so that another node's traffic changes
nobody's draws.

Not here: packets, headers, congestion control, connections (`sim.levels.world`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sim.kernel import SECOND, Kernel
from sim.net.latency import Latency, pair_uniform
from sim.net.nat import Nat, Reach, reach
from sim.rng import Stream, stream

_RELAY_SALT = 0xD1B54A32D192ED03


class _Path:
    """One direction of a connected pair: its latency, and when its last message arrives."""

    __slots__ = ("busy_until", "latency_ns")

    def __init__(self, latency_ns: int) -> None:
        self.latency_ns = latency_ns
        self.busy_until = 0


class _Queue:
    """A link that sends one message after the other."""

    __slots__ = ("bytes_max", "free_at", "ns_per_byte")

    def __init__(self, bytes_per_s: float, bytes_max: int) -> None:
        self.ns_per_byte = SECOND / bytes_per_s
        self.bytes_max = bytes_max
        self.free_at = 0

    def enter(self, size: int, now: int) -> int | None:
        """When the message is through; None when the queue has no room for it."""
        start = max(now, self.free_at)
        if self.bytes_max and (start - now) > self.bytes_max * self.ns_per_byte:
            return None
        self.free_at = start + int(size * self.ns_per_byte)
        return self.free_at


class Network:
    def __init__(self, kernel: Kernel, latency: Latency, *, jitter: float = 0.0, loss: float = 0.0) -> None:
        """`jitter`, `loss`, and what `partition` and `heal` say may change at any time, for what is sent then."""
        self.kernel = kernel
        self.jitter = jitter
        self.loss = loss
        self.messages = 0
        self.bytes = 0
        self.lost = 0  # by chance, and:
        self.blocked = 0  # at a partition
        self.overflowed = 0  # at a full queue
        self._latency = latency
        self._keys: list[int] = []
        self._streams: list[Stream] = []  # jitter and loss, of the sender
        self._paths: list[dict[int, _Path]] = []
        self._up: list[_Queue | None] = []
        self._down: list[_Queue | None] = []
        self._nat: list[Nat] = []
        self._public: list[int] = []
        self._sides: dict[int, frozenset[int]] = {}  # partition → the nodes on its one side
        self._partitions = 0

    # --- nodes -------------------------------------------------------------------------------------------

    def add(
        self,
        key: int,
        *,
        up_bytes_per_s: float = 0.0,
        down_bytes_per_s: float = 0.0,
        queue_bytes: int = 0,
        nat: Nat = Nat.PUBLIC,
        region: str = "",
        relays: bool = True,
    ) -> int:
        """A new node's number; nodes are numbered from 0. Rates of 0 are no limit. `relays`: for hidden nodes, if it is
        public itself. Raises WorldInvalid."""
        self._latency.add(key, region)
        number = len(self._keys)
        self._keys.append(key)
        self._streams.append(stream(key, "jitter"))
        self._paths.append({})
        self._up.append(_Queue(up_bytes_per_s, queue_bytes) if up_bytes_per_s else None)
        self._down.append(_Queue(down_bytes_per_s, queue_bytes) if down_bytes_per_s else None)
        self._nat.append(nat)
        if nat is Nat.PUBLIC and relays:
            self._public.append(number)
        return number

    def is_public(self, number: int) -> bool:
        return self._nat[number] is Nat.PUBLIC

    def latency_ns(self, src: int, dst: int) -> int:
        """One way, without jitter and queues, and by a relay where there is no direct way. Raises LookupError when
        there is no way at all."""
        how = reach(self._nat[src], self._nat[dst], key_dialer=self._keys[src], key_listener=self._keys[dst])
        if how is Reach.DIRECT:
            return self._latency.between(src, dst)
        relay = self._relay(src, dst)
        return self._latency.between(src, relay) + self._latency.between(relay, dst)

    def can_connect(self, dialer: int, listener: int) -> bool:
        """Is there a way now: no partition between them, and a relay where one is needed?"""
        if self._sides and self.is_parted(dialer, listener):
            return False
        how = reach(
            self._nat[dialer], self._nat[listener], key_dialer=self._keys[dialer], key_listener=self._keys[listener]
        )
        return how is Reach.DIRECT or bool(self._public)

    def can_dial(self, dialler: int, listener: int) -> bool:
        """As `can_connect`, for a driver that brings its own relays: only who is public can be dialled."""
        return self._nat[listener] is Nat.PUBLIC and not (self._sides and self.is_parted(dialler, listener))

    def _relay(self, src: int, dst: int) -> int:
        if not self._public:
            raise LookupError("two hidden nodes, and no public node to relay between them")
        at = pair_uniform(self._keys[src] ^ _RELAY_SALT, self._keys[dst])
        return self._public[int(at * len(self._public))]

    def forget(self, a: int, b: int) -> None:
        """The connection of the two has ended."""
        self._paths[a].pop(b, None)
        self._paths[b].pop(a, None)

    # --- faults ------------------------------------------------------------------------------------------

    def partition(self, side: Iterable[int]) -> int:
        """Nothing passes between these nodes and all others, until `heal` gets the number returned here."""
        self._partitions += 1
        self._sides[self._partitions] = frozenset(side)
        return self._partitions

    def heal(self, partition: int) -> None:
        self._sides.pop(partition, None)

    def is_parted(self, a: int, b: int) -> bool:
        return any((a in side) != (b in side) for side in self._sides.values())

    # --- messages ----------------------------------------------------------------------------------------

    def send(self, src: int, dst: int, size: int, deliver: Callable[..., None], *args: object) -> bool:
        """A message on the stream between two connected nodes. False: it is gone."""
        path = self._paths[src].get(dst)
        if path is None:
            path = self._paths[src][dst] = _Path(self.latency_ns(src, dst))
        return self._carry(src, dst, size, path, 0, deliver, args)

    def send_once(
        self, src: int, dst: int, size: int, delay_ns: int, deliver: Callable[..., None], *args: object
    ) -> bool:
        """A message on a connection of its own, `delay_ns` later for dialling; nothing of it is remembered."""
        return self._carry(src, dst, size, _Path(self.latency_ns(src, dst)), delay_ns, deliver, args)

    def _carry(
        self,
        src: int,
        dst: int,
        size: int,
        path: _Path,
        delay_ns: int,
        deliver: Callable[..., None],
        args: tuple[object, ...],
    ) -> bool:
        self.messages += 1
        self.bytes += size
        if self._sides and self.is_parted(src, dst):
            self.blocked += 1
            return False
        chance = self._streams[src]
        if self.loss and chance.random() < self.loss:
            self.lost += 1
            return False
        kernel = self.kernel
        at = kernel.now + delay_ns
        up = self._up[src]
        if up is not None:
            through = up.enter(size, at)
            if through is None:
                self.overflowed += 1
                return False
            at = through
        latency = path.latency_ns
        at += latency
        if self.jitter:
            at += int(latency * self.jitter * chance.random())
        if at < path.busy_until:
            at = path.busy_until
        path.busy_until = at
        if self._down[dst] is None:
            kernel.at(at, deliver, *args)
        else:
            kernel.at(at, self._enter_downlink, dst, size, deliver, args)
        return True

    def _enter_downlink(self, dst: int, size: int, deliver: Callable[..., None], args: tuple[object, ...]) -> None:
        queue = self._down[dst]
        assert queue is not None
        at = queue.enter(size, self.kernel.now)
        if at is None:
            self.overflowed += 1
        else:
            self.kernel.at(at, deliver, *args)
