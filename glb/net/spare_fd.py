"""The reserve: one descriptor of the process that is kept for when there is no other.

A process that is out of descriptors can't open the file to which it would log that, nor what
it needs to close a listener in good order. So a spare one, of ``os.devnull``, is kept as long
as somebody has acquired the reserve, and is closed for a moment where one is needed:
`Reserve.lend`. The rules that always hold:

* There is at most one spare, and none without a user, or while it is lent.
* No room for a spare is no error: it is opened when somebody asks the next time.
* Only our own file is closed. Who has closed the number behind our back may have another there.

The lock comes in as an argument: it is the registry's, which is native and re-entrant, so that
a garbage collection or a signal handler that strikes in here and closes a listener finds one
lock and not two. Nothing here switches greenlets. A `fork` copies the spare; the child counts
its own users.

Source: nginx and HAProxy keep descriptors back when they count what they may accept; libev's
manual, "The special problem of accept()ing when you can't", describes this one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..originals import close, native_ident
from .sockets import file_of

__all__ = ["Reserve"]


class Reserve:
    """A spare descriptor. From any thread.

    Args:
        lock: What guards its state, native and re-entrant.
    """

    def __init__(self, lock: Any) -> None:
        self._lock: Final = lock
        self._users = 0
        # The threads that have it lent now, each as often.
        self._borrowers: list[int] = []
        self._number: int | None = None
        # What tells our file from another under the same number.
        self._file: tuple[int, int] | None = None

    @property
    def is_there(self) -> bool:
        """Whether there is a spare to lend."""
        return self._number is not None

    def acquire(self) -> None:
        """Keep a spare, until as many `release`."""
        with self._lock:
            self._users += 1
            self._fill_locked()

    def release(self) -> None:
        """Count a user out. With the last one the spare is closed."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._empty_locked()

    def refill(self) -> None:
        """Open the spare, if it is missing and there is room: somebody may have taken it."""
        with self._lock:
            self._fill_locked()

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Have room for one more descriptor, within.

        It is free for whoever opens something first, so it is for what follows at once. What is
        left open within keeps it. Within another `lend` there is nothing more to be had.
        """
        borrower = native_ident()
        try:
            with self._lock:
                self._borrowers.append(borrower)
                self._empty_locked()
            yield
        finally:
            with self._lock:
                if borrower in self._borrowers:  # not if an interrupt struck before
                    self._borrowers.remove(borrower)
                self._fill_locked()

    def keep_thread_locked(self, thread: int) -> None:
        """In a forked child: forget those to whom it was lent, but for *thread*."""
        self._borrowers = [each for each in self._borrowers if each == thread]
        self._fill_locked()

    def _fill_locked(self) -> None:
        if self._number is not None or not self._users or self._borrowers:
            return
        try:
            number = os.open(os.devnull, os.O_RDONLY)  # not inherited: PEP 446
        except OSError:
            return
        self._number, self._file = number, file_of(number)

    def _empty_locked(self) -> None:
        number, self._number = self._number, None
        if number is not None and file_of(number) == self._file:
            close(number)
