"""Sockets of simulated hosts: what a driver gets for `socket.socket` when whole nodes run in virtual time.

    hosts = SimHosts(network, clock)
    host = hosts.add("11.0.0.1", number)
    with hosts.as_host(host): ...              # sockets made in this task, and in its children, are that host's

Connections take a round trip, bytes arrive when the simulated network says, whole and in order: a segment that the
network loses is sent again, as TCP does, after a time-out that doubles. A connection across a partition ends when it
has waited for long. trio sees readiness through an eventfd per socket, so its loop and all code above are those that
run in production.

What is simplified: a send takes everything (the muxer's windows bound what is on the way), no congestion control, no
headers. Only what the driver uses is here; anything else of `socket` is the real module's.
"""

from __future__ import annotations

import errno
import os
import socket as real_socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any

from sim.clock import SimClock
from sim.kernel import MILLISECOND
from sim.net.network import Network

SEGMENT_BYTES_MAX = 64 * 1024  # larger writes are cut, so that queues interleave connections
HANDSHAKE_BYTES = 60  # of a SYN with its headers
RETRANSMIT_NS = 300 * MILLISECOND
RETRANSMISSIONS_MAX = 7  # 300 ms, doubling: 38 s; then the connection is lost
BACKLOG_MAX = 1024
FIRST_PORT = 32_768

_host: ContextVar[SimHost] = ContextVar("host of the sockets that this task opens")


def current_host() -> SimHost | None:
    """The host that this task runs on."""
    return _host.get(None)


class SimHost:
    """One machine: an address, and the number of its node in the network."""

    def __init__(self, hosts: SimHosts, address: str, number: int) -> None:
        self.hosts = hosts
        self.address = address
        self.number = number
        self.listeners: dict[int, SimSocket] = {}
        self._next_port = FIRST_PORT

    def take_port(self) -> int:
        self._next_port += 1
        return self._next_port


class SimHosts:
    def __init__(self, network: Network, clock: SimClock) -> None:
        self.network = network
        self.clock = clock
        self.by_address: dict[str, SimHost] = {}
        self.open_sockets = 0
        self.retransmissions = 0

    def add(self, address: str, number: int) -> SimHost:
        host = self.by_address[address] = SimHost(self, address, number)
        return host

    def arrived(self, host: SimHost, data: bytes | None) -> None:
        """Every segment, to the byte, is part of the trace."""
        kernel = self.network.kernel
        digest = b"end" if data is None else blake2b(data, digest_size=8).digest()
        kernel.trace.add(kernel.now, host.number, "bytes", digest)

    @contextmanager
    def as_host(self, host: SimHost) -> Iterator[None]:
        token = _host.set(host)
        try:
            yield
        finally:
            _host.reset(token)


