"""From an exception group to the one error that a person can act on.

trio wraps whatever ends a nursery into exception groups. They stay inside: every public border (the Python API, the
command line, the gateway) raises the single cause found here.
"""

from __future__ import annotations

from .errors import CocoonError

DEPTH_MAX = 32  # nurseries do not nest deeper; a bound for a loop over foreign objects


def single_cause(error: BaseException) -> BaseException:
    """`error` itself, or of a group: its first `CocoonError`, else its first `Exception`, else its first leaf."""
    leaves = _leaves(error, DEPTH_MAX)
    for wanted in (CocoonError, Exception):
        for leaf in leaves:
            if isinstance(leaf, wanted):
                return leaf
    return leaves[0]


def _leaves(error: BaseException, depth: int) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup) or depth == 0:
        return [error]
    return [leaf for part in error.exceptions for leaf in _leaves(part, depth - 1)]
