"""An exception strikes on the way of one connection: all that count connections count it alike.

`tests.support.struck` strikes everywhere; these are the places at which sums once stayed off.
"""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from glb.accept.ring import Ring
from glb.hubs.greenlet_pool import handlers_here
from glb.hubs.proof import Proof
from glb.net.connection import Connection
from glb.serve.acceptor import Acceptor
from glb.server import StreamServer

from ..support.engine import acceptors_of, entry_of
from ..support.helpers import ask, wait_until


class OwnRead(StreamServer):
    """The old way of accepting."""

    def do_read(self) -> Any:
        return super().do_read()


class Raises(StreamServer):
    """A hook that raises before it calls ours."""

    def do_handle(self, *args: Any) -> None:
        raise LookupError(f"on purpose: {args[1]!r}")


def handle(sock: Any, _peer: object) -> None:
    sock.sendall(b"ok")


@pytest.fixture(autouse=True)
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What gevent reports."""
    kinds: list[Any] = []
    hub: Any = gevent.get_hub()
    monkeypatch.setattr(hub, "handle_error", lambda _, kind, *__: kinds.append(kind))
    return kinds


def raise_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Have the next call of that function raise as it begins, as a signal handler may."""
    original = owner.__dict__[name]

    def strike(*_args: Any, **_named: Any) -> None:
        monkeypatch.setattr(owner, name, original)
        raise LookupError("on purpose")

    is_static = isinstance(original, staticmethod)
    monkeypatch.setattr(owner, name, staticmethod(strike) if is_static else strike)


def counts(server: StreamServer) -> tuple[int, int, int, int]:
    """Return what the address has accepted; what clones have accepted, completed, and failed."""
    stats = server.clone_stats()
    assert all(each.accepted == each.completed + each.failed for each in stats), stats
    assert server.active == 0
    accepted = sum(each.accepted for each in stats)
    assert accepted == sum(each.taken for each in acceptors_of(server))
    completed, failed = sum(each.completed for each in stats), sum(each.failed for each in stats)
    return entry_of(server).turns.accepted, accepted, completed, failed


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("owner", "name", "failed"),
    [
        (Ring, "rotate", 0),
        (Connection, "on", 0),
        (Acceptor, "deliver", 0),
        (StreamServer, "do_handle", 1),
        (Acceptor, "start", 1),
    ],
)
def test_a_struck_connection_is_counted_by_all_or_by_none(
    owner: Any, name: str, failed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client sees an end; the next one is served, and the sums are right."""
    with StreamServer(("127.0.0.1", 0), handle, clones=2) as server:
        server.min_delay = server.delay = 0.001
        server.start()
        raise_once(monkeypatch, owner, name)
        assert ask(server.address) == b""
        assert ask(server.address) == b"ok"
        wait_until(lambda: server.active == 0)
        assert counts(server) == (1 + failed, 1 + failed, 1, failed)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_it_is_the_same_where_a_program_accepts_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old ``do_read``: the connection is counted when it is handled."""
    with OwnRead(("127.0.0.1", 0), handle, clones=2) as server:
        server.min_delay = server.delay = 0.001
        server.start()
        raise_once(monkeypatch, StreamServer, "do_handle")
        assert ask(server.address) == b""
        assert ask(server.address) == b"ok"
        wait_until(lambda: server.active == 0)
        assert counts(server) == (2, 2, 1, 1)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_connection_that_a_hook_refuses_has_failed(reported: list[Any]) -> None:
    """A ``do_handle`` that raises before it calls ours: no handler could be spawned."""
    with Raises(("127.0.0.1", 0), handle, clones=2) as server:
        server.min_delay = server.delay = 0.001
        server.start()
        assert [ask(server.address) for _ in range(2)] == [b"", b""]
        assert counts(server) == (2, 2, 0, 2)
        assert reported == [LookupError] * 2


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_greenlet_that_is_lost_between_two_lists_ends(
    is_stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a job, and is in no list: the guard ends it, or the end of the last server."""
    handlers = handlers_here()
    with StreamServer(("127.0.0.1", 0), handle, clones=2) as server:
        server.start()
        assert ask(server.address) == b"ok"
        raise_once(monkeypatch, Proof, "holds")
        assert ask(server.address) == b"ok"  # the connection itself waits for another greenlet
        lost = len(handlers.all) - len(handlers)
        assert lost == 1
        if not is_stopped:
            handlers.look_over()
            # What was parked may have been trimmed meanwhile.
            assert len(handlers.all) == len(handlers)
    assert not handlers.all
