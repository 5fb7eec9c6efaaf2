"""The standard global configuration file: which liteservers there are, and from which block trust starts.

A person chose the file, so its init block is trusted; its size and shape are checked all the same. No I/O.
"""

from __future__ import annotations

import base64
import binascii
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any, Final

from ...errors import ConfigError
from .proofs import MASTERCHAIN, WHOLE_SHARD, BlockRef

CONFIG_BYTES_MAX: Final = 1024 * 1024
SERVERS_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """One liteserver."""

    host: str
    port: int
    key: bytes  # ed25519

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalConfig:
    """What we take from the file."""

    servers: tuple[ServerAddress, ...]
    init_block: BlockRef


def parse_global_config(data: bytes | str) -> GlobalConfig:
    """Raises `ConfigError` with what is wrong."""
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError("the chain's configuration file is too large")
    try:
        value = json.loads(data)
        servers = tuple(_server(entry) for entry in value["liteservers"][:SERVERS_MAX])
        init = value["validator"]["init_block"]
        block = BlockRef(
            workchain=int(init["workchain"]),
            shard=int(init["shard"]),
            seqno=int(init["seqno"]),
            root_hash=_bytes32(init["root_hash"]),
            file_hash=_bytes32(init["file_hash"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise ConfigError(
            "this is not a TON global configuration file", advice="`cocoon devnet` prints one; TON's are on ton.org."
        ) from error
    if block.workchain != MASTERCHAIN or block.shard != WHOLE_SHARD:
        raise ConfigError("the configuration's init block is not of the masterchain")
    if not servers:
        raise ConfigError("the chain's configuration names no liteserver")
    return GlobalConfig(servers=servers, init_block=block)


def _server(entry: dict[str, Any]) -> ServerAddress:
    host = socket.inet_ntoa(struct.pack(">i" if entry["ip"] < 0 else ">I", entry["ip"]))
    port = int(entry["port"])
    if not 0 < port < 65_536:
        raise ValueError("port")
    return ServerAddress(host=host, port=port, key=_bytes32(entry["id"]["key"]))


def _bytes32(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("base64") from error
    if len(data) != 32:
        raise ValueError("32 bytes")
    return data
