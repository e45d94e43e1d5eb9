"""Descriptors: a number is a clone's as long as the clone is there, and not a moment longer."""

from __future__ import annotations

import _socket
import errno
import gc
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gevent
import pytest

import glb
from glb.accept import descriptor
from glb.accept.descriptor import Descriptor
from glb.accept.registry import REGISTRY, Share
from glb.model.address import parse
from glb.net import sockets

from ..conftest import open_descriptors
from ..support.adopting import errno_of
from ..support.helpers import is_refused


@pytest.fixture
def share() -> Iterator[Share]:
    """A share in a new address; given back after the test."""
    made = REGISTRY.open(parse("127.0.0.1:0"), None, shared=True)
    yield made
    REGISTRY.release(made)


@pytest.fixture
def clone(share: Share) -> Iterator[Descriptor]:
    made = Descriptor.of(share)
    yield made
    made.close()


def test_a_descriptor_is_found_by_its_number(clone: Descriptor) -> None:
    """And no other number is, though it leads to the same kernel socket."""
    copy = os.dup(clone.fileno())
    assert [*descriptor.NUMBERS] == [clone.fileno()]
    assert descriptor.find(clone.fileno()) is clone
    assert [descriptor.find(each) for each in (copy, clone.entry.pristine.fileno(), -1)] == [
        None
    ] * 3
    os.close(copy)


def test_a_closed_descriptor_is_found_no_more(clone: Descriptor) -> None:
    """Its share is given back, and with the last the address is free; twice is harmless."""
    number, address = clone.fileno(), clone.entry.address
    clone.close()
    clone.close()
    assert descriptor.find(number) is None
    assert descriptor.NUMBERS == {}
    assert (glb.registry.entries(), is_refused(address)) == ([], True)


def test_a_number_that_leads_elsewhere_is_not_found(clone: Descriptor) -> None:
    """The program closed it by its number, and another file has that now."""
    number = clone.fileno()
    os.close(number)
    assert descriptor.find(number) is None
    other = _socket.socket()
    assert other.detach() == number
    assert descriptor.find(number) is None
    assert not clone.is_same_file()
    clone.close()  # it can't know: the file that has its number now is closed, as with any socket
    assert number not in open_descriptors()


def test_closing_what_was_closed_by_its_number_gives_the_share_back(clone: Descriptor) -> None:
    """The error is the kernel's, and the address is free all the same."""
    os.close(clone.fileno())
    with pytest.raises(OSError, match="descriptor") as caught:
        clone.close()
    assert errno_of(caught.value) == "EBADF"
    assert (glb.registry.entries(), descriptor.NUMBERS) == ([], {})


def test_a_detached_descriptor_is_its_callers(clone: Descriptor) -> None:
    """No clone any more: the share is given back, and the kernel's socket lives on."""
    number, address = clone.fileno(), clone.entry.address
    assert clone.detach() == number
    assert (descriptor.find(number), glb.registry.entries()) == (None, [])
    assert not is_refused(address)
    os.close(number)
    assert is_refused(address)


def test_a_dropped_descriptor_warns_and_gives_its_share_back(share: Share) -> None:
    """Neither the registry nor the numbers keep it alive."""
    made = Descriptor.of(share)
    number, address, reference = made.fileno(), share.entry.address, weakref.ref(made)
    with pytest.warns(ResourceWarning, match=f"unclosed .*{address[1]}"):  # noqa: PT031  # either
        del made
        gc.collect()
    assert (reference(), descriptor.find(number)) == (None, None)
    assert (glb.registry.entries(), is_refused(address)) == ([], True)


def test_waiters_are_made_when_first_needed(clone: Descriptor) -> None:
    """A server's clones have none, nor an event, nor a place in the ring; none is a descriptor."""
    before = open_descriptors()
    assert clone._waiters is None
    assert clone.waiters is clone.waiters
    assert clone.waiters.polled is None
    assert clone.readiness._event is None
    assert clone.readiness.event is clone.readiness.event
    assert clone.entry.turns.dispatchers == {}
    assert open_descriptors() == before


def test_waiters_of_a_closed_descriptor_say_so(clone: Descriptor) -> None:
    """Also those that are made only then."""
    clone.close()
    with pytest.raises(OSError, match="closed") as caught:
        clone.waiters.accept(None, clone)
    assert errno_of(caught.value) == "EBADF"
    assert clone.readiness.is_ready


