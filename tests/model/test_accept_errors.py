"""Accept errors: each errno has one kind, and gevent's fatal ones in the last."""

from __future__ import annotations

import errno
from itertools import combinations

import gevent.server
import pytest

from glb.model import accept_errors as errors
from glb.model.accept_errors import AcceptErrorKind, Episode, classify

KINDS = {
    AcceptErrorKind.PEER_LEFT: errors.PEER_LEFT_ERRNOS,
    AcceptErrorKind.OUT_OF_ROOM: errors.OUT_OF_ROOM_ERRNOS,
    AcceptErrorKind.BROKEN: errors.BROKEN_ERRNOS,
}


def test_kinds_share_no_errno() -> None:
    """What to do about an errno is never a matter of which kind is asked first."""
    for one, other in combinations(KINDS.values(), 2):
        assert not one & other


def test_every_errno_is_classified_by_its_kind() -> None:
    """Each number that this platform has lies in its one kind, or is unknown."""
    for number in errno.errorcode:
        kinds = [kind for kind, numbers in KINDS.items() if number in numbers]
        assert classify(OSError(number, "x")) is (kinds[0] if kinds else AcceptErrorKind.UNKNOWN)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ECONNABORTED", AcceptErrorKind.PEER_LEFT),
        ("EPROTO", AcceptErrorKind.PEER_LEFT),
        ("EPERM", AcceptErrorKind.UNKNOWN),
        ("EINTR", AcceptErrorKind.PEER_LEFT),
        ("ENETUNREACH", AcceptErrorKind.PEER_LEFT),
        ("EMFILE", AcceptErrorKind.OUT_OF_ROOM),
        ("ENFILE", AcceptErrorKind.OUT_OF_ROOM),
        ("ENOBUFS", AcceptErrorKind.OUT_OF_ROOM),
        ("ENOMEM", AcceptErrorKind.OUT_OF_ROOM),
        ("EBADF", AcceptErrorKind.BROKEN),
        ("EINVAL", AcceptErrorKind.BROKEN),
        ("ENOTSOCK", AcceptErrorKind.BROKEN),
        ("EOPNOTSUPP", AcceptErrorKind.BROKEN),
        ("EFAULT", AcceptErrorKind.UNKNOWN),
        ("EAGAIN", AcceptErrorKind.UNKNOWN),
    ],
)
def test_each_kind_has_its_errnos(name: str, kind: AcceptErrorKind) -> None:
    """The errnos of accept(2) lie where the module's docstring says."""
    assert classify(OSError(getattr(errno, name), "x")) is kind


def test_what_is_fatal_to_gevent_is_broken() -> None:
    """A server that gevent would close for an error, we close as well."""
    for number in gevent.server.StreamServer.fatal_errors:  # type: ignore[attr-defined]  # a tuple
        assert classify(OSError(number, "x")) is AcceptErrorKind.BROKEN


def test_what_no_kernel_said_is_unknown() -> None:
    """Other exceptions, and errors without an errno, lie in no kind."""
    for error in (ValueError("x"), OSError("x"), KeyboardInterrupt(), TimeoutError()):
        assert classify(error) is AcceptErrorKind.UNKNOWN


def test_subclasses_are_classified_by_their_errno() -> None:
    """Python's own classes for some errnos change nothing."""
    assert classify(ConnectionAbortedError(errno.ECONNABORTED, "x")) is AcceptErrorKind.PEER_LEFT
    assert classify(BrokenPipeError(errno.EBADF, "x")) is AcceptErrorKind.BROKEN


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
