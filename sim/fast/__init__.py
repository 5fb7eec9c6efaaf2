"""Level 2: compiled models of propagation, lookups and the market, for 10^5 to 10^6 nodes. `level.py` is the entry.

Nothing heavy is imported here: numba and numpy come with the first model that runs.
"""
