"""The libp2p Noise channel, sans-IO: who is at the other end, and sealed frames from then on."""

from p2p.noise.cipher import AnotherPeer, NoiseError, SealedChannel
from p2p.noise.identity import ed25519_identity, verify_ed25519
from p2p.noise.machine import PROTOCOL, NoiseHandshake, NoiseIdentity, VerifyIdentity

__all__ = [
    "PROTOCOL",
    "AnotherPeer",
    "NoiseError",
    "NoiseHandshake",
    "NoiseIdentity",
    "SealedChannel",
    "VerifyIdentity",
    "ed25519_identity",
    "verify_ed25519",
]
