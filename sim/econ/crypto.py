"""Keys, signatures and seals of one simulation: real where they decide something, cheap where they only cost time.

Signatures are real ed25519, and each is verified once in the whole simulation (`SignatureMemo`): the answer cannot
differ from node to node. Parsed and verified offers are shared by all books for the same reason. HPKE and the chunk
cipher are stand-ins of the same sizes (`SimCrypto`) that still refuse what was not sealed for them: they hide
nothing, and draw no randomness from the system, so that runs repeat.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import nacl.bindings
from cryptography.exceptions import InvalidTag

from cocoon.errors import BadSignature
from cocoon.serve.sealing import seal_error
from cocoon.types import Secret
from cocoon.wire.signing import verify as verify_once

MEMO_MAX: Final = 400_000  # verified signatures kept: about 100 MB
SHARED_MAX: Final = 20_000  # parsed and verified messages of each kind: about 80 MB


class Key:
    """An ed25519 key pair, the same for the same name."""

    __slots__ = ("_secret", "public")

    def __init__(self, name: str) -> None:
        seed = hashlib.sha256(name.encode()).digest()
        self.public, self._secret = nacl.bindings.crypto_sign_seed_keypair(seed)

    def sign(self, message: bytes) -> bytes:
        """Over exactly these bytes."""
        return bytes(nacl.bindings.crypto_sign(message, self._secret)[:64])


class SignatureMemo:
    """Verifies each signature once."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, bool] = OrderedDict()
        self.verified = 0

    def verify(self, key: bytes, signature: bytes, message: bytes) -> None:
        """As `cocoon.wire.signing.verify`. Raises `BadSignature`."""
        name = hashlib.blake2b(message, key=key[:32], digest_size=32).digest() + signature
        good = self._known.get(name)
        if good is None:
            self.verified += 1
            try:
                verify_once(key, signature, message)
                good = True
            except BadSignature:
                good = False
            self._known[name] = good
            if len(self._known) > MEMO_MAX:
                self._known.popitem(last=False)
        if not good:
            raise BadSignature("the signature does not verify")


class Shared:
    """One result per message, for all nodes: a function of bytes alone cannot differ from node to node.

    What is frozen may be shared, so ten thousand books hold one copy of an offer. Refusals are worked out anew.
    """

    def __init__(self, work: Callable[..., Any], name_of: Callable[[Any], Any]) -> None:
        self._work = work
        self._name_of = name_of
        self._known: OrderedDict[Any, Any] = OrderedDict()

    def __call__(self, message: Any, **how: Any) -> Any:
        name = self._name_of(message)
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self._work(message, **how)
            if len(self._known) > SHARED_MAX:
                self._known.popitem(last=False)
        return found


@contextmanager
def shared_signatures(memo: SignatureMemo) -> Iterator[None]:
    """While this is open, books share parsed and verified offers and beacons, and signatures are verified once.

    All peers of one simulation are of one network. Not for two simulations at once in one process.
    """
    import cocoon.market.beacon
    import cocoon.market.book
    import cocoon.market.equivocation
    import cocoon.market.offer

    book: Any = cocoon.market.book
    changes: list[tuple[Any, str, Any]] = [
        (module, "verify", memo.verify)
        for module in (cocoon.market.beacon, cocoon.market.equivocation, cocoon.market.offer)
    ]
    changes += [(book, name, Shared(getattr(book, name), _itself)) for name in ("parse_offer", "parse_beacon")]
    changes += [
        (book, name, Shared(getattr(book, name), _message_of)) for name in ("verify_parsed", "verify_parsed_beacon")
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for module, name, new in changes:
        setattr(module, name, new)
    try:
        yield
    finally:
        for module, name, old in before:
            setattr(module, name, old)


def _itself(message: bytes) -> bytes:
    return message


def _message_of(parsed: Any) -> bytes:
    return bytes(parsed.message)


class SimCipher:
    """An AEAD's sizes and refusals, without secrecy."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        """The data and 16 bytes."""
        return data + self._tag(nonce, data, associated_data)

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        """Raises `InvalidTag`."""
        plain, tag = data[:-16], data[-16:]
        if self._tag(nonce, plain, associated_data) != tag:
            raise InvalidTag
        return plain

    def _tag(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        head = nonce + len(data).to_bytes(4, "big") + (associated_data or b"")
        return hashlib.blake2b(head + data, key=self._key[:64], digest_size=16).digest()


class SimCrypto:
    """`cocoon.serve.sealing.Crypto` with HPKE's sizes: 32 bytes of encapsulation and 16 of tag."""

    def public_key(self, private: Secret) -> bytes:
        """The public half."""
        return hashlib.blake2b(private.reveal(), digest_size=32, person=b"sim public").digest()

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        """48 bytes more than the plaintext."""
        return self._head(public, plaintext, info) + plaintext

    def open(self, private: Secret, sealed: bytes, info: bytes) -> bytes:
        """Raises `SealError`."""
        head, plaintext = sealed[:48], sealed[48:]
        if self._head(self.public_key(private), plaintext, info) != head:
            raise seal_error()
        return plaintext

    def cipher(self, key: bytes) -> SimCipher:
        """For chunks."""
        return SimCipher(key)

    @staticmethod
    def _head(public: bytes, plaintext: bytes, info: bytes) -> bytes:
        return hashlib.blake2b(info + plaintext, key=public, digest_size=48).digest()
