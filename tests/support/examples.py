"""How many examples of a property are tried."""

from __future__ import annotations

import hypothesis

__all__ = ["examples", "try_fewer"]

#: What a run tries that leaves the thorough tests out: all of them are tried on one Python.
FEWER = 0.2

_share = 1.0


def try_fewer() -> None:
    """Have `examples` return fewer from now on, and properties without a number have fewer."""
    global _share  # noqa: PLW0603  # the tests' modules ask as they are imported
    _share = FEWER
    hypothesis.settings.register_profile("fewer", max_examples=examples(100))
    hypothesis.settings.load_profile("fewer")


def examples(number: int) -> int:
    """Return *number*, or the part of it that this run tries."""
    return max(1, round(number * _share))
