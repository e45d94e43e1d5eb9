"""What a listener promises to its owner: accept(), close(), and a gevent socket."""

from __future__ import annotations

import copy
import errno
import fcntl
import gc
import os
import pickle
import select as native_select
import selectors as native_selectors
import signal
import socket as native_socket
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import os as gevent_os
from gevent import pywsgi, select, selectors, server, socket
from gevent.exceptions import BlockingSwitchOutError, InvalidSwitchError

import glb
from glb.accept.listener import Listener
from glb.accept.registry import REGISTRY
from glb.net.connection import Connection

from ..conftest import open_descriptors
from ..support.helpers import (
    ask,
    close_all,
    connect,
    http_get,
    is_refused,
    let_hub_turn,
    wait_until,
)

ANY = ("127.0.0.1", 0)

has_ipv6 = Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text() != ""
needs_ipv6 = pytest.mark.skipif(not has_ipv6, reason="this machine has no IPv6")


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A clone of a new address; closed after the test."""
    with glb.bind_load_balanced(ANY) as opened:
        yield opened


@pytest.fixture
def other(listener: Listener) -> Iterator[Listener]:
    """Another clone of the same address."""
    with glb.bind_load_balanced(listener.address) as opened:
        yield opened


def waiting(listener: Listener) -> gevent.Greenlet[..., Any]:
    """Return a greenlet that waits in ``listener.accept()``."""
    before = listener.entry.turns.ready
    greenlet = gevent.spawn(listener.accept)
    wait_until(lambda: greenlet.ready() or listener.entry.turns.ready > before)
    return greenlet


def serve_one(listener: Listener) -> None:
    """Check that *listener* gives the next connection, and that it works."""
    greenlet = gevent.spawn(listener.accept)
    with connect(listener.address) as client:
        conn, _ = greenlet.get()
        with conn:
            client.sendall(b"ping")
            assert conn.recv(10) == b"ping"


def error_of(greenlet: gevent.Greenlet[..., Any]) -> OSError:
    """Return the OSError that ended *greenlet*."""
    greenlet.join()
    assert isinstance(greenlet.exception, OSError)
    return greenlet.exception


def in_hub(call: Callable[[], Any]) -> Any:
    """Return what *call* returns when the hub calls it, or raise what it raises."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append((call(), None))
        except BaseException as error:
            results.append((None, error))

    gevent.get_hub().loop.run_callback(run)
    wait_until(lambda: bool(results))
    value, error = results[0]
    if error is not None:
        raise error
    return value


# -- accept: what it returns ------------------------------------------------------------------