class SimSocket:
    """A TCP socket, never blocking. Made by `SocketModule.socket`."""

    def __init__(self, family: int = real_socket.AF_INET, kind: int = real_socket.SOCK_STREAM, proto: int = 0) -> None:
        self.family = family
        self.type = kind
        self.proto = proto
        self._host = _host.get()
        self._hosts = self._host.hosts
        self._hosts.open_sockets += 1
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waiting_pair: tuple[real_socket.socket, real_socket.socket] | None = None  # while it connects
        self._name: tuple[str, int] = (self._host.address, 0)
        self._peer_name: tuple[str, int] | None = None
        self._peer: SimSocket | None = None
        self._error = 0
        self._is_signalled = False
        self._is_closed = False
        self._is_ended = False  # by the other side, in order
        self._is_shut = False  # by us, for writing
        self._accepted: deque[SimSocket] | None = None  # of a listener
        self._unread = bytearray()
        self._next_out = 0  # numbers of segments: they arrive in order, whatever the network does
        self._next_in = 0
        self._early: dict[int, bytes | None] = {}  # segments that overtook a lost one; None: the end

    # --- options and names -------------------------------------------------------------------------------

    def setblocking(self, flag: bool) -> None:
        assert not flag, "simulated sockets never block"

    def setsockopt(self, *_: Any) -> None:
        pass

    def getsockopt(self, level: int, option: int) -> int:
        if option == real_socket.SO_ERROR:
            code, self._error = self._error, 0
            return code
        return 0

    def fileno(self) -> int:
        if self._is_closed:
            return -1
        if self._waiting_pair is not None:
            if self._peer is None and not self._error:
                return self._waiting_pair[0].fileno()
            self._drop_pair()  # whoever waited on it is awake: it is who asks
        return self._fd

    def getsockname(self) -> tuple[str, int]:
        return self._name

    def getpeername(self) -> tuple[str, int]:
        if self._peer_name is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._peer_name

    def __enter__(self) -> SimSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- listening ---------------------------------------------------------------------------------------

    def bind(self, address: tuple[str, int]) -> None:
        port = address[1] or self._host.take_port()
        if port in self._host.listeners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._name = (self._host.address, port)

    def listen(self, backlog: int = BACKLOG_MAX) -> None:
        self._accepted = deque()
        self._host.listeners[self._name[1]] = self

    def accept(self) -> tuple[SimSocket, tuple[str, int]]:
        self._check_open()
        if not self._accepted:
            self._clear()
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        accepted = self._accepted.popleft()
        if not self._accepted:
            self._clear()
        return accepted, accepted.getpeername()

    # --- connecting --------------------------------------------------------------------------------------

    def connect(self, address: tuple[str, int]) -> None:
        """Always raises BlockingIOError: the socket becomes writable when it stands, or has failed."""
        hosts, host = self._hosts, self._host
        if not self._name[1]:
            self._name = (host.address, host.take_port())
        self._peer_name = address
        self._waiting_pair = _unwritable_pair()
        target = hosts.by_address.get(address[0])
        if target is None or not hosts.network.can_dial(host.number, target.number):
            self._retry_syn(address, 0)  # nobody answers; a partition may heal
        else:
            self._syn(address, target, 0)
        raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))

    def _syn(self, address: tuple[str, int], target: SimHost, tries: int) -> None:
        if not self._hosts.network.send(
            self._host.number, target.number, HANDSHAKE_BYTES, self._syn_arrived, address, target, tries
        ):
            self._retry_syn(address, tries)

    def _retry_syn(self, address: tuple[str, int], tries: int) -> None:
        if self._is_closed:
            return
        if tries >= RETRANSMISSIONS_MAX:
            self._connected(None, errno.ETIMEDOUT)
            return
        self._hosts.network.kernel.after(RETRANSMIT_NS << tries, self._syn_again, address, tries + 1)

    def _syn_again(self, address: tuple[str, int], tries: int) -> None:
        target = self._hosts.by_address.get(address[0])
        if self._is_closed:
            return
        if target is None or not self._hosts.network.can_dial(self._host.number, target.number):
            self._retry_syn(address, tries)
        else:
            self._syn(address, target, tries)

    def _syn_arrived(self, address: tuple[str, int], target: SimHost, tries: int) -> None:
        listener = target.listeners.get(address[1])
        if self._is_closed:
            return
        queue = None if listener is None else listener._accepted
        if listener is None or queue is None or len(queue) >= BACKLOG_MAX:
            answered = self._answer(target, None, errno.ECONNREFUSED)
        else:
            with self._hosts.as_host(target):
                other = SimSocket(self.family)
            other._name, other._peer_name, other._peer = (target.address, address[1]), self._name, self
            answered = self._answer(target, other, 0)
            if answered:
                queue.append(other)
                listener._signal()
            else:
                other.close()
        if not answered:
            self._retry_syn(address, tries)

    def _answer(self, target: SimHost, other: SimSocket | None, error: int) -> bool:
        return self._hosts.network.send(
            target.number, self._host.number, HANDSHAKE_BYTES, self._connected, other, error
        )

    def _connected(self, other: SimSocket | None, error: int) -> None:
        if self._is_closed:
            if other is not None:
                other._lose(errno.ECONNRESET)
            return
        self._peer, self._error = other, error
        if self._waiting_pair is not None:
            far = self._waiting_pair[1]
            _drain(far)  # now the near end is writable, and its waiter wakes
            self._hosts.clock.woke()

    # --- bytes -------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        self._check_open()
        if self._unread:
            data = bytes(self._unread[:size])
            del self._unread[:size]
            if not self._unread and not self._is_ended and not self._error:
                self._clear()
            return data
        if self._error:
            raise OSError(self._error, os.strerror(self._error))
        if self._is_ended:
            return b""
        self._clear()
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def send(self, data: bytes | memoryview) -> int:
        self._check_open()
        if self._error or self._peer is None or self._is_shut:
            code = self._error or errno.EPIPE
            raise OSError(code, os.strerror(code))
        view = bytes(data[:SEGMENT_BYTES_MAX])
        self._transmit(self._next_out, view, 0)
        self._next_out += 1
        return len(view)

    def _transmit(self, number: int, data: bytes | None, tries: int) -> None:
        peer = self._peer
        if peer is None or (self._is_closed and data is not None and tries):
            return
        size = HANDSHAKE_BYTES if data is None else len(data)
        network = self._hosts.network
        if network.send(self._host.number, peer._host.number, size, peer._arrived, number, data):
            return
        if tries >= RETRANSMISSIONS_MAX:
            self._lose(errno.ETIMEDOUT)
            peer._lose(errno.ETIMEDOUT)
            return
        self._hosts.retransmissions += 1
        network.kernel.after(RETRANSMIT_NS << tries, self._transmit, number, data, tries + 1)

    def _arrived(self, number: int, data: bytes | None) -> None:
        if self._is_closed:
            if data is not None and self._peer is not None:
                self._peer._lose(errno.ECONNRESET)
            return
        self._hosts.arrived(self._host, data)
        self._early[number] = data
        while self._next_in in self._early:
            segment = self._early.pop(self._next_in)
            self._next_in += 1
            if segment is None:
                self._is_ended = True
            else:
                self._unread += segment
        if self._unread or self._is_ended:
            self._signal()

    def shutdown(self, how: int) -> None:
        if not self._is_shut and self._peer is not None:
            self._is_shut = True
            self._transmit(self._next_out, None, 0)
            self._next_out += 1

    def close(self) -> None:
        if self._is_closed:
            return
        self.shutdown(real_socket.SHUT_WR)
        self._is_closed = True
        self._hosts.open_sockets -= 1
        if self._accepted is not None:
            self._host.listeners.pop(self._name[1], None)
            for waiting in self._accepted:
                waiting.close()
        self._drop_pair()
        os.close(self._fd)

    def detach(self) -> int:
        raise NotImplementedError("a simulated socket has no descriptor to give away")

    def _lose(self, error: int) -> None:
        if not self._is_closed and not self._error:
            self._error = error
            self._signal()

    def _check_open(self) -> None:
        if self._is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    # --- readiness ---------------------------------------------------------------------------------------

    def _drop_pair(self) -> None:
        for end in self._waiting_pair or ():
            end.close()
        self._waiting_pair = None

    def _signal(self) -> None:
        if not self._is_signalled and not self._is_closed:
            self._is_signalled = True
            os.eventfd_write(self._fd, 1)
        self._hosts.clock.woke()

    def _clear(self) -> None:
        if self._is_signalled:
            self._is_signalled = False
            os.eventfd_read(self._fd)


def _unwritable_pair() -> tuple[real_socket.socket, real_socket.socket]:
    """Two real sockets of which the first takes nothing until the second is drained."""
    near, far = real_socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    near.setsockopt(real_socket.SOL_SOCKET, real_socket.SO_SNDBUF, 4096)
    block = bytes(65536)
    try:
        while True:
            near.send(block)
    except BlockingIOError:
        return near, far


def _drain(far: real_socket.socket) -> None:
    try:
        while far.recv(1 << 20):
            pass
    except BlockingIOError:
        pass


class SocketModule:
    """Stands for the module `socket` in the modules of a driver."""

    socket = SimSocket

    def __getattr__(self, name: str) -> Any:
        return getattr(real_socket, name)
