"""NVIDIA H100 evidence: the SPDM report, its device chain, reference measurements (RIMs) and revocation."""
