"""The statement S: what a provider claims of one session, in bytes that are sent verbatim and never re-encoded.

S is the only source of the sealing key E and of the evidence digests (rule K4); rule K6 lists what it holds.
At every trust level it is signed by O and by P. With hardware evidence its hash is also inside the quote:
`report_data = SHA-512("cocoon/report-data/v1\\0" ‖ S)`, and the GPU's nonce commits to N, P and E. A software TEE
uses other domains, so what it signs can never pass as hardware.

Here is only the statement and what binds to it; `verifier` judges the evidence, `policy` the outcome.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

from msgspec import Meta

from ..errors import BindingMismatch
from ..types import Digest, Network
from ..wire import limits
from ..wire.codec import decode_as, encode
from ..wire.messages import U8, U16, Bytes32, Message, NetworkId
from ..wire.signing import Domain, domain_hash, hash_prefix, signed_bytes, verify

STATEMENT_VERSION: Final = 1

MODE_OPEN: Final = 0  # no hardware evidence
MODE_SIMULATED: Final = 1  # software TEE
MODE_TDX: Final = 2
MODE_TDX_GPU: Final = 3

SUITE_X25519: Final = 1  # HPKE: DHKEM(X25519), HKDF-SHA256, ChaCha20-Poly1305
SUITE_MLKEM768_X25519: Final = 2

SHA384_BYTES: Final = 48
GPUS_MAX: Final = 8
MODELS_MAX: Final = 16


class Statement(Message, frozen=True):
    """One session's claims. Digests are zeros where the mode has no such thing."""

    version: U16
    mode: U8
    network: NetworkId
    nonce: Bytes32  # N, the client's
    peer: Bytes32  # P
    sealing_suite: U8
    sealing_key: Annotated[bytes, Meta(min_length=32, max_length=1_216)]  # E
    operator: Bytes32  # O
    payout: Bytes32
    image: Bytes32
    config: Bytes32
    models: Annotated[list[Bytes32], Meta(min_length=1, max_length=MODELS_MAX)]
    gpus: Annotated[
        list[Annotated[bytes, Meta(min_length=SHA384_BYTES, max_length=SHA384_BYTES)]],
        Meta(max_length=GPUS_MAX),
    ]


def encode_statement(statement: Statement) -> bytes:
    """The bytes to sign and send."""
    return encode(statement)


def decode_statement(data: bytes) -> Statement:
    """The statement in these bytes. Raises `DecodeError` or `LimitExceeded`."""
    return decode_as(data, Statement, bytes_max=limits.STATEMENT_BYTES_MAX)


def statement_digest(data: bytes) -> Digest:
    """H(S), under which facts are cached and which enters the session id."""
    return domain_hash("statement-digest", data)


def signed_statement(network: Network, data: bytes) -> bytes:
    """What O and P sign."""
    return signed_bytes(Domain.STATEMENT, network, data)


def report_data(data: bytes, *, simulated: bool) -> bytes:
    """The 64 bytes that the quote must carry for this statement."""
    return hashlib.sha512(hash_prefix("sim-report-data" if simulated else "report-data") + data).digest()


def gpu_nonce(nonce: bytes, peer: bytes, sealing_key: bytes, *, simulated: bool) -> bytes:
    """The 32-byte nonce that every GPU report must carry: it commits to N, P and E."""
    return hashlib.sha256(
        hash_prefix("sim-gpu-nonce" if simulated else "gpu-nonce") + nonce + peer + sealing_key
    ).digest()


def check_statement(
    data: bytes,
    *,
    operator_signature: bytes,
    peer_signature: bytes,
    network: Network,
    nonce: bytes,
    peer: bytes,
    operator: bytes,
    model: Digest,
    payout: bytes,
) -> Statement:
    """The statement, once everything that needs no hardware is proven about it.

    `nonce` is the one we sent, `peer` the key of the authenticated connection; `operator`, `model` and `payout`
    are what the offer says. Raises `DecodeError`, `BadSignature` or `BindingMismatch`, which blames the operator:
    its offer led here.
    """
    statement = decode_statement(data)
    for name, ours, theirs in (
        ("version", STATEMENT_VERSION, statement.version),
        ("network", int(network), statement.network),
        ("nonce", nonce, statement.nonce),
        ("peer key", peer, statement.peer),
        ("operator key", operator, statement.operator),
        ("payout address", payout, statement.payout),
    ):
        if ours != theirs:
            raise BindingMismatch(f"the provider's statement names another {name} than its offer and connection")
    if model not in statement.models:
        raise BindingMismatch("the provider's statement does not name the model of its offer")
    message = signed_statement(network, data)
    verify(operator, operator_signature, message)
    verify(peer, peer_signature, message)
    return statement
