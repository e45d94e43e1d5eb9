"""The spare descriptor: one that the process keeps for the moment when there is no other.

A process that is out of descriptors can't open the file to which it would log that, nor what it
needs to close a listener in good order. So a spare one, of ``os.devnull``, is open as long as it
has users, and is closed for a moment when a descriptor is needed: `SpareDescriptor.lend`. The rules
that always hold:

* There is at most one spare, and none without a user, or while it is lent.
* No room for a spare is no error: the next `acquire`, `refill` or return of a loan opens it.
* Only our own file is closed. If the program has closed our number, another file may have it.

The lock comes in as an argument: it is the registry's, which is native and re-entrant, so that
a garbage collection or a signal handler that closes a listener in here needs one lock and not
two. Nothing here switches greenlets. A `fork` copies the spare; the child counts
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

__all__ = ["Reserve", "SpareDescriptor"]


class SpareDescriptor:
    """A spare descriptor. From any thread.

    Args:
        lock: What guards its state, native and re-entrant.
    """

    def __init__(self, lock: Any) -> None:
        self._lock: Final = lock
        self._users = 0
        # The threads that borrow it now, once for each loan.
        self._borrowers: list[int] = []
        self._number: int | None = None
        # The identity of our file: another one may get the same number.
        self._file: tuple[int, int] | None = None

    @property
    def is_there(self) -> bool:
        """True if there is a spare to lend."""
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
        """Open the spare, if it is missing and there is room."""
        with self._lock:
            self._fill_locked()

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Have room for one more descriptor, within.

        The first open in the process gets it, so use it at once. A descriptor that stays open keeps
        the room. A loan within a loan gives nothing more.
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
        """In a forked child: forget the loans of all threads but *thread*."""
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


#: Its name in `glb.accept.registry`.
Reserve = SpareDescriptor
