"""What workers do: serve, change a server, be clients of all kinds. And what `glb serve` serves."""

from __future__ import annotations

import os
import resource
import signal
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Any, Final

import gevent
import gevent.pywsgi
import gevent.server
import gevent.ssl
import gevent.tests
from gevent.pool import Pool

import glb
from glb.pywsgi import WSGIServer
from glb.server import StreamServer
from loadtests.bench.servers.job import REPLY
from loadtests.frame.traffic import (
    SLOW,
    Fate,
    Request,
    Traffic,
    ask,
    connect,
    fate_of,
    new_request,
    reply,
    reset,
)
from loadtests.frame.worker import commands_of

#: gevent brings a test certificate.
CERTIFICATES: Final = Path(gevent.tests.__file__ or "").parent

#: A pool that is there so that `stop` waits for its handlers.
POOL_SIZE: Final = 10_000

#: So many connect at a time, where many are to be there.
AT_A_TIME: Final = 50


@dataclass(eq=False)
class Replies:
    """Handlers that reply with their *generation* and their clone, after *work* seconds."""

    generation: int = 0
    work: float = 0.0
    #: How long slow requests take, in seconds, how many have begun, when the last had its reply.
    slow: float = 0.0
    slow_begun: int = 0
    slow_ended_ns: int = 0
    #: The numbers of all requests over HTTP that have begun.
    begun: set[int] = field(default_factory=set)

    def stream(self, sock: Any, _peer: Any) -> None:
        try:
            if data := sock.recv(100):
                gevent.sleep(self.work)
                request = Request.decode(data.decode())
                sock.sendall(reply(request, self.generation, glb.current_clone()))
        except OSError:
            pass  # the client has reset it, which is its affair

    def http(self, environ: Mapping[str, Any], start_response: Any) -> list[bytes]:
        request = Request.decode(environ["PATH_INFO"])
        self.begun.add(request.number)
        if request.verb == SLOW:
            self.slow_begun += 1
            gevent.sleep(self.slow)
            self.slow_ended_ns = monotonic_ns()
        else:
            gevent.sleep(self.work)
        body = reply(request, self.generation, environ.get("glb.clone"))
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    def hold(self, sock: Any, _peer: Any) -> None:
        """Greet a client, and wait until it leaves."""
        try:
            sock.sendall(REPLY)
            sock.recv(1)
        except OSError:
            pass  # as above

    def greet(self, sock: Any, _peer: Any) -> None:
        sock.sendall(REPLY)


class Servers:
    """One server at a time, or two while one takes over from the other."""

    def __init__(self) -> None:
        self._server: Any = None
        self._copies: list[Any] = []
        self._kind = ""
        self._replies = Replies()
        self._make: Callable[[Any], Any]

    def open(
        self,
        kind: str,
        *,
        by: str = "glb",
        copies: int = 0,
        is_tls: bool = False,
        work: float = 0.0,
        slow: float = 0.0,
        descriptors: int | None = None,
        **options: Any,
    ) -> int:
        """Start a server, whose handler is that *kind* of `Replies`. Return its port.

        Args:
            by: "glb", with *options*, "gevent", or "gevent with a pool".
            copies: So many more servers on the same socket, of gevent's.
            descriptors: The process may open so many more.
        """
        self._kind, self._replies = kind, Replies(work=work, slow=slow)
        if by != "glb":
            options = {"spawn": Pool(POOL_SIZE)} if by == "gevent with a pool" else {}
        if is_tls:
            options["certfile"] = str(CERTIFICATES / "server.crt")
            options["keyfile"] = str(CERTIFICATES / "server.key")
        server_class: Any = StreamServer if by == "glb" else gevent.server.StreamServer
        if kind == "http":
            options["log"] = None
            server_class = WSGIServer if by == "glb" else gevent.pywsgi.WSGIServer

        def make(address: Any) -> Any:
            server = server_class(address, getattr(self._replies, kind), **options)
            server.start()
            return server

        self._make = make
        self._server = make(("127.0.0.1", 0))
        for _ in range(copies):
            number = os.dup(self._server.socket.fileno())
            self._copies.append(make(gevent.socket.socket(fileno=number)))
        if descriptors is not None:
            used = len(os.listdir("/proc/self/fd"))
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + descriptors, most))
        return int(self._server.server_port)

    def roll(self) -> tuple[int, int]:
        """Give the server another handler; return when that began and when it was over, in ns."""
        self._replies = replace(self._replies, generation=self._replies.generation + 1)
        began = monotonic_ns()
        self._server.roll(getattr(self._replies, self._kind))
        return began, monotonic_ns()

    def take_over(self) -> tuple[int, int]:
        """Have another server start on the same address, and this one drain; return as `roll`."""
        self._replies = replace(self._replies, generation=self._replies.generation + 1)
        old = self._server
        began = monotonic_ns()
        self._server = self._make(old.address)
        old.drain()
        return began, monotonic_ns()

    def resize(self, clones: int) -> list[list[int]]:
        """Have so many clones; return what each had accepted, before and after."""
        before = self.accepted()
        self._server.resize(clones)
        return [before, self.accepted()]

    def accepted(self) -> list[int]:
        """Return how many connections each clone was given."""
        return [each.accepted for each in self._server.clone_stats()]

    def cpu_seconds(self) -> float:
        return time.process_time()

    def begun_of(self, numbers: Sequence[int]) -> list[int]:
        """Return those of these requests that an application was asked for."""
        return [number for number in numbers if number in self._replies.begun]

    def end(self, after: int, timeout: float) -> tuple[float, float]:
        """Stop, with a drain if it can, when so many slow requests have begun.

        Returns:
            The seconds that it took, and those from the last reply until it was over.
        """
        with gevent.Timeout(timeout):
            while self._replies.slow_begun < after:
                gevent.sleep(0.001)
        began = monotonic_ns()
        drains = {"drain": True} if isinstance(self._server, StreamServer) else {}
        self._server.stop(timeout, **drains)
        ended = monotonic_ns()
        return (ended - began) / 1e9, (ended - self._replies.slow_ended_ns) / 1e9


