"""What a run counts about messages: control entries and messages sent, as published simulations count them.

A message counts once per receiver; of control, each entry (a topic in GRAFT, PRUNE or IHAVE) counts once per receiver,
and an IWANT once, however many ids it names. So counts vyzo/gerbil-simsub, whose figures are the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from p2p.gossip import Rpc, rpc_bytes

_EMPTY: tuple[()] = ()


@dataclass(slots=True)
class Sent:
    message: int = 0
    ihave: int = 0
    iwant: int = 0
    graft: int = 0
    prune: int = 0
    idontwant: int = 0
    rpcs: int = 0
    bytes: int = 0

    def as_dict(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def reset(self) -> None:
        for field in fields(self):
            setattr(self, field.name, 0)

    def count(self, rpc: Rpc, receivers: int) -> int:
        """Counts one RPC to so many receivers. Returns the size of its encoding."""
        _, messages, ihave, iwant, graft, prune, idontwant = rpc
        self.rpcs += receivers
        self.message += len(messages) * receivers
        if ihave or iwant or graft or prune or idontwant:
            self.ihave += len(ihave) * receivers
            self.iwant += bool(iwant) * receivers
            self.graft += len(graft) * receivers
            self.prune += len(prune) * receivers
            self.idontwant += bool(idontwant) * receivers
        size = _forward_bytes(rpc) if len(messages) == 1 else rpc_bytes(rpc)
        self.bytes += size * receivers
        return size


def _forward_bytes(rpc: Rpc) -> int:
    """`rpc_bytes` of the commonest RPC, one message and nothing else, without its generators."""
    if rpc[0] or rpc[2:] != (_EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY):
        return rpc_bytes(rpc)
    size = len(rpc[1][0].raw)
    return size + (2 if size < 0x80 else 3 if size < 0x4000 else 4 if size < 0x200000 else 5)
