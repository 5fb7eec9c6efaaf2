"""Rule S7 on ExLlama's page table: one account's prompt leaves no trace in the times and counts of another's.

Both libraries share KV pages between all jobs, found by a hash chain over the token ids, and for the first page, which
has no predecessor, by comparing tokens with every page in the cache. Here:

- `isolate`, right after a job was queued, replaces the hashes of its pages by keyed ones; the key is the account's
  tag, and a fresh random one where there is none. Whole pages are then found by the same account only.
- `close_roots`, after every step, gives first pages a predecessor that does not exist, so that none is ever compared.
- Between the two, inside one step, only one new job may start. `ExllamaEngine` sees to that.

The fields touched are not a promised interface of either library: `check` refuses a version that lacks them, at load.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any, Final

from ...errors import ConfigError

_CLOSED: Final = b"cocoon: no page!"  # 16 bytes, as the library's hashes; no hash of a page begins like this


def check(job: Any, pages: list[Any], library: str) -> None:
    """Raises `ConfigError` where this version of the library keeps its pages in another way."""
    sequences = getattr(job, "sequences", None) or []
    known = (
        isinstance(getattr(job, "all_unique_hashes", None), list)
        and all(isinstance(getattr(one, "page_hashes", None), list) for one in sequences)
        and all(hasattr(one, "prev_hash") and hasattr(one, "kv_position") for one in pages)
    )
    if not (known and sequences and pages):
        raise ConfigError(
            f"this version of {library} keeps its cache in a way that Cocoon does not know, and accounts could see one "
            "another's prompts",
            advice="Install the version that cocoon-network names.",
        )


def isolate(job: Any, tag: bytes) -> None:
    """After the job was queued, before the next step."""
    key = hashlib.blake2b(tag, digest_size=32, person=b"cocoon kv tag").digest() if tag else secrets.token_bytes(32)
    changed: dict[bytes, bytes] = {}

    def keyed(page: bytes) -> bytes:
        if page not in changed:
            changed[page] = hashlib.blake2b(page, digest_size=16, key=key).digest()
        return changed[page]

    for sequence in job.sequences:
        sequence.page_hashes = [keyed(page) for page in sequence.page_hashes]
    job.all_unique_hashes = [keyed(page) for page in job.all_unique_hashes]


def close_roots(pages: list[Any]) -> None:
    """After each step."""
    for page in pages:
        if page.prev_hash is None and page.kv_position:
            page.prev_hash = _CLOSED
