"""The simulator: the shipped machines in virtual time, and a fast model that is proven against them. See README.md."""
