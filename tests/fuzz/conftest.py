"""What tests of many examples have of their own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def hangs_fail() -> None:
    """In place of that of all tests: each example has its own bound, and there may be many."""
