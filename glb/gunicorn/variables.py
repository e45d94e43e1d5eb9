"""Variables: what glb's workers take from the environment, as gunicorn's settings are its own.

``--env GLB_HUBS=2``, or ``raw_env`` in gunicorn's file, sets one for the workers alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Variables"]


@dataclass(frozen=True)
class Variables:
    """How many places a worker has, and how long a request may take.

    Attributes:
        clones: ``GLB_CLONES``: how many clones each address has in each process. By default 4, or
            as many as there are hubs.
        hubs: ``GLB_HUBS``: on how many threads, each with a hub of its own. By default 1.
        request_timeout: ``GLB_REQUEST_TIMEOUT``: how many seconds a request may take; ``None`` is
            for ever.
    """

    clones: int
    hubs: int
    request_timeout: float | None

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Variables:
        """Return what *environ* says.

        Raises:
            ValueError: A variable has no such value. The error has both.
        """
        hubs = _count(environ, "GLB_HUBS", 1)
        clones = _count(environ, "GLB_CLONES", max(4, hubs))
        if clones < hubs:
            raise ValueError(f"GLB_CLONES must be at least GLB_HUBS, {hubs}, got {clones}")
        return cls(clones, hubs, _seconds(environ, "GLB_REQUEST_TIMEOUT"))


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"{name} must be a whole number, 1 or more, got {text!r}")
    return int(text)


def _seconds(environ: Mapping[str, str], name: str) -> float | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} must be a number of seconds, 0 for ever, got {text!r}")
    return seconds or None
