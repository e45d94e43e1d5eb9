"""gevent's public attributes, set when gevent lets a program set them: ours do what gevent's do.

Each case sets one attribute, at one moment, on gevent's server and on ours, and looks at what
becomes of it. gevent's answer is the one that is expected, whatever it is: an error, too.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from socket import SO_REUSEADDR, SOL_SOCKET
from typing import Any, ClassVar, Final

import gevent.pywsgi
import gevent.server
import pytest
from gevent import socket, ssl
from gevent.event import Event
from gevent.pool import Pool

import glb.pywsgi
import glb.server
from glb.model.states import State

from ..support.helpers import ask, connect, http_get, receive_all, wait_until

ANY: Final = ("127.0.0.1", 0)
REQUEST: Final = b"GET /path HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

Server = Any


# -- servers --------------------------------------------------------------------------------------


class Stream:
    """A server of streams, with the handler as a method: gevent's restarts only then."""

    bases: ClassVar[dict[str, Any]] = {
        "gevent": gevent.server.StreamServer,
        "glb": glb.server.StreamServer,
    }
    plain_request: ClassVar[bytes] = b"abc"

    @staticmethod
    def handle(_self: Server, sock: Any, _peer: object) -> None:
        """Reply in capitals."""
        sock.sendall(sock.recv(100).upper())

    @classmethod
    def make(cls, base: str, hubs: int, **attributes: Any) -> Server:
        """Return a server of a subclass that has *attributes*."""
        made = {"handle": cls.handle, **attributes}
        if base == "glb":
            made["hubs"] = hubs
        return type("Sub", (cls.bases[base],), made)(ANY)


class Wsgi(Stream):
    """A server of HTTP."""

    bases: ClassVar[dict[str, Any]] = {
        "gevent": gevent.pywsgi.WSGIServer,
        "glb": glb.pywsgi.WSGIServer,
    }
    plain_request: ClassVar[bytes] = REQUEST

    @classmethod
    def make(cls, base: str, hubs: int, **attributes: Any) -> Server:
        if base == "glb":
            attributes["hubs"] = hubs
        return type("Sub", (cls.bases[base],), attributes)(ANY, application("first"), log=None)