def test_two_descriptors_may_have_their_waiters_in_common(share: Share) -> None:
    """They are there until the last has closed, whichever it is."""
    one = Descriptor.of(share)
    other = Descriptor.of(REGISTRY.acquire(share.entry))
    assert not one.waiters.is_shared
    other.share_waiters(one)
    assert (other.waiters is one.waiters, one.waiters.is_shared, one.waiters.holder) == (
        True,
        True,
        one,
    )
    waiters = one.waiters
    one.close()
    assert (waiters.is_cancelled, waiters.is_shared, waiters.holder) == (False, False, other)
    other.close()
    assert (waiters.is_cancelled, waiters.holder) == (True, None)


def test_a_number_leads_back_to_the_older_object_when_the_newer_detaches(clone: Descriptor) -> None:
    """Two objects on one number: the newer is found, and after it the older."""
    number, share = clone.fileno(), REGISTRY.acquire(clone.entry)
    newer = Descriptor.on(number, share, clone, gevent.get_hub())
    assert descriptor.find(number) is newer
    assert newer.detach() == number
    assert descriptor.find(number) is clone


def test_the_older_of_two_on_a_number_may_go_first(clone: Descriptor) -> None:
    """The newer is still found, and afterwards none."""
    number, share = clone.fileno(), REGISTRY.acquire(clone.entry)
    newer = Descriptor.on(number, share, clone, gevent.get_hub())
    assert clone.detach() == number
    assert descriptor.find(number) is newer
    newer.close()
    assert (descriptor.find(number), descriptor.NUMBERS) == (None, {})


def test_a_number_may_lead_to_another_socket_when_its_clone_is_gone(clone: Descriptor) -> None:
    """It stays open, and inherited as it was; the share is given back."""
    number, address = clone.fileno(), clone.entry.address
    with closing(_socket.socket()) as other:
        assert clone.leave_number(other) == number
        assert sockets.file_of(number) == sockets.file_of(other.fileno())
        assert not os.get_inheritable(number)
    assert (clone.fileno(), descriptor.find(number), glb.registry.entries()) == (-1, None, [])
    assert is_refused(address)
    os.close(number)


def test_without_a_number_left_nothing_is_made(
    share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE; the share is still the caller's."""

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(sockets, "duplicate", fail)
        with pytest.raises(OSError, match="open files"):
            Descriptor.of(share)
    assert (open_descriptors(), descriptor.NUMBERS, share.entry.clones) == (before, {}, 1)


def test_a_hub_that_cannot_be_made_leaves_no_number(
    share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step of a thread may fail, and then nothing has happened."""

    def fail() -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(descriptor, "get_hub", fail)
        with pytest.raises(OSError, match="open files"):
            Descriptor.of(share)
    assert (open_descriptors(), descriptor.NUMBERS, share.entry.clones) == (before, {}, 1)


def test_letting_go_frees_the_address_and_keeps_the_number(clone: Descriptor) -> None:
    """For an owner that closes a turn of the loop later: until then no file gets the number."""
    number, address = clone.fileno(), clone.entry.address
    clone.let_go()
    assert (glb.registry.entries(), descriptor.find(number)) == ([], None)
    assert is_refused(address)
    assert clone.fileno() == number
    assert number in open_descriptors()
    clone.close()
    assert number not in open_descriptors()


def test_letting_go_of_a_socket_that_others_have_leaves_it_open(tmp_path: Path) -> None:
    """What was handed in is its owner's as before."""
    with closing(sockets.open_listening(parse(f"unix:{tmp_path}/app.sock"), 1)) as sock:
        made = Descriptor.of(REGISTRY.adopt(sock.fileno()))
        made.let_go()
        assert sockets.file_of(made.fileno()) == sockets.file_of(sock.fileno())
        assert not is_refused(sock.getsockname())
        made.close()


def test_a_warning_that_is_an_error_keeps_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unclosed clone is closed also where warnings raise, as they do in these tests."""
    raised: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: raised.append(found.exc_value))
    share = REGISTRY.open(parse("127.0.0.1:0"), None, shared=True)
    address = share.entry.address
    made = Descriptor.of(share)
    del made, share
    gc.collect()
    assert [type(each) for each in raised] == [ResourceWarning]
    assert glb.registry.entries() == []
    assert is_refused(address)
