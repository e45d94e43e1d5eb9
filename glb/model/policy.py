"""Policies: which of the ready clones gets the next connection.

All of them choose among the same ready clones, offered in the order in which they have
waited; see `glb.accept.ring`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Protocol, TypeVar

__all__ = ["Policy"]


class Loaded(Protocol):
    """A clone as a policy sees it."""

    @property
    def load(self) -> int:
        """Handlers that run for it."""


L = TypeVar("L", bound=Loaded)


class Policy(enum.Enum):
    """How the next connection finds its clone; one policy an address.

    ``ROUND_ROBIN`` takes the clone that has waited longest: exact turns.
    ``LEAST_CONNECTIONS`` takes the one for which the fewest handlers run, and of equals the
    one that has waited longest; it looks at every ready clone, so it costs O(N).
    ``FIRST`` fills one hub before the next: turns go round the ready clones of the first hub
    that has any. With one hub it is ``ROUND_ROBIN``.
    """

    ROUND_ROBIN = "round_robin"
    LEAST_CONNECTIONS = "least_connections"
    FIRST = "first"

    @classmethod
    def of(cls, policy: Policy | str | None) -> Policy | None:
        """Return the policy that *policy* names; ``None`` means any.

        Raises:
            TypeError, ValueError: It is no policy; the text has the value.
        """
        if policy is None or isinstance(policy, cls):
            return policy
        if not isinstance(policy, str):
            raise TypeError(f"policy must be a name or None, got {policy!r}")
        try:
            return cls(policy)
        except ValueError as error:
            names = ", ".join(repr(each.value) for each in cls)
            raise ValueError(f"policy must be one of {names}, got {policy!r}") from error


def least_loaded(ready: Iterable[L]) -> L | None:
    """Return the least loaded of *ready*, the first of equals, or ``None`` of none."""
    return min(ready, key=lambda clone: clone.load, default=None)
