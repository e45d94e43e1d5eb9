"""An accept(2) that fails as long as a test wants: the kernel can't be made to do so."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from glb.accept.descriptor import Descriptor
from glb.accept.registry import Entry


class Fault:
    """What accepts raise.

    Attributes:
        code: The errno; ``None`` while nothing fails.
        left: How many times still; ``None`` is for ever.
        calls: How often it was raised.
    """

    def __init__(self, code: int | None, left: int | None = None) -> None:
        self.code = code
        self.left = left
        self.calls = 0

    def strike(self) -> None:
        """Raise it, if it lasts."""
        if self.code is None or self.left == 0:
            return
        if self.left is not None:
            self.left -= 1
        self.calls += 1
        raise OSError(self.code, os.strerror(self.code))


@contextmanager
def failing_accepts(entry: Entry, code: int | None, left: int | None = None) -> Iterator[Fault]:
    """Have all accepts at *entry*'s address fail, also those of a ``do_read`` of a program's."""
    fault = Fault(code, left)
    accept, read = entry.accept, Descriptor._accept

    def failing_accept() -> Any:
        fault.strike()
        return accept()

    def failing_read(self: Descriptor) -> Any:
        if self.entry is entry:
            fault.strike()
        return read(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "accept", failing_accept)
        patch.setattr(Descriptor, "_accept", failing_read)
        yield fault


#: What accept(2) may say for ever of a connection that stays in the queue.
REFUSALS = [errno.EPERM, errno.EACCES, errno.EIO]