class Clients(Traffic):
    """What clients do; each is a command."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Any] = []
        #: Those that have met their end stay, until all are let go.
        self._ended: list[Any] = []
        self._may_stay = True

    def reset_many(self, place: int, resets: int, is_http: bool, seconds: float) -> Counter[str]:
        """Have *resets* clients reset their connections; return the fates of those that couldn't.

        Some reset at once, which is mostly before they are accepted, some with their request sent,
        some after *seconds* in which the handler has read it, or waits for it.
        """
        fates: Counter[str] = Counter()

        def come(index: int) -> None:
            sock = None
            try:
                sock = connect(place)
                if index & 1:
                    sock.sendall(new_request().encode(is_http=is_http, is_last=True))
                if index & 2:
                    gevent.sleep(seconds)
            except OSError as error:
                fates[fate_of(error)] += 1
            if sock is not None:
                reset(sock)

        pool = Pool(AT_A_TIME)
        for index in range(resets):
            pool.spawn(come, index)
        pool.join()
        return fates

    def hold(self, place: int, count: int, asks: Sequence[str] = (), is_tls: bool = False) -> None:
        """Connect *count* of them, which wait for the reply to the last they ask, or for the end.

        *asks* are verbs, at most two, of requests over HTTP. The first has its reply at once, so
        that a handler is at work when its server ends; without any the client is silent.
        """
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE

        def connect_one(_index: int) -> tuple[Any, float]:
            sock = connect(place)
            if is_tls:
                sock = context.wrap_socket(sock, suppress_ragged_eofs=False)
            for verb in asks[:1]:
                ask(sock, new_request(verb), is_http=True)
            return sock, monotonic()

        for each in Pool(AT_A_TIME).map(connect_one, range(count)):
            self._held.append(gevent.spawn(self._wait, *each, asks[1:]))

    def _wait(self, sock: Any, began: float, asks: Sequence[str]) -> tuple[str, float, float]:
        sock.settimeout(None)
        try:
            if asks:
                found = ask(sock, new_request(asks[0]), is_http=True)
                fate = "good, and told" if found.is_last else "good"
            else:
                fate = "greeted" if sock.recv(1) else "closed"
        except (OSError, Fate) as error:
            fate = fate_of(error)
        now = monotonic()
        self._ended.append(sock)
        if not self._may_stay:
            sock.close()
        return fate, now - began, now

    def ended(self) -> int:
        """Return how many have met their end: a reply, a greeting, or the server's."""
        return len(self._ended)

    def let_go(self, at_most: float) -> list[tuple[str, float, float]]:
        """Have them leave, and the others at their ends; "stuck" after *at_most* seconds.

        Returns:
            The fate of each, after how many seconds, and when, by `time.monotonic`.
        """
        self._may_stay = False
        for sock in self._ended:
            sock.close()
        gevent.joinall(self._held, at_most)
        fates = [each.value or ("stuck", at_most, monotonic()) for each in self._held]
        gevent.killall(self._held)
        self._held, self._ended, self._may_stay = [], [], True
        return fates


COMMANDS: Final = commands_of(Servers(), Clients())

# -- what `glb serve` serves: see `Serving` -----------------------------------------------------


def _meet(fate: str) -> None:
    if fate == "crashes":
        raise RuntimeError("a fault in the new version")
    if fate == "exits":
        os._exit(0)
    elif fate == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fate == "hangs":
        time.sleep(3600)


#: How many processes came before this one; -1 in a worker. The next one inherits the environment.
_generation = int(os.environ.get("LOADTEST_GENERATION", "-1"))
if _generation >= 0:
    os.environ["LOADTEST_GENERATION"] = str(_generation + 1)
    if (_fate := Path(os.environ["LOADTEST_FATE"])).exists():
        _meet(_fate.read_text())

_served: Final = Replies(_generation, work=0.02)
stream: Final = _served.stream
http: Final = _served.http
