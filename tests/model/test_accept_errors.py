"""Accept errors: each errno lies in one heap, and gevent's fatal ones in the last."""

from __future__ import annotations

import errno
from itertools import combinations

import gevent.server
import pytest

from glb.model import accept_errors as errors
from glb.model.accept_errors import Episode, Heap, classify

HEAPS = {
    Heap.PEER_LEFT: errors.PEER_LEFT_ERRNOS,
    Heap.OUT_OF_ROOM: errors.OUT_OF_ROOM_ERRNOS,
    Heap.BROKEN: errors.BROKEN_ERRNOS,
}


def test_heaps_share_no_errno() -> None:
    """What to do about an errno is never a matter of which heap is asked first."""
    for one, other in combinations(HEAPS.values(), 2):
        assert not one & other


def test_every_errno_is_classified_by_its_heap() -> None:
    """Each number that this platform has lies in its one heap, or is unknown."""
    for number in errno.errorcode:
        heaps = [heap for heap, numbers in HEAPS.items() if number in numbers]
        assert classify(OSError(number, "x")) is (heaps[0] if heaps else Heap.UNKNOWN)


@pytest.mark.parametrize(
    ("name", "heap"),
    [
        ("ECONNABORTED", Heap.PEER_LEFT),
        ("EPROTO", Heap.PEER_LEFT),
        ("EPERM", Heap.UNKNOWN),
        ("EINTR", Heap.PEER_LEFT),
        ("ENETUNREACH", Heap.PEER_LEFT),
        ("EMFILE", Heap.OUT_OF_ROOM),
        ("ENFILE", Heap.OUT_OF_ROOM),
        ("ENOBUFS", Heap.OUT_OF_ROOM),
        ("ENOMEM", Heap.OUT_OF_ROOM),
        ("EBADF", Heap.BROKEN),
        ("EINVAL", Heap.BROKEN),
        ("ENOTSOCK", Heap.BROKEN),
        ("EOPNOTSUPP", Heap.BROKEN),
        ("EFAULT", Heap.UNKNOWN),
        ("EAGAIN", Heap.UNKNOWN),
    ],
)
def test_each_heap_has_its_errnos(name: str, heap: Heap) -> None:
    """The errnos of accept(2) lie where the module's docstring says."""
    assert classify(OSError(getattr(errno, name), "x")) is heap


def test_what_is_fatal_to_gevent_is_broken() -> None:
    """A server that gevent would close for an error, we close as well."""
    for number in gevent.server.StreamServer.fatal_errors:  # type: ignore[attr-defined]  # a tuple
        assert classify(OSError(number, "x")) is Heap.BROKEN


def test_what_no_kernel_said_is_unknown() -> None:
    """Other exceptions, and errors without an errno, lie in no heap."""
    for error in (ValueError("x"), OSError("x"), KeyboardInterrupt(), TimeoutError()):
        assert classify(error) is Heap.UNKNOWN


def test_subclasses_are_classified_by_their_errno() -> None:
    """Python's own classes for some errnos change nothing."""
    assert classify(ConnectionAbortedError(errno.ECONNABORTED, "x")) is Heap.PEER_LEFT
    assert classify(BrokenPipeError(errno.EBADF, "x")) is Heap.BROKEN


def test_names_that_a_platform_lacks_are_left_out() -> None:
    """A table may name what only some systems have."""
    assert errors._errnos("EBADF", "ENOSUCHERRNO") == {errno.EBADF}


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (errors.listener_closed(("127.0.0.1", 80)), errno.EBADF),
        (errors.listener_shut_down(("127.0.0.1", 80)), errno.EINVAL),
        (errors.address_in_use(("127.0.0.1", 80)), errno.EADDRINUSE),
    ],
)
def test_our_own_errors_are_os_errors_with_the_address(error: OSError, number: int) -> None:
    """Old code finds the errno that it knows, and people find the address."""
    assert type(error) is OSError
    assert error.errno == number
    assert "('127.0.0.1', 80)" in str(error)


# -- episodes -----------------------------------------------------------------------------------


def test_an_episode_lasts_while_failures_come_sooner_than_its_gap() -> None:
    """After each pause, and a second more, the next one is news."""
    episode, error = Episode(), OSError(errno.EIO, "x")
    assert episode.is_news(error, 1.0, 100.0)
    assert not episode.is_news(error, 1.0, 103.0)
    assert not episode.is_news(error, -1, 106.0)
    assert episode.is_news(error, 1.0, 107.1)


def test_each_kind_of_failure_is_news_once() -> None:
    """Errnos and types are kinds; so is a lack of room, and peers that left, whatever errno."""
    episode = Episode()
    errnos = [errno.EMFILE, errno.ENFILE, errno.EPROTO, errno.ECONNABORTED, errno.EIO, errno.EPERM]
    failures: list[Exception] = [OSError(number, "x") for number in errnos]
    failures += [ValueError("x"), ValueError("y"), OSError("x")]
    found = [episode.is_news(error, 0.1, 100.0) for error in failures]
    assert found == [True, False, True, False, True, True, True, False, True]
    assert not any(episode.is_news(error, 0.1, 100.0) for error in failures)


def test_what_ends_a_program_is_always_news() -> None:
    """An interrupt that strikes in an accept is no failure of it."""
    episode = Episode()
    for _ in range(2):
        assert episode.is_news(KeyboardInterrupt(), 0.1, 100.0)
