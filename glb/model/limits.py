"""Limits: how much a server takes, and for how long it waits for a client.

Connections beyond a limit wait in the kernel's accept queue. This module is plain data, and
decides nothing but numbers.

Source: HAProxy's ``maxconn`` and ``rate-limit sessions``; nginx's ``client_header_timeout``.
"""

from __future__ import annotations

import sys
from typing import Final

__all__ = ["Bucket", "check_count", "check_places", "check_rate", "check_seconds"]

# What a server may take at once after a time without connections, in seconds' worth of its rate.
# Long enough that a wake-up is worth its price, short enough that no second has more than a tenth
# beyond its share.
BURST_SECONDS: Final = 0.1

# A pause is not shorter: each costs a timer and two changes of the ring.
MIN_PAUSE_SECONDS: Final = 0.005


def check_count(name: str, count: object) -> None:
    """Refuse anything but a whole number of 1 or more."""
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name} must be a whole number, got {count!r}")
    if count < 1:
        raise ValueError(f"{name} must be 1 or more, got {count!r}")


def check_places(clones: int | None, hubs: int | None) -> None:
    """Refuse numbers of clones and hubs that don't fit; ``None`` always does."""
    for name, count in {"clones": clones, "hubs": hubs}.items():
        if count is not None:
            check_count(name, count)
    if clones is not None and clones < (hubs or 1):
        raise ValueError(f"clones must be {hubs} or more, one for each hub, got {clones!r}")


def check_seconds(
    name: str, seconds: object, *, may_be_zero: bool = False, may_be_none: bool = True
) -> None:
    """Refuse anything but a number of seconds, or ``None`` where that has a meaning."""
    if seconds is None and may_be_none:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, got {seconds!r}")
    if may_be_zero and not 0 <= seconds < float("inf"):
        raise ValueError(f"{name} must be 0 seconds or more, got {seconds!r}")
    if not may_be_zero and not 0 < seconds < float("inf"):
        raise ValueError(f"{name} must be more than 0 seconds, got {seconds!r}")


def check_rate(name: str, rate: object) -> None:
    """Refuse anything but a number of connections a second or ``None``."""
    if rate is None:
        return
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise TypeError(f"{name} must be a number of connections a second, got {rate!r}")
    if not 0 < rate <= sys.float_info.max:
        raise ValueError(f"{name} must be more than 0 connections a second, got {rate!r}")


class Bucket:
    """A bucket of tokens, one a connection, which fills at a steady rate.

    Args:
        rate: Tokens a second, more than 0.
        now: On any clock in seconds; the same for every call. It is full then.

    Example:
        >>> bucket = Bucket(10, now=0.0)
        >>> bucket.take(0.0)
        >>> bucket.pause(0.0), bucket.pause(0.1)
        (0.1, 0.0)
    """

    def __init__(self, rate: float, now: float) -> None:
        self.rate: Final = rate
        self._size: Final = max(1.0, rate * BURST_SECONDS)
        self._tokens = self._size
        self._filled_at = now

    def take(self, now: float) -> None:
        """Take one, also if there is none; then the next `pause` is longer."""
        self._fill(now)
        self._tokens -= 1

    def pause(self, now: float) -> float:
        """Return for how many seconds nothing may be taken; 0 is: now."""
        self._fill(now)
        missing = 1 - self._tokens
        # A token that is there but for rounding is there.
        return 0.0 if missing <= 1e-9 else max(missing / self.rate, MIN_PAUSE_SECONDS)

    def _fill(self, now: float) -> None:
        elapsed = max(0.0, now - self._filled_at)
        self._tokens = min(self._size, self._tokens + elapsed * self.rate)
        self._filled_at = now
