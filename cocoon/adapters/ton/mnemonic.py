"""24 words to a wallet key, as every TON wallet derives it. No password variant. Values only; randomness is passed in.

Source: github.com/toncenter/tonweb-mnemonic; checked against pytoniq-core in a test.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from pytoniq_core.crypto import keys

from ...errors import ConfigError
from ...ports import Entropy
from ...types import Secret

WORDS: Final[tuple[str, ...]] = tuple(keys.words)
WORD_COUNT: Final = 24
ITERATIONS: Final = 100_000
VERSION_ITERATIONS: Final = ITERATIONS // 256  # one in 256 phrases is valid: a checksum of eight bits
TRIES_MAX: Final = 20_000  # the chance of needing more is 10⁻³⁴
_INDEX: Final = {word: place for place, word in enumerate(WORDS)}


def new_words(entropy: Entropy) -> tuple[str, ...]:
    """A fresh valid phrase; takes about a tenth of a second."""
    assert len(WORDS) == 2_048
    for _ in range(TRIES_MAX):
        drawn = int.from_bytes(entropy(WORD_COUNT * 11 // 8), "big")  # 264 bits: eleven for each word, none left
        phrase = tuple(WORDS[drawn >> 11 * place & 2_047] for place in range(WORD_COUNT))
        if _is_valid(phrase):
            return phrase
    raise AssertionError("no valid phrase in many tries: the randomness is broken")


def parse_words(text: str) -> tuple[str, ...]:
    """The words of a phrase that a person typed. Raises `ConfigError`, without quoting any word."""
    phrase = tuple(text.lower().split())
    if len(phrase) != WORD_COUNT:
        raise ConfigError(f"a recovery phrase has {WORD_COUNT} words; here are {len(phrase)}")
    unknown = [place + 1 for place, word in enumerate(phrase) if word not in _INDEX]
    if unknown:
        raise ConfigError(f"word {unknown[0]} of the recovery phrase is not in the list of words")
    if not _is_valid(phrase):
        raise ConfigError("the recovery phrase does not check: a word is wrong, or two are swapped")
    return phrase


def seed_of(phrase: tuple[str, ...]) -> Secret:
    """The 32-byte ed25519 seed of a phrase."""
    derived = hashlib.pbkdf2_hmac("sha512", _entropy(phrase), b"TON default seed", ITERATIONS)
    return Secret(derived[:32])


def _is_valid(phrase: tuple[str, ...]) -> bool:
    return hashlib.pbkdf2_hmac("sha512", _entropy(phrase), b"TON seed version", VERSION_ITERATIONS)[0] == 0


def _entropy(phrase: tuple[str, ...]) -> bytes:
    return hmac.new(" ".join(phrase).encode(), b"", hashlib.sha512).digest()
