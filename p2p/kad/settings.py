"""Parameters of the DHT. Sources: libp2p/specs, kad-dht/README.md; S/Kademlia for disjoint paths. Times in `_s`."""

from __future__ import annotations

from dataclasses import dataclass

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KadSettings:
    replication: int = 20  # `k`
    alpha: int = 3  # requests in flight, per path
    paths: int = 2  # disjoint: a liar on one sees nothing of the other (S/Kademlia, section 4.4)
    is_server: bool = True  # a client asks and never answers (rule H2)

    queries_per_lookup_max: int = 120  # an honest network of a million needs about 60
    candidates_per_path_max: int = 200
    lookups_max: int = 64  # at one time; more are refused
    lookup_per_group_max: int = 4  # candidates of one address group in one lookup: an eclipse needs more
    request_timeout_s: float = 10.0  # for one answer, dial included; then the peer counts as failed
    lookup_timeout_s: float = 60.0

    table_per_group_max: int = 3  # entries of one address group in the whole table, and per bucket:
    table_per_group_bucket_max: int = 2
    replacements_max: int = 5  # waiting for a place, per bucket
    failures_max: int = 2  # in a row, then the entry goes
    liveness_interval_s: float = 600.0  # an entry not heard of for so long is asked
    liveness_checks_max: int = 5  # per tick
    tick_s: float = 10.0
    refresh_first_s: float = 0.0  # after the start; later where dialling strangers at once is not wanted
    refresh_interval_s: float = 300.0  # "Bootstrap process": default 5 minutes
    refresh_interval_empty_s: float = 15.0  # while hardly anybody is known

    providers_ttl_s: float = 24 * 3600.0  # "expire, by default, after 24 hours"
    republish_s: float = 12 * 3600.0
    provider_keys_max: int = 20_000
    providers_per_key_max: int = 64
    keys_per_provider_max: int = 1_000
    providers_kept_max: int = 50_000  # records, about 0.5 KB each
    own_keys_max: int = 4_096

    offences_max: int = 3  # answers that no honest peer gives, within
    offence_memory_s: float = 600.0
    ban_s: float = 600.0  # then so long neither in the table nor asked
    offenders_max: int = 1_024  # of whom a count or a ban is kept

    values_ttl_s: float = 36 * 3600.0
    values_max: int = 1_000
    value_bytes_max: int = 8 * 1024
    value_quorum: int = 3
