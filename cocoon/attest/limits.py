"""Every bound on evidence, checked before a byte of it is parsed, with the reason for its size."""

from __future__ import annotations

from typing import Final

# --- TDX ---
QUOTE_BYTES_MAX: Final = 16 * 1024  # real quotes have 5,006 bytes; the kernel's buffer ends at 16 KiB
COLLATERAL_BYTES_MAX: Final = 256 * 1024  # real: 16–19 KB; the PCK CRL grows with every revocation
COLLATERAL_JSON_DEPTH_MAX: Final = 12  # TCB info needs 5, inside a string of the outer object
CERTIFICATES_MAX: Final = 6  # longest real chain: 5 (GPU)
PEM_BYTES_MAX: Final = 16 * 1024  # a real GPU chain has 4.8 KB
CRL_BYTES_MAX: Final = 128 * 1024
CRL_ENTRIES_MAX: Final = 4_096
OCSP_BYTES_MAX: Final = 8 * 1024  # a P-384 answer with its responder's certificate has about 2 KB

# --- event log ---
EVENT_LOG_BYTES_MAX: Final = 256 * 1024  # a whole CCEL area; trimmed logs have 20–40 KB
EVENT_LOGS_MAX: Final = 2  # firmware's CCEL and the run-time log
EVENTS_MAX: Final = 1_024  # real logs: 27–43 events
EVENT_BYTES_MAX: Final = 64 * 1024
EVENT_DIGESTS_MAX: Final = 8  # per event: one for each algorithm of the log
EVENT_NAME_CHARS_MAX: Final = 256

# --- GPU ---
REPORT_BYTES_MAX: Final = 8 * 1024  # NVML's buffer; real reports have about 4.2 KB
OPAQUE_FIELDS_MAX: Final = 64
RIM_BYTES_MAX: Final = 128 * 1024  # real RIMs have 21 KB
RIMS_MAX: Final = 2  # one driver, one VBIOS
XML_DEPTH_MAX: Final = 10  # a real RIM nests 6 deep
XML_NODES_MAX: Final = 1_024  # a real RIM has about 90 elements
XML_ATTRIBUTES_MAX: Final = 64  # per element; a measurement with 16 alternatives has 22
RIM_MEASUREMENTS_MAX: Final = 256
RIM_ALTERNATIVES_MAX: Final = 32
GPUS_MAX: Final = 1  # version 1 serves one GPU per enclave

# --- bundle ---
NONCE_PATH_MAX: Final = 10  # one quote commits to at most 1,024 nonces
PARTS_MAX: Final = 24
CRLS_MAX: Final = 4
OCSP_ANSWERS_MAX: Final = 4
SAVED_BYTES_MAX: Final = 1024 * 1024  # a saved session with everything inline

# --- policy and releases ---
POLICY_BYTES_MAX: Final = 256 * 1024
RELEASE_BYTES_MAX: Final = 256 * 1024
RELEASES_MAX: Final = 64
BUILDERS_MAX: Final = 64
RTMR0_SET_MAX: Final = 4_096  # one per machine shape: memory size times CPU count
PPIDS_MAX: Final = 100_000

# --- time ---
CLOCK_SKEW_S: Final = 300  # a client's clock may be this far behind an issuer's
FACTS_LIFE_S: Final = 600  # K5: a session says Hello again after ten minutes
