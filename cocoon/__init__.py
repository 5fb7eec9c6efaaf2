"""A peer-to-peer market for confidential AI inference. Public names only."""
