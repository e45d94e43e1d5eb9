"""The spare descriptor's promises: one, there when it is needed, and no other file is closed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import gevent
import gevent.os
import pytest

from glb.accept.registry import REGISTRY
from glb.net.spare_fd import SpareDescriptor

from ..conftest import open_descriptors
from ..support.scarcity import scarcity


@pytest.fixture
def spare() -> Iterator[SpareDescriptor]:
    """One with a user."""
    made = SpareDescriptor(threading.RLock())
    made.acquire()
    yield made
    made.release()
    assert not has_spare(made)


def has_spare(spare: SpareDescriptor) -> bool:
    """Return True if there is one now: a function, as for mypy properties never change."""
    return spare.is_there


def is_full() -> bool:
    """Return True if there is no descriptor left."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno == errno.EMFILE
    return False


def test_the_last_release_closes_the_spare() -> None:
    """However many users there are, there is one spare; it isn't inherited."""
    made = SpareDescriptor(threading.RLock())
    before = open_descriptors()
    for _ in range(3):
        made.acquire()
    (spare,) = open_descriptors().items() - before.items()
    assert spare[1] == os.devnull and not os.get_inheritable(spare[0])
    for _ in range(2):
        made.release()
    assert has_spare(made) and spare[0] in open_descriptors()
    made.release()
    assert not has_spare(made) and open_descriptors() == before


def test_monkey_patching_does_not_put_its_close_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gevent's `os.close` closes a turn of the loop later, and holds the loop until then."""
    monkeypatch.setattr(os, "close", gevent.os.close)
    loop = gevent.get_hub().loop
    before, watchers = open_descriptors(), loop.activecnt
    made = SpareDescriptor(threading.RLock())
    made.acquire()
    with made.lend():
        assert open_descriptors() == before
    made.release()
    assert open_descriptors() == before
    assert loop.activecnt == watchers


def test_one_can_be_opened_while_it_is_lent(spare: SpareDescriptor) -> None:
    """Of no descriptors at all: one, and afterwards none again."""
    with scarcity():
        assert is_full()
        with spare.lend():
            number = os.open(os.devnull, os.O_RDONLY)
            assert is_full()
            os.close(number)
        assert is_full() and has_spare(spare)


def test_what_stays_open_within_keeps_it_until_there_is_room(spare: SpareDescriptor) -> None:
    """The spare is missing then, which is no error, and `refill` finds the next room."""
    with scarcity() as hoard:
        with spare.lend():
            number = os.open(os.devnull, os.O_RDONLY)
        spare.refill()
        assert not has_spare(spare)
        with spare.lend():
            assert is_full()
        hoard.give_back(2)
        spare.refill()
        assert has_spare(spare) and not is_full()
        os.close(number)


def test_no_room_for_a_spare_is_no_error() -> None:
    """A user without one gets it with the next refill."""
    made = SpareDescriptor(threading.RLock())
    with scarcity():
        made.acquire()
        assert not has_spare(made)
        with made.lend():
            assert is_full()
    made.refill()
    assert has_spare(made)
    made.release()


def test_a_loan_within_a_loan_gives_nothing_and_takes_nothing(spare: SpareDescriptor) -> None:
    """The outermost takes it back."""
    with spare.lend():
        with spare.lend():
            assert not has_spare(spare)
        assert not has_spare(spare)
    assert has_spare(spare)


def test_threads_that_borrow_at_once_leave_one_spare(spare: SpareDescriptor) -> None:
    """The last one takes it back."""
    before = open_descriptors()
    both, inside, leave = threading.Barrier(2), threading.Event(), threading.Event()

    def borrow() -> None:
        with spare.lend():
            both.wait(10)
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=borrow)
    thread.start()
    with spare.lend():
        both.wait(10)
    inside.wait(10)
    assert not has_spare(spare)
    leave.set()
    thread.join()
    assert has_spare(spare) and open_descriptors() == before


def test_a_loan_that_fails_is_taken_back(spare: SpareDescriptor) -> None:
    with pytest.raises(ZeroDivisionError), spare.lend():
        raise ZeroDivisionError
    assert has_spare(spare)


def test_users_may_come_and_go_while_it_is_lent() -> None:
    """There is a spare afterwards if there is a user then."""
    made = SpareDescriptor(threading.RLock())
    made.acquire()
    with made.lend():
        made.release()
    assert not has_spare(made)
    with made.lend():
        made.acquire()
        assert not has_spare(made)
    assert has_spare(made)
    made.release()


def test_another_file_under_its_number_is_not_closed(tmp_path: Path) -> None:
    """A program that closes all it finds, and opens something: that is the program's."""
    made = SpareDescriptor(threading.RLock())
    before = open_descriptors()
    made.acquire()
    ((number, _),) = open_descriptors().items() - before.items()
    with open(tmp_path / "theirs", "w") as file:
        os.dup2(file.fileno(), number)
        with made.lend():
            pass
        made.release()
        assert open_descriptors()[number] == file.name
        os.close(number)


def test_a_child_does_not_wait_for_the_parents_threads(spare: SpareDescriptor) -> None:
    """Another thread had it lent when the process was forked: here it never gives it back.

    Without a fork, which pytest's process had better not: with what the fork's hook calls.
    """
    lent, leave = threading.Event(), threading.Event()

    def borrow() -> None:
        with spare.lend():
            lent.set()
            leave.wait(10)

    thread = threading.Thread(target=borrow)
    thread.start()
    lent.wait(10)
    spare.keep_thread_locked(threading.get_ident())
    assert has_spare(spare)
    leave.set()
    thread.join()
    assert has_spare(spare)


def test_it_is_lent_with_the_registrys_lock_held() -> None:
    """By the close of an address's last clone, from anywhere."""
    with REGISTRY.lock:
        REGISTRY.reserve.acquire()
        with REGISTRY.reserve.lend():
            assert not has_spare(REGISTRY.reserve)
        assert has_spare(REGISTRY.reserve)
        REGISTRY.reserve.release()
