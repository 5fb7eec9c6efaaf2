"""What a gateway is told when it starts: keys, spending, bounds and time-outs. Checked here, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..errors import ConfigError
from ..types import Nano, Secret

ServerKind = Literal["h11", "hypercorn"]

DEFAULT_HOST: Final = "127.0.0.1"  # loopback unless told otherwise (rule H1)
DEFAULT_PORT: Final = 8642
API_KEY_CHARS_MIN: Final = 8  # `cocoon` makes keys of 43; a shorter one of the user's own is still not a guess away
API_KEY_CHARS_MAX: Final = 512  # must fit a header line
BODY_BYTES_MAX: Final = 4 * 1024 * 1024  # a sealed request holds 1 MiB; JSON escapes may take up to four times that
JSON_DEPTH_MAX: Final = 64  # a JSON schema nests about ten deep
REQUESTS_MAX: Final = 256  # at once; the session's own bound on requests in flight
CONNECTIONS_MAX: Final = 512  # keep-alive connections of idle apps come on top of the running requests


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Money has no default: a caller says what one request and one day may cost, in nanoTON.

    Port 0 takes a free one. `hosts_allowed` are further exact values of the Host header, for a reverse proxy.
    Raises `ConfigError`.
    """

    api_keys: tuple[Secret, ...]
    spend_max_request_nano: Nano
    spend_max_day_nano: Nano
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    hosts_allowed: tuple[str, ...] = ()
    server: ServerKind = "h11"
    spend_file: Path | None = None  # keeps the day's total over a restart; None: counts from the start
    body_bytes_max: int = BODY_BYTES_MAX
    json_depth_max: int = JSON_DEPTH_MAX
    requests_max: int = REQUESTS_MAX
    connections_max: int = CONNECTIONS_MAX
    body_timeout_s: float = 30.0  # to receive the whole body: local apps send it at once
    first_token_timeout_s: float = 300.0  # a queue and a long prompt on a slow provider
    request_timeout_s: float = 3_600.0  # the longest answer anyone waits for
    shutdown_grace_s: float = 2.0  # for running answers to end after Ctrl-C

    def __post_init__(self) -> None:
        if not self.api_keys:
            raise ConfigError("the gateway has no API key", advice="Pass one, or let `cocoon` make one.")
        for key in self.api_keys:
            value = key.reveal()
            if not API_KEY_CHARS_MIN <= len(value) <= API_KEY_CHARS_MAX or not all(33 <= byte < 127 for byte in value):
                raise ConfigError(
                    "an API key is not usable",
                    advice=f"Use {API_KEY_CHARS_MIN} to {API_KEY_CHARS_MAX} printable characters without spaces.",
                )
        if not 0 <= self.spend_max_request_nano <= self.spend_max_day_nano:
            raise ConfigError(
                "the spending caps do not fit together",
                advice="Both must be at least 0, and a day's cap at least a request's.",
            )
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"not a port: {self.port}", advice="Use 0 to 65535; 0 takes a free one.")
        if self.server not in ("h11", "hypercorn"):
            raise ConfigError(f"no such server: {self.server[:32]!r}", advice="Use h11 or hypercorn.")
        bounds = (self.body_bytes_max, self.json_depth_max, self.requests_max, self.connections_max)
        times = (self.body_timeout_s, self.first_token_timeout_s, self.request_timeout_s)
        if min(bounds) < 1 or min(times) <= 0 or self.shutdown_grace_s < 0:
            raise ConfigError("a bound or time-out of the gateway is not positive")


def host_values(host: str, port: int, extra: tuple[str, ...] = ()) -> frozenset[bytes]:
    """The exact Host header values that mean us (rule H1): the bound name, the loopback names, and `extra`.

    A page whose name was rebound to 127.0.0.1 sends its own name, which is in no case one of these.
    """
    bound = f"[{host}]" if ":" in host else host
    names = {bound, "localhost", "127.0.0.1"} if host not in ("::1", "::") else {bound, "localhost", "[::1]"}
    values = {f"{name}:{port}" for name in names} | set(extra)
    if port == 80:
        values |= names  # browsers and SDKs leave out the default port
    return frozenset(value.lower().encode("ascii", "strict") for value in values)