def application(body: str) -> Callable[..., Any]:
    """Return an application that replies *body*, and what its environ says."""

    def apply(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        told = [body, type(environ).__name__, environ.get("key"), environ["SERVER_SOFTWARE"][:3]]
        return [repr(told).encode()]

    return apply


# -- attributes -----------------------------------------------------------------------------------

MOMENTS: Final = ("before", "started", "restarted", "kept", "class", "property", "deleted")


class Case:
    """An attribute, a value for it, and what shows whether it is heeded."""

    name: str
    kind: type[Stream] = Stream
    moments: tuple[str, ...] = MOMENTS

    def value(self) -> Any:
        """Return what is set."""
        raise NotImplementedError

    def attributes(self) -> dict[str, Any]:
        """Return what the subclass has besides."""
        return {}

    def look(self, server: Server) -> object:
        """Return what there is to see of it, as something that can be compared."""
        return [self.reply(server) for _ in range(3)]

    def reply(self, server: Server) -> bytes:
        """Return the last line of what the server replies."""
        return ask(server.address, self.kind.plain_request).split(b"\r\n\r\n")[-1]


class PoolCase(Case):
    name = "pool"
    moments = MOMENTS[:-1]  # gevent's server can't be closed without it

    def value(self) -> Pool:
        self.pool = Pool()
        return self.pool

    def look(self, server: Server) -> object:
        replies = super().look(server)
        # What a program runs in it is waited for, and killed, when the server stops.
        sleeper = self.pool.spawn(Event().wait)
        server.stop(0)
        wait_until(lambda: sleeper.dead or server.pool is not self.pool)
        self.pool.kill()
        return replies, sleeper.value is None, server.pool is self.pool


class WsgiPoolCase(PoolCase):
    kind = Wsgi


class HandleCase(Case):
    name = "handle"
    moments = tuple(
        each for each in MOMENTS if each != "kept"
    )  # gevent's forgets it when it is closed

    def value(self) -> Any:
        return lambda *args: args[-2].sendall(args[-2].recv(100) * 2)  # a method, on a class


class FullCase(Case):
    name = "full"

    def value(self) -> Any:
        self.asked = 0

        def full(*_self: object) -> bool:
            self.asked += 1
            return False

        return full

    def look(self, server: Server) -> object:
        asked, replies = self.asked, super().look(server)
        return replies, self.asked > asked


class MaxAcceptCase(Case):
    name = "max_accept"

    def value(self) -> int:
        return 1

    def look(self, server: Server) -> object:
        return super().look(server), server.max_accept


class DelayCase(Case):
    name = "delay"

    def value(self) -> float:
        return 0.5

    def look(self, server: Server) -> object:
        before = server.delay
        return before, super().look(server), server.delay


class MinDelayCase(DelayCase):
    name = "min_delay"

    def value(self) -> float:
        return 0.25


class StopTimeoutCase(Case):
    name = "stop_timeout"

    def value(self) -> float:
        return 0.125

    def look(self, server: Server) -> object:
        waited: list[object] = []

        class Waiting(Pool):
            def join(self, timeout: float | None = None, raise_error: bool = False) -> Any:
                waited.append(timeout)
                return super().join(0, raise_error)

        server.pool = pool = Waiting()
        sleeper = pool.spawn(Event().wait)
        server.stop()
        return waited, sleeper.dead


class FatalErrorsCase(Case):
    name = "fatal_errors"

    def value(self) -> tuple[int, ...]:
        return (errno.EL2NSYNC,)

    def look(self, server: Server) -> object:
        number = [
            server.is_fatal_error(OSError(each, "")) for each in (errno.EL2NSYNC, errno.EBADF)
        ]
        return number, super().look(server)


class BacklogCase(Case):
    name = "backlog"

    def value(self) -> int:
        return 7

    def attributes(self) -> dict[str, Any]:
        case = self
        self.taken: list[object] = []

        @classmethod  # type: ignore[misc]  # goes into a class below
        def get_listener(cls: Any, address: Any, backlog: Any = None, family: Any = None) -> Any:
            case.taken.append(backlog if backlog == 7 else "the default")
            listen: Any = super(cls, cls)
            return listen.get_listener(address, backlog, family)

        return {"get_listener": get_listener}

    def look(self, server: Server) -> object:
        return self.taken, super().look(server)


class ReuseAddrCase(Case):
    name = "reuse_addr"
    moments = tuple(
        each for each in MOMENTS if each != "property"
    )  # gevent reads it from the class

    def value(self) -> int:
        return 0

    def look(self, server: Server) -> object:
        return server.socket.getsockopt(SOL_SOCKET, SO_REUSEADDR), super().look(server)


class SslArgsCase(Case):
    name = "ssl_args"

    def value(self) -> dict[str, Any]:
        return {"color": "blue"}

    def attributes(self) -> dict[str, Any]:
        self.wrapped: list[object] = []

        def wrap_socket(_server: Server, sock: Any, **options: Any) -> Any:
            self.wrapped.append(options)
            return sock

        return {"wrap_socket": wrap_socket}

    def look(self, server: Server) -> object:
        return super().look(server), self.wrapped, server.ssl_enabled


class AddressCase(Case):
    name = "address"

    def value(self) -> Any:
        return ("127.0.0.2", 0)

    def look(self, server: Server) -> object:
        where = server.socket.getsockname()
        told = where[0], server.server_host, server.server_port == server.address[1]
        return told, ask(where, b"abc")


class SocketCase(Case):
    name = "socket"
    moments = ("before", "restarted")

    def value(self) -> Any:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.3", 0))
        self.listener.listen()
        return self.listener

    def look(self, server: Server) -> object:
        where = self.listener.getsockname()
        return ask(where, b"abc"), server.closed


class ApplicationCase(Case):
    kind = Wsgi
    name = "application"

    def value(self) -> Any:
        return staticmethod(application("another"))

    def look(self, server: Server) -> object:
        return super().look(server), ask(server.address, REQUEST).split(b"\r\n")[0]


class HandlerClassCase(Case):
    kind = Wsgi
    name = "handler_class"

    def value(self) -> Any:
        seen = self.seen = []  # type: list[object]

        class Handler(gevent.pywsgi.WSGIHandler):
            def run_application(self) -> None:
                seen.append(self.path)
                super().run_application()

        return Handler

    def look(self, server: Server) -> object:
        return super().look(server), self.seen


class LogCase(Case):
    kind = Wsgi
    name = "log"

    def value(self) -> Any:
        self.log = io.StringIO()
        return self.log

    def look(self, server: Server) -> object:
        replies = super().look(server)
        return replies, self.log.getvalue().count("GET /path HTTP/1.1")


class ErrorLogCase(LogCase):
    name = "error_log"

    def look(self, server: Server) -> object:
        with connect(server.address) as client:
            client.sendall(b"NONSENSE\r\n\r\n")
            reply = receive_all(client)
        return reply.split(b"\r\n")[0], "NONSENSE" in self.log.getvalue()


class EnvironCase(Case):
    kind = Wsgi
    name = "environ"

    def value(self) -> Any:
        return {
            **gevent.pywsgi.WSGIServer.base_env,
            "key": "value",
            "wsgi.url_scheme": "http",
            "wsgi.errors": io.StringIO(),
        }


class EnvironClassCase(Case):
    kind = Wsgi
    name = "environ_class"

    def value(self) -> Any:
        return gevent.pywsgi.SecureEnviron


class SecureEnvironClassCase(Case):
    kind = Wsgi
    name = "secure_environ_class"

    def value(self) -> Any:
        class Secure(gevent.pywsgi.WSGISecureEnviron):
            pass

        self.secure = Secure
        return Secure

    def look(self, server: Server) -> object:
        return server.secure_environ_class is self.secure, super().look(server)


class BaseEnvCase(Case):
    kind = Wsgi
    name = "base_env"

    def value(self) -> Any:
        return {**gevent.pywsgi.WSGIServer.base_env, "key": "value"}

    def look(self, server: Server) -> object:
        before = super().look(server)
        server.set_environ()
        server.update_environ()
        return before, super().look(server)


CASES: Final[list[type[Case]]] = [
    PoolCase,
    WsgiPoolCase,
    HandleCase,
    FullCase,
    MaxAcceptCase,
    DelayCase,
    MinDelayCase,
    StopTimeoutCase,
    FatalErrorsCase,
    BacklogCase,
    ReuseAddrCase,
    SslArgsCase,
    AddressCase,
    SocketCase,
    ApplicationCase,
    HandlerClassCase,
    LogCase,
    ErrorLogCase,
    EnvironCase,
    EnvironClassCase,
    SecureEnvironClassCase,
    BaseEnvCase,
]


# -- moments --------------------------------------------------------------------------------------


def outcome(case: Case, moment: str, base: str, hubs: int = 1) -> object:
    """Return what becomes of *case*'s attribute when it is set at *moment*."""
    value, attributes = case.value(), case.attributes()
    if moment == "class":
        attributes[case.name] = value
    elif moment == "property":
        attributes[case.name] = property(lambda _: value, lambda *_: None)
    server = None
    try:
        server = case.kind.make(base, hubs, **attributes)
        if moment in ("before", "kept", "deleted"):
            setattr(server, case.name, value)
        server.start()
        if moment in ("restarted", "kept"):
            server.stop()
            if moment == "restarted":
                setattr(server, case.name, value)
            server.start()
        elif moment == "started":
            setattr(server, case.name, value)
        elif moment == "deleted":
            delattr(server, case.name)
        return case.look(server)
    except Exception as error:
        return type(error)
    finally:
        if server is not None:
            server.close()


@pytest.mark.parametrize("hubs", [1, 2])
@pytest.mark.parametrize(
    ("case", "moment"),
    [
        pytest.param(each, moment, id=f"{each.__name__}-{moment}")
        for each in CASES
        for moment in each.moments
    ],
)
def test_an_attribute_does_what_it_does_in_gevent(case: type[Case], moment: str, hubs: int) -> None:
    """Set before the start, after it, between stop and start, in a subclass, or deleted again."""
    expected = outcome(case(), moment, "gevent")
    assert outcome(case(), moment, "glb", hubs) == expected


# -- what gevent has no answer for ----------------------------------------------------------------


class Holding(glb.server.StreamServer):
    """Replies when it is let."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.running, self.most, self.goes_on = 0, 0, Event()
        super().__init__(*args, **kwargs)

    def handle(self, sock: Any, _peer: object) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        wait_until(self.goes_on.is_set)  # an Event is waited for on one hub only
        self.running -= 1
        sock.sendall(b"done")


@pytest.mark.parametrize("pool", [Pool, lambda: Pool(1), lambda: None], ids=["any", "one", "none"])
@pytest.mark.parametrize("hubs", [1, 2])
def test_a_number_bounds_the_handlers_whatever_pool_is_set_later(
    hubs: int, pool: Callable[[], Any]
) -> None:
    """The bound is ``spawn``'s, also after a restart; the pool that was set is kept, too."""
    server = Holding(ANY, spawn=2, hubs=hubs, clones=2)
    server.pool = other = pool()
    for _ in range(2):
        server.goes_on.clear()
        server.start()
        clients = [gevent.spawn(ask, server.address) for _ in range(5)]
        wait_until(lambda: server.state is State.FULL)
        wait_until(lambda: server.running == 2)
        server.goes_on.set()
        assert [client.get() for client in clients] == [b"done"] * 5
        server.stop()
        assert (server.most, server.pool) == (2, other)


def test_a_full_of_the_programs_own_asks_the_pool_that_was_set() -> None:
    """A pool that is set with its `full` hears of room from the pool, as with gevent."""
    server = Holding(ANY)
    server.pool = pool = Pool(1)
    vars(server)["full"] = pool.full
    server.start()
    guest = pool.spawn(server.goes_on.wait)
    client = gevent.spawn(ask, server.address)
    wait_until(lambda: server.state is State.FULL)
    server.goes_on.set()
    assert client.get() == b"done"
    assert guest.ready()
    server.stop()


@pytest.mark.parametrize("hubs", [1, 2])
def test_a_server_whose_pool_was_deleted_serves_and_stops(hubs: int) -> None:
    """A server of gevent's can't be closed then."""
    server = glb.server.StreamServer(ANY, lambda sock, _: sock.sendall(b"hi"), hubs=hubs, spawn=3)
    del server.pool
    server.start()
    assert [ask(server.address) for _ in range(4)] == [b"hi"] * 4
    server.stop()
    assert server.closed


@pytest.mark.parametrize("hubs", [1, 2])
def test_what_is_set_between_stop_and_start_outlives_the_start(hubs: int) -> None:
    """The ``spawn`` that is set up again takes nothing back."""
    server = glb.server.StreamServer(
        ANY, lambda sock, _: sock.sendall(b"hi"), hubs=hubs, clones=2, spawn=3
    )
    server.start()
    server.stop()
    asked: list[int] = []
    vars(server)["full"] = lambda: asked.append(1)  # None: there is room
    server.pool = pool = Pool()
    server.start()
    assert ask(server.address) == b"hi"
    assert asked
    assert server.pool is pool
    server.stop()


def test_hubs_that_are_set_while_it_runs_wait_for_the_next_start() -> None:
    """A number for ``spawn`` goes with the hubs that there are."""
    server = glb.server.StreamServer(
        ANY, lambda sock, _: sock.sendall(b"hi"), hubs=2, clones=2, spawn=1
    )
    for hubs in (1, 2, 1):
        server.start()
        server.hubs = hubs
        assert [ask(server.address) for _ in range(4)] == [b"hi"] * 4
        server.stop()


def test_a_max_accept_that_would_serve_nothing_is_refused_at_the_start() -> None:
    """Only the constructor of gevent's looks; then it spins, and never accepts."""
    server = glb.server.StreamServer(ANY, lambda *_: None)
    server.max_accept = 0
    with pytest.raises(ValueError, match="max_accept must be 1 or more, got 0"):
        server.start()
    assert not server.started
    server.close()


def test_a_loop_that_was_set_reports_what_fails() -> None:
    """A program's own is kept when the server starts."""

    class Loop:
        def __init__(self) -> None:
            self.failed: list[object] = []

        def handle_error(self, _context: object, kind: object, *_: object) -> None:
            self.failed.append(kind)

    class Failing(glb.server.StreamServer):
        def do_handle(self, *args: Any) -> None:
            self.do_close(*args)
            raise KeyError("a failure of the program's own")

    server = Failing(ANY, lambda *_: None)
    server.loop = loop = Loop()
    server.start()
    assert ask(server.address) == b""
    assert (server.loop, loop.failed) == (loop, [KeyError])
    server.close()


def test_a_context_that_is_set_later_has_the_handshake_timeout() -> None:
    """A program that renews its certificate sets `wrap_socket`: silent clients are still closed."""
    first, second = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
    server: Any = glb.server.StreamServer(
        ANY, lambda *_: None, ssl_context=first, handshake_timeout=0.01
    )
    server.wrap_socket = second.wrap_socket
    server.start()
    with connect(server.address) as client:
        assert receive_all(client) == b""
    server.close()


@pytest.mark.parametrize("hubs", [1, 2])
def test_multithread_is_what_the_program_set_or_how_many_hubs_there_are(hubs: int) -> None:
    """With several hubs it is true, whatever gevent's `base_env` says."""
    told: list[object] = []

    def apply(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        told.append(environ["wsgi.multithread"])
        start_response("200 OK", [])
        return [b""]

    server = glb.pywsgi.WSGIServer(ANY, apply, log=None, hubs=hubs)
    server.start()
    http_get(server.address)
    server.stop()
    server.hubs = 1
    server.start()
    http_get(server.address)
    server.stop()
    server.environ["wsgi.multithread"] = "set"
    server.start()
    http_get(server.address)
    server.close()
    assert told == [hubs == 2, False, "set"]


@pytest.mark.parametrize("module", [gevent.pywsgi, glb.pywsgi], ids=["gevent", "glb"])
def test_the_longest_request_line_may_be_set(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In gevent's module, and in ours, which is one and the same."""
    server = glb.pywsgi.WSGIServer(ANY, application("hi"), log=None)
    server.start()
    longer, status = "/" + "x" * 9000, []
    for limit in (8192, 10000, 100):
        monkeypatch.setattr(module, "MAX_REQUEST_LINE", limit)
        assert glb.pywsgi.MAX_REQUEST_LINE == gevent.pywsgi.MAX_REQUEST_LINE == limit  # type: ignore[attr-defined]  # not in the stubs
        for path in (longer, "/" + "x" * 100, "/"):
            reply = ask(server.address, f"GET {path} HTTP/1.0\r\n\r\n".encode())
            status.append(reply[9:12])
    server.close()
    assert status == [b"414", b"200", b"200"] + [b"200"] * 3 + [b"414", b"414", b"200"]
