"""The market at level 1: providers and clients with the real machines of `cocoon`, and economics around them.

`env` is the world that a peer sees, `engine` a provider's machine, `provider` and `client` the peers, `money` their
payers and payees, `rules` how clients choose, `policies` how providers price, `optimum` and `metrics` what is measured.
`sim.levels.market` puts them together.
"""