def test_accept_returns_a_cooperative_socket_and_the_peer(listener: Listener) -> None:
    """As gevent's own: its class, not inherited by children, and it waits cooperatively."""
    with connect(listener.address) as client:
        conn, peer = listener.accept()
        with conn:
            assert type(conn) is Connection
            assert isinstance(conn, socket.socket)
            assert peer == client.getsockname()
            assert not os.get_inheritable(conn.fileno())
            assert fcntl.fcntl(conn.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
            assert conn.gettimeout() is None
            gevent.spawn_later(0.01, client.sendall, b"late")
            assert conn.recv(10) == b"late"


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_an_accepted_socket_waits_for_ever_whatever_its_listener_does(
    listener: Listener, timeout: float | None
) -> None:
    """A listener's timeout is not its connections'."""
    listener.settimeout(timeout)
    with connect(listener.address):
        conn, _ = listener.accept()
        assert conn.gettimeout() is None
        conn.close()


def test_the_default_timeout_is_the_listeners_and_the_connections() -> None:
    """socket.setdefaulttimeout() holds for listeners and for what they accept."""
    socket.setdefaulttimeout(0.05)
    try:
        with glb.bind_load_balanced(ANY) as listener:
            assert listener.gettimeout() == 0.05
            with pytest.raises(TimeoutError):
                listener.accept()
            with connect(listener.address):
                conn, _ = listener.accept()
                assert conn.gettimeout() == 0.05
                conn.close()
    finally:
        socket.setdefaulttimeout(None)


# -- accept: timeouts and kills ---------------------------------------------------------------


def test_a_timeout_leaves_nothing_in_the_ring(listener: Listener, other: Listener) -> None:
    """The clone that gave up is no longer in line, and costs no connection."""
    listener.settimeout(0.01)
    with pytest.raises(TimeoutError, match="timed out") as caught:
        listener.accept()
    assert caught.type is TimeoutError
    gevent.sleep(0)  # until then it keeps its place, in case it is back at once
    assert listener.entry.turns.ready == 0
    serve_one(other)


@pytest.mark.parametrize("timeout", [0.001, 0.5])
def test_a_connection_that_waits_already_beats_any_timeout(
    listener: Listener, timeout: float
) -> None:
    """However short the timeout: what is there is had, as with gevent's."""
    listener.settimeout(timeout)
    with connect(listener.address):
        listener.accept()[0].close()


def test_a_timeout_that_the_loop_refuses_leaves_nothing_in_the_ring(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A waiter that never waited must not be given a connection: it would be lost.

    libuv refuses infinity. A fake, because gevent then leaves its timer unclosed, and a
    later fork was seen to hang on such timers.
    """

    class Refusing:
        @classmethod
        def start_new(cls, *_args: object, **_kwargs: object) -> None:
            raise OverflowError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["glb.accept.waiters"], "Timeout", Refusing)
        with pytest.raises(OverflowError):
            listener.accept()
    assert listener.entry.turns.ready == 0
    serve_one(listener)


def test_a_timeout_of_0_takes_what_is_there_or_raises(listener: Listener) -> None:
    """It doesn't wait, and no turn is taken."""
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert listener.entry.turns.dispatchers == {}
    with connect(listener.address):
        native_select.select([listener.fileno()], [], [], 5)
        listener.accept()[0].close()


def test_a_timeout_of_0_takes_no_turn_from_others(listener: Listener, other: Listener) -> None:
    """It does not join the line of those that wait."""
    greenlet = waiting(other)
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    with connect(listener.address):
        greenlet.get()[0].close()


def test_a_gevent_timeout_around_accept_leaves_nothing(listener: Listener, other: Listener) -> None:
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        listener.accept()
    assert listener.entry.turns.ready == 0
    serve_one(other)


def test_a_killed_accept_loses_no_connection(listener: Listener, other: Listener) -> None:
    """The connection that comes in the same turn of the hub as the kill goes to one clone."""
    first, second = waiting(listener), waiting(other)
    client = native_socket.create_connection(listener.address)  # natively: the hub stands
    first.kill(block=False)
    gevent.wait([first, second], count=2, timeout=0.1)
    taken = [each.value for each in (first, second) if isinstance(each.value, tuple)]
    (conn, peer), *more = taken
    assert more == [] and peer == client.getsockname()
    close_all([conn, client])
    assert listener.entry.turns.accepted == 1
    gevent.killall([first, second])
    assert listener.entry.turns.ready == 0


def test_one_of_several_waiters_on_a_clone_can_be_killed(listener: Listener) -> None:
    """The others keep the clone in the ring, and their order."""
    first, second, third = waiting(listener), gevent.spawn(listener.accept), None
    let_hub_turn()
    third = gevent.spawn(listener.accept)
    let_hub_turn()
    second.kill()
    assert listener.entry.turns.ready == 1
    with connect(listener.address), connect(listener.address):
        first.get()[0].close()
        third.get()[0].close()


def test_a_stray_switch_into_a_waiting_accept_loses_nothing(listener: Listener) -> None:
    """As in gevent's own wait: an error that names the stray value, and a clean ring."""
    greenlet = waiting(listener)
    gevent.get_hub().loop.run_callback(greenlet.switch, "stray")
    greenlet.join()
    assert isinstance(greenlet.exception, InvalidSwitchError)
    assert listener.entry.turns.ready == 0
    serve_one(listener)


def test_a_waiting_accept_is_kept_alive_by_the_ring() -> None:
    """A greenlet without another reference waits on, as one that waits on a watcher."""
    listener = glb.bind_load_balanced(ANY)
    reference = weakref.ref(waiting(listener))
    gc.collect()
    assert reference() is not None
    listener.close()
    let_hub_turn()


# -- accept: in the hub -----------------------------------------------------------------------


def test_accept_in_a_hub_callback_takes_what_is_there(listener: Listener) -> None:
    with connect(listener.address):
        conn, _ = in_hub(listener.accept)
        conn.close()


def test_accept_in_a_hub_callback_does_not_wait(listener: Listener) -> None:
    """It is gevent's error, and nothing left in the ring."""
    with pytest.raises(BlockingSwitchOutError):
        in_hub(listener.accept)
    assert issubclass(BlockingSwitchOutError, AssertionError)
    assert listener.entry.turns.ready == 0


# -- close ------------------------------------------------------------------------------------


def test_close_ends_every_waiting_accept_of_that_clone(listener: Listener, other: Listener) -> None:
    """EBADF in each, and only there."""
    greenlets = [gevent.spawn(listener.accept) for _ in range(3)]
    survivor = waiting(other)
    let_hub_turn()
    listener.close()
    assert [error_of(each).errno for each in greenlets] == [errno.EBADF] * 3
    assert not survivor.ready()
    with connect(listener.address):
        survivor.get()[0].close()


def test_a_closed_listener_says_so(listener: Listener, other: Listener) -> None:
    """Every call says EBADF; closing again and leaving a with block are harmless."""
    listener.close()
    listener.close()
    with listener:
        pass
    calls: list[Callable[[], object]] = [
        listener.accept,
        listener.listen,
        lambda: listener.listen(5),
        listener.dup,
        lambda: listener.shutdown(socket.SHUT_RD),
        listener.getsockname,
        lambda: listener.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    ]
    for call in calls:
        with pytest.raises(OSError) as caught:  # noqa: PT011  # its errno is looked at below
            call()
        assert caught.value.errno == errno.EBADF
    assert listener.fileno() == -1
    assert other.entry.clones == 1


def test_the_last_close_frees_the_address_at_once(listener: Listener, other: Listener) -> None:
    address = listener.address
    greenlet = waiting(listener)
    listener.close()
    assert not is_refused(address)
    other.close()
    assert is_refused(address)
    again = native_socket.socket()
    again.bind(address)  # without SO_REUSEADDR
    again.close()
    assert error_of(greenlet).errno == errno.EBADF


def test_the_last_close_frees_the_address_while_a_greenlet_watches_the_descriptor() -> None:
    """Another greenlet selects on it: the address must not wait for the loop to turn.

    gevent puts the descriptor's own close off until then.
    """
    listener = glb.bind_load_balanced(ANY)
    watcher = gevent.spawn(select.select, [listener.fileno()], [], [], 5)
    let_hub_turn()
    listener.close()
    try:
        assert glb.registry.entries() == []
        probe = native_socket.socket()  # natively, so that the loop doesn't turn
        assert probe.connect_ex(listener.address) == errno.ECONNREFUSED
        probe.close()
    finally:
        let_hub_turn()
        watcher.kill()


def test_an_address_opens_again_at_once_after_its_last_close() -> None:
    """Also with connections of its former life still open."""
    first = glb.bind_load_balanced(ANY)
    with connect(first.address) as client:
        conn, _ = first.accept()
        first.close()
        again = glb.bind_load_balanced(first.address)
        assert again.address == first.address and again.entry is not first.entry
        serve_one(again)
        conn.sendall(b"still")
        assert client.recv(10) == b"still"
        close_all([again, conn])


def test_a_file_made_of_a_listener_keeps_it_open_until_it_is_closed(listener: Listener) -> None:
    """makefile() counts, as on every socket; it can't be read from."""
    file = listener.makefile("rb")
    with pytest.raises(OSError, match="not connected"):
        file.read(1)
    listener.close()
    assert not is_refused(listener.address)
    file.close()
    assert is_refused(listener.address)


def test_a_listener_collected_unclosed_warns_and_frees_its_address() -> None:
    """Also one that has accepted, and so is known to its hub's dispatcher."""
    for accepts in (False, True):
        listener = glb.bind_load_balanced(ANY)
        address = listener.address
        if accepts:
            serve_one(listener)
            let_hub_turn()
        cycle = [listener]
        cycle.append(cycle)  # type: ignore[arg-type]  # so that only a collection finds it
        del listener, cycle
        with pytest.warns(ResourceWarning, match="unclosed"):
            gc.collect()
        let_hub_turn()
        assert glb.registry.entries() == [] and is_refused(address)


def test_a_clone_collected_while_its_address_is_opened_again_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bind() has found the address open, and a garbage collection closes it just then.

    The moment is held open where the registry makes the new share.
    """
    listener = glb.bind_load_balanced(ANY)
    address = listener.address
    serve_one(listener)
    let_hub_turn()
    module: Any = sys.modules["glb.accept.registry"]
    real = module.Share

    def collecting(*args: Any) -> Any:
        gc.collect()
        return real(*args)

    monkeypatch.setattr(module, "Share", collecting)
    circle: list[Any] = [listener]
    circle.append(circle)  # so that only a collection finds it
    gc.collect()
    gc.disable()
    try:
        del listener, circle
        with pytest.warns(ResourceWarning, match="unclosed"):
            again = glb.bind_load_balanced(address)
    finally:
        gc.enable()
    REGISTRY.check()
    serve_one(again)
    again.close()


def test_a_listener_that_was_never_made_is_collected_silently() -> None:
    """A wrong call raises its TypeError, and nothing when what it left is collected."""
    with pytest.raises(TypeError):
        Listener()  # type: ignore[call-arg]  # that is the point
    Listener.__new__(Listener)
    gc.collect()


@pytest.mark.parametrize("step", ["get_hub", "duplicate"])
def test_a_listener_that_can_not_be_made_leaves_nothing(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors for the clone, or for the first hub of this thread."""
    module: Any = sys.modules["glb.accept.descriptor"]
    before = open_descriptors()

    def fail(*_args: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(module if step == "get_hub" else module.sockets, step, fail)
        with pytest.raises(OSError, match="too many") as caught:
            glb.bind_load_balanced(ANY)
        del caught  # with the frames that it keeps
    gc.collect()
    assert glb.registry.entries() == [] and open_descriptors() == before


# -- shutdown, listen, and other settings of one clone ----------------------------------------


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_shutdown_concerns_one_clone(listener: Listener, other: Listener, how: int) -> None:
    """EINVAL for its waiters and later calls; the other clones go on."""
    greenlets = [gevent.spawn(listener.accept) for _ in range(2)]
    let_hub_turn()
    listener.shutdown(how)
    assert [error_of(each).errno for each in greenlets] == [errno.EINVAL] * 2
    for timeout in (None, 0.0, 1.0):
        listener.settimeout(timeout)
        with pytest.raises(OSError, match="shut down") as caught:
            listener.accept()
        assert caught.value.errno == errno.EINVAL
    serve_one(other)
    listener.shutdown(how)  # twice is harmless


def test_shutdown_of_the_writing_side_changes_nothing(listener: Listener) -> None:
    greenlet = waiting(listener)
    listener.shutdown(socket.SHUT_WR)
    with connect(listener.address):
        greenlet.get()[0].close()


def test_shutdown_refuses_what_it_does_not_know(listener: Listener) -> None:
    with pytest.raises(OSError, match="SHUT_RD") as caught:
        listener.shutdown(7)
    assert caught.value.errno == errno.EINVAL
    serve_one(listener)


def test_timeouts_concern_one_clone_and_never_the_kernels_flag(
    listener: Listener, other: Listener
) -> None:
    """All clones share the flag, so it stays non-blocking whatever a clone says."""
    listener.setblocking(True)
    listener.settimeout(3)
    assert listener.gettimeout() == 3 and other.gettimeout() is None
    listener.setblocking(False)
    assert listener.gettimeout() == 0 and other.gettimeout() is None
    listener.setblocking(True)
    assert listener.gettimeout() is None
    for each in (listener, other):
        assert fcntl.fcntl(each.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
        assert not os.get_inheritable(each.fileno())
    with pytest.raises(ValueError, match="out of range"):
        listener.settimeout(-1)
    with pytest.raises(TypeError):
        listener.settimeout("soon")  # type: ignore[arg-type]  # that is the point


def test_listen_never_makes_the_queue_of_others_shorter(listener: Listener) -> None:
    before = listener.entry.backlog
    listener.listen()
    listener.listen(1)
    listener.listen(-5)
    assert listener.entry.backlog == before
    listener.listen(before + 1)
    assert listener.entry.backlog == before + 1
    with pytest.raises(TypeError, match="backlog must be a whole number or None, got 'many'"):
        listener.listen("many")  # type: ignore[arg-type]  # that is the point
    serve_one(listener)


# -- dup and detach ---------------------------------------------------------------------------


def test_dup_is_another_clone(listener: Listener) -> None:
    """Its timeout is copied, and what is set later is its own."""
    listener.settimeout(7)
    clone = listener.dup()
    assert type(clone) is Listener and clone.address == listener.address
    assert clone.gettimeout() == 7 and clone.fileno() != listener.fileno()
    assert listener.entry.clones == 2
    listener.close()
    clone.settimeout(None)
    serve_one(clone)
    clone.close()


def test_dup_of_a_direct_listener_is_its_clone() -> None:
    """bind_direct() keeps others from joining by the address, and not its own clones."""
    with glb.bind_direct(ANY) as listener, listener.dup() as clone:
        listener.close()
        serve_one(clone)


def test_a_detached_descriptor_lives_on_and_the_share_is_given_back() -> None:
    """It listens, is the caller's, and no other socket can have the address."""
    listener = glb.bind_load_balanced(ANY)
    greenlet = waiting(listener)
    number = listener.detach()
    assert error_of(greenlet).errno == errno.EBADF
    assert glb.registry.entries() == [] and listener.fileno() == -1
    assert listener.detach() == -1
    listener.close()
    with socket.socket(fileno=number) as plain:
        with pytest.raises(OSError, match="in use"):
            glb.bind_load_balanced(listener.address)
        with connect(listener.address):
            plain.accept()[0].close()
    assert is_refused(listener.address)


def test_a_detached_unix_socket_can_still_be_reached(tmp_path: Path) -> None:
    """The caller's descriptor listens on: under its name, too."""
    listener = glb.bind_load_balanced(f"unix:{tmp_path}/app.sock")
    with socket.socket(fileno=listener.detach()) as plain, connect(listener.address):
        plain.accept()[0].close()


def test_a_plain_gevent_socket_can_share_the_descriptor(listener: Listener) -> None:
    """It takes what it gets, out of turn, and closing it is its own affair."""
    with socket.socket(fileno=os.dup(listener.fileno())) as plain:
        assert plain.getsockname() == listener.getsockname()
        with connect(listener.address):
            plain.accept()[0].close()
    serve_one(listener)


# -- a gevent socket in every respect ---------------------------------------------------------


def test_a_listener_is_a_gevent_socket(listener: Listener, other: Listener) -> None:
    assert isinstance(listener, socket.socket)
    assert listener.family == socket.AF_INET and listener.type == socket.SOCK_STREAM
    assert listener.proto == 0
    assert listener.getsockname() == listener.address == listener.local_addr()
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    assert {listener, other, listener} == {listener, other} and listener != other
    assert weakref.ref(listener)() is listener


def test_what_a_listener_can_not_do_the_kernel_refuses(listener: Listener) -> None:
    """recv, send and getpeername fail as on any listening socket, without waiting."""
    for call in (lambda: listener.recv(1), lambda: listener.send(b"x"), listener.getpeername):
        with pytest.raises(OSError) as caught:  # noqa: PT011  # its errno is looked at below
            call()
        assert caught.value.errno in (errno.ENOTCONN, errno.EPIPE)
    serve_one(listener)


def test_repr_names_the_address_open_and_closed(listener: Listener) -> None:
    assert repr(listener.address) in repr(listener)
    assert f"fd={listener.fileno()}" in repr(listener) and "Listener" in repr(listener)
    assert "closed" not in repr(listener)
    listener.close()
    assert repr(listener.address) in repr(listener) and "[closed]" in repr(listener)


def test_a_listener_is_neither_pickled_nor_copied(listener: Listener) -> None:
    """A descriptor and a share can't be written down; dup() makes another clone."""
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"serialize|pickle"):
            call(listener)
    gc.collect()
    assert listener.entry.clones == 1


def test_select_and_poll_see_a_waiting_connection(listener: Listener) -> None:
    """Readable means that a client waits, as on any listening socket."""
    assert select.select([listener], [], [], 0)[0] == []
    poll = select.poll()
    poll.register(listener, native_select.POLLIN)
    with connect(listener.address):
        assert select.select([listener], [], [], 5)[0] == [listener]
        assert poll.poll(5000) == [(listener.fileno(), native_select.POLLIN)]
        listener.accept()[0].close()


def test_a_selector_sees_a_waiting_connection(listener: Listener) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(listener, native_selectors.EVENT_READ)
        assert selector.select(0) == []
        with connect(listener.address):
            ((key, mask),) = selector.select(5)
            assert key.fileobj is listener and mask == native_selectors.EVENT_READ
            listener.accept()[0].close()
        selector.unregister(listener)


def test_select_and_accept_can_wait_at_once(listener: Listener) -> None:
    """Both watch the same kernel socket by descriptors of their own."""
    greenlet = waiting(listener)
    chooser = gevent.spawn(select.select, [listener], [], [], 5)
    let_hub_turn()
    with connect(listener.address):
        greenlet.get()[0].close()
        chooser.kill()


def test_wait_read_on_a_listeners_descriptor_is_woken_by_close(listener: Listener) -> None:
    """A greenlet that waits on the bare descriptor wakes at the close, as with gevent's."""
    greenlet = gevent.spawn(socket.wait_read, listener.fileno(), 5)
    let_hub_turn()
    listener.close()
    greenlet.join(5)
    assert greenlet.ready() and not isinstance(greenlet.exception, TimeoutError)
    let_hub_turn()


def test_a_plain_stream_server_serves_on_a_listener(listener: Listener) -> None:
    """The server of gevent, handed a listener in place of a socket."""

    def handle(conn: socket.socket, _peer: object) -> None:
        conn.sendall(b"served")

    plain = server.StreamServer(listener, handle)
    plain.start()
    assert ask(listener.address) == b"served"
    plain.stop()


def test_a_plain_wsgi_server_serves_on_a_listener(listener: Listener) -> None:
    def app(_environ: object, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"served"]

    plain = pywsgi.WSGIServer(listener, app, log=None)
    plain.start()
    assert http_get(listener.address) == b"served"
    plain.stop()


# -- bind -------------------------------------------------------------------------------------


def forms(port: int) -> list[object]:
    return [
        ("127.0.0.1", port),
        (b"127.0.0.1", port),
        ("localhost", port),
        f"127.0.0.1:{port}",
        f"localhost:{port}",
        ("::ffff:127.0.0.1", port),
    ]


@pytest.mark.parametrize("index", range(6))
def test_every_spelling_of_an_address_joins_it(listener: Listener, index: int) -> None:
    """One place is one socket, however it is written."""
    spelling = forms(listener.address[1])[index]
    with glb.bind_load_balanced(spelling) as clone:
        assert clone.entry is listener.entry and clone.address == listener.address


@needs_ipv6
@pytest.mark.parametrize("form", [("::1", 0), "[::1]:0", ("::1", 0, 0, 0)])
def test_ipv6_addresses_are_bound_and_shared(form: object) -> None:
    with glb.bind_load_balanced(form) as listener:
        assert listener.family == socket.AF_INET6
        with glb.bind_load_balanced(f"[::1]:{listener.address[1]}") as clone:
            assert clone.entry is listener.entry
        serve_one(listener)


@needs_ipv6
@pytest.mark.parametrize("form", [0, "0", ":0", "*:0", ("", 0)])
def test_forms_without_a_host_are_every_interface(form: object) -> None:
    with glb.bind_load_balanced(form) as listener:
        port = listener.address[1]
        assert port > 0
        greenlet = waiting(listener)
        with connect(("127.0.0.1", port)):
            greenlet.get()[0].close()


def test_a_unix_path_is_bound_shared_and_removed(tmp_path: Path) -> None:
    """The file goes with the last clone; a relative spelling is the same file."""
    path = tmp_path / "app.sock"
    first = glb.bind_load_balanced(f"unix:{path}")
    second = glb.bind_load_balanced(f"unix:{tmp_path}/../{tmp_path.name}/app.sock")
    assert second.entry is first.entry and first.family == socket.AF_UNIX
    first.close()
    serve_one(second)
    assert path.exists()
    second.close()
    assert not path.exists()


def test_an_abstract_unix_name_is_bound_and_shared() -> None:
    name = f"unix:@glb-test-{os.getpid()}"
    with glb.bind_load_balanced(name) as first, glb.bind_load_balanced(name) as second:
        assert first.entry is second.entry
        serve_one(second)


def test_port_0_is_another_address_each_time() -> None:
    with glb.bind_load_balanced(ANY) as first, glb.bind_load_balanced(ANY) as second:
        assert first.address != second.address and first.entry is not second.entry


def test_a_direct_listener_is_nobodys_but_its_own() -> None:
    """Neither another direct one nor a balanced one gets its address, nor the reverse."""
    with glb.bind_direct(ANY) as direct:
        for bind in (glb.bind_direct, glb.bind_load_balanced, glb.bind):
            with pytest.raises(OSError, match=r"can't bind .*in use") as caught:
                bind(direct.address)
            assert caught.value.errno == errno.EADDRINUSE
        serve_one(direct)
    with glb.bind_load_balanced(ANY) as shared:
        with pytest.raises(OSError, match="in use"):
            glb.bind_direct(shared.address)
        with pytest.raises(OSError, match="in use"):
            glb.bind_direct(shared.address, reuse_port=True)
        assert shared.entry.clones == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel balances on Linux")
def test_direct_listeners_with_reuse_port_share_the_kernels_way() -> None:
    """Two sockets, two queues: each of them can be connected to."""
    with (
        glb.bind_direct(ANY, reuse_port=True) as first,
        glb.bind_direct(first.address, reuse_port=True) as second,
    ):
        assert first.entry is not second.entry and first.address == second.address
        with pytest.raises(OSError, match="in use"):
            glb.bind_load_balanced(first.address)


def test_bind_chooses_by_reuse_port() -> None:
    with glb.bind(ANY) as direct, glb.bind(ANY, reuse_port=True) as shared:
        assert not direct.entry.shared and shared.entry.shared
        with glb.bind(shared.address, reuse_port=True, backlog=7) as clone:
            assert clone.entry is shared.entry
    with glb.bind(ANY, True, 5) as small:
        assert small.entry.backlog == 5
        with glb.bind(small.address, reuse_port=True, backlog=9):
            assert small.entry.backlog == 9
        with glb.bind(small.address, reuse_port=True, backlog=3):
            assert small.entry.backlog == 9


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (("127.0.0.1", 70000), ValueError),
        (("127.0.0.1", "http"), Exception),
        (("127.0.0.1",), ValueError),
        (None, TypeError),
        (True, TypeError),
        ("::1:80", ValueError),
        ("unix:", ValueError),
        ("unix:/no/such/directory/app.sock", OSError),
        (("192.0.2.1", 0), OSError),
        (("no.such.host.invalid", 0), socket.gaierror),
    ],
)
def test_an_address_that_can_not_be_bound_leaves_nothing(
    address: object, error: type[Exception]
) -> None:
    before = open_descriptors()
    for bind in (glb.bind_direct, glb.bind_load_balanced):
        with pytest.raises(error):
            bind(address)
    gc.collect()
    assert glb.registry.entries() == [] and open_descriptors() == before


# -- fork -------------------------------------------------------------------------------------


def in_child(work: Callable[[], object]) -> int:
    """Fork, run *work* in the child, and return its exit status: 0 if nothing was raised."""
    pid: int = gevent_os.fork_and_watch()
    if pid:
        return pid
    try:
        signal.alarm(20)  # a child that hangs ends by itself
        work()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def wait_for_child(pid: int) -> None:
    """Check that the child succeeded."""
    # gevent's waitpid, and a child that it watches: its loop may reap whatever ends.
    assert gevent_os.waitpid(pid, 0) == (pid, 0)


def test_a_forked_child_goes_on_with_the_same_loops(listener: Listener, other: Listener) -> None:
    """Two accept loops, a fork: the child's serve when the parent's have stopped."""

    def loop(clone: Listener) -> None:
        while True:
            conn, _ = clone.accept()
            conn.sendall(b"%d" % os.getpid())
            conn.close()

    loops = [gevent.spawn(loop, clone) for clone in (listener, other)]
    assert int(ask(listener.address)) == os.getpid()
    gone, going = os.pipe()

    def child() -> None:
        gevent_os.tp_read(gone, 1)  # its loops serve until then

    pid = in_child(child)
    gevent.killall(loops)
    replies = [int(ask(listener.address)) for _ in range(6)]
    os.write(going, b"x")
    wait_for_child(pid)
    os.close(gone)
    os.close(going)
    assert replies == [pid] * 6


def test_a_forked_child_that_closes_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    """The kernel socket is the parent's as well, and so is a Unix socket's file."""
    listener = glb.bind_load_balanced(f"unix:{tmp_path}/app.sock")
    serve_one(listener)

    def child() -> None:
        REGISTRY.check()
        listener.close()
        assert glb.registry.entries() == []

    wait_for_child(in_child(child))
    serve_one(listener)
    listener.close()
