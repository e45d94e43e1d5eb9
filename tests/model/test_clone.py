"""Clones: a number that knows its server."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import gevent
import pytest

import glb
from glb.model.clone import CURRENT, Clone, current_clone


@pytest.fixture
def server() -> Any:
    # Any object does: a clone only keeps it.
    return "the server"


def test_a_clone_is_its_index(server: Any) -> None:
    """It picks a shard, counts and compares as the number does."""
    clone = Clone(2, server)
    assert isinstance(clone, int)
    assert clone == 2
    assert hash(clone) == hash(2)
    assert ["a", "b", "c"][clone] == "c"
    assert {2: "found"}[clone] == "found"
    assert clone + 1 == 3


def test_index_is_a_plain_number(server: Any) -> None:
    """What is stored or compared by type need not be a clone."""
    assert Clone(2, server).index == 2
    assert type(Clone(2, server).index) is int


def test_a_clone_knows_its_server(server: Any) -> None:
    """A handler finds its server by its clone."""
    assert Clone(0, server).server is server


def test_clone_0_is_true(server: Any) -> None:
    """``if glb.current_clone():`` asks whether there is one, not which."""
    assert bool(Clone(0, server)) is True
    assert bool(Clone(1, server)) is True


def test_a_clone_reads_as_its_number(server: Any) -> None:
    """In text of every kind it is the number; only ``repr()`` says more."""
    clone = Clone(7, server)
    assert str(clone) == f"{clone}" == "%s" % clone == "%d" % clone == "7"  # noqa: UP031
    assert f"{clone:03}" == "007"
    assert b"%d" % clone == b"7"
    assert repr(clone) == "<clone 7 of 'the server'>"


def test_json_has_the_number(server: Any) -> None:
    """A reply may have the clone in it as it is."""
    assert json.dumps({"clone": Clone(0, server)}) == '{"clone": 0}'


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_the_number(server: Any, protocol: int) -> None:
    """Another process gets the number, and not a server."""
    unpickled = pickle.loads(pickle.dumps(Clone(3, server), protocol))
    assert (unpickled, type(unpickled)) == (3, int)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_number(server: Any, how: Any) -> None:
    """A copied environ doesn't drag the server along."""
    copied = how(Clone(3, server))
    assert (copied, type(copied)) == (3, int)


def test_outside_of_a_handler_there_is_no_clone() -> None:
    """Neither in the main greenlet nor in one of its children."""
    assert current_clone() is None
    assert glb.current_clone() is None
    assert gevent.spawn(current_clone).get() is None


def test_a_greenlet_has_its_own_clone(server: Any) -> None:
    """What one greenlet serves, another does not see, not even one that it spawned."""
    seen: list[object] = []

    def serve(index: int) -> None:
        CURRENT.set(Clone(index, server))
        gevent.sleep(0)
        seen.append(current_clone())
        seen.append(gevent.spawn(current_clone).get())

    gevent.joinall([gevent.spawn(serve, 0), gevent.spawn(serve, 1)], raise_error=True)
    assert sorted(map(repr, seen)) == [
        "<clone 0 of 'the server'>",
        "<clone 1 of 'the server'>",
        "None",
        "None",
    ]
    assert current_clone() is None
