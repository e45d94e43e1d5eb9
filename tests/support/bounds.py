"""How long the tests wait for what has gone wrong."""

from __future__ import annotations

from typing import Final

__all__ = ["ENDLESS_SECONDS"]

#: A child that takes longer is ended, and its test fails. A loaded machine doesn't come near.
ENDLESS_SECONDS: Final = 120
