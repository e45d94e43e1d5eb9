"""A process with few descriptors, or none: the kernel's own EMFILE."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from ..conftest import open_descriptors


class Hoard:
    """Descriptors of ``/dev/null`` that were taken so that no other code can have them."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def fill(self) -> None:
        """Take all that there are."""
        while True:
            try:
                self.numbers.append(os.open(os.devnull, os.O_RDONLY))
            except OSError as error:
                if error.errno == errno.EMFILE:
                    return
                raise

    def give_back(self, count: int | None = None) -> None:
        """Close *count* of them, or all."""
        for _ in range(len(self.numbers) if count is None else count):
            os.close(self.numbers.pop())


@contextmanager
def scarcity(*, free: int = 0, taken: int = 20) -> Iterator[Hoard]:
    """Leave *free* descriptors, and hoard *taken*, and those between what is open already."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    hoard = Hoard()
    try:
        highest = max(open_descriptors())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + taken + free, limits[1]))
        hoard.fill()
        hoard.give_back(free)
        yield hoard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        hoard.give_back()
