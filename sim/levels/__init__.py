"""Levels of fidelity: 0 whole nodes (`whole.py`), 1 the shipped machines (`machines.py`). Level 2 is `sim.fast`."""
