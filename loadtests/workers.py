"""What worker processes do: serve, with servers of glb's and gevent's own; or be clients.

`glb serve` serves `stream`, `http` and `echo` of this module, and a new process of it may have a
fate. Workers are not monkey-patched: `time.sleep` blocks a hub.
"""

from __future__ import annotations

import os
import resource
import signal
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Any, Final

import gevent.pywsgi
import gevent.server
import gevent.ssl
from gevent import socket
from gevent.pool import Pool

import glb
from glb.pywsgi import WSGIServer
from glb.server import StreamServer
from loadtests.bench.servers.job import REPLY
from loadtests.frame.traffic import (
    CHUNK,
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
CERTIFICATES: Final = Path(gevent.__file__).parent / "tests"

#: A pool that is there so that `stop` waits for its handlers.
POOL_SIZE: Final = 10_000

#: So many connect at a time, where many are to be there.
AT_A_TIME: Final = 50

#: A roll waits for handlers that are at work, and theirs is short where there is one each second.
ROLL_MAX_SECONDS: Final = 10


@dataclass(eq=False)
class Replies:
    """Handlers, all with *work* to do, in seconds, and of one *generation*.

    The words of a reply to a `Request` are the client's ``address:port``, the server's *name*, the
    process's id, and the generation. For locust a clone is ``name.clone``, or ``clone/clones``.
    """

    generation: int = 0
    work: float = 0.0
    #: How long slow requests take, in seconds, how many have begun, when the last had its reply.
    slow: float = 0.0
    slow_begun: int = 0
    slow_ended_ns: int = 0
    name: str = ""
    clones: int = 1
    #: In place of a clone's index, in a server that has none.
    number: int = 0
    #: The numbers of all requests that have begun.
    begun: set[int] = field(default_factory=set)

    def stream(self, sock: Any, peer: Any) -> None:
        try:
            if data := sock.recv(100):
                sock.sendall(self._answer(Request.decode(data.decode()), peer))
        except OSError:
            pass  # the client has reset it, which is its affair

    def http(self, environ: Mapping[str, Any], start_response: Any) -> list[bytes]:
        """Answer a `Request`; for locust ``/``, and ``/block?ms=50``, which blocks the hub."""
        path, headers = environ["PATH_INFO"], []
        if path in {"/", "/block"}:
            if path == "/block":
                time.sleep(int(environ["QUERY_STRING"].removeprefix("ms=")) / 1000)
            headers.append(("X-Glb-Clone", self._label()))
            body = f"{self._label()}\n".encode()
        else:
            peer = (environ.get("REMOTE_ADDR"), environ.get("REMOTE_PORT"))
            body = self._answer(Request.decode(path), peer)
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def echo(self, sock: Any, _peer: Any) -> None:
        """Answer each line by itself, after the clone."""
        label, rest = self._label().encode(), b""
        try:
            while data := sock.recv(CHUNK):
                *lines, rest = (rest + data).split(b"\n")
                if lines:
                    sock.sendall(b"".join(b"%b %b\n" % (label, line) for line in lines))
        except OSError:
            pass  # as above

    def hold(self, sock: Any, _peer: Any) -> None:
        """Greet a client, and wait until it leaves."""
        try:
            sock.sendall(REPLY)
            sock.recv(1)
        except OSError:
            pass  # as above

    def greet(self, sock: Any, _peer: Any) -> None:
        sock.sendall(REPLY)

    def _answer(self, request: Request, peer: Any) -> bytes:
        self.begun.add(request.number)
        is_slow = request.verb == SLOW
        self.slow_begun += is_slow
        gevent.sleep(self.slow if is_slow else self.work)
        if is_slow:
            self.slow_ended_ns = monotonic_ns()
        client = ":".join(map(str, peer))  # "" of a Unix socket
        return reply(request, client, self.name, os.getpid(), self.generation)

    def _label(self) -> str:
        clone = glb.current_clone()
        index = self.number if clone is None else clone.index
        return f"{self.name}.{index}" if self.name else f"{index}/{self.clones}"


class Servers:
    """One server at a time, or two while one takes over from the other."""

    def __init__(self) -> None:
        self._server: Any = None
        #: Gevent's own: as many as were wanted, and what each was given.
        self._others: list[Any] = []
        self._given: list[int] = []
        self._kind = ""
        self._replies = Replies()
        self._make: Callable[[Any], Any]

    def open(
        self,
        kind: str,
        *,
        by: str = "glb",
        clones: int = 4,
        name: str = "",
        is_tls: bool = False,
        work: float = 0.0,
        slow: float = 0.0,
        descriptors: int | None = None,
        **options: Any,
    ) -> int:
        """Start a server, whose handler is that *kind* of `Replies`. Return its port.

        Args:
            by: "glb", with *options*; "gevent", or "gevent with a pool".
            clones: Of gevent's own as many servers, which race for one socket.
            descriptors: The process may open so many more.
        """
        # Ctrl-C in a terminal is locust's, which still asks what was accepted then.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._kind = kind
        self._replies = Replies(work=work, slow=slow, name=name, clones=clones)
        if by == "glb":
            options["clones"] = clones
        else:
            options = {"spawn": Pool(POOL_SIZE)} if by == "gevent with a pool" else {}
        if is_tls:
            options["certfile"] = str(CERTIFICATES / "server.crt")
            options["keyfile"] = str(CERTIFICATES / "server.key")
        server_class: Any = StreamServer if by == "glb" else gevent.server.StreamServer
        if kind == "http":
            options["log"] = None
            server_class = WSGIServer if by == "glb" else gevent.pywsgi.WSGIServer

        def make(address: Any, replies: Replies | None = None) -> Any:
            server = server_class(address, getattr(replies or self._replies, kind), **options)
            if by != "glb":
                count = partial(self._count, len(self._given), server.do_handle)
                self._given.append(0)
                server.do_handle = count
            server.start()
            return server

        self._make = make
        self._server = make(("127.0.0.1", 0))
        for number in range(1, 1 if by == "glb" else clones):
            copy = socket.socket(fileno=os.dup(self._server.socket.fileno()))
            self._others.append(make(copy, replace(self._replies, number=number)))
        if descriptors is not None:
            used = len(os.listdir("/proc/self/fd"))
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + descriptors, most))
        return int(self._server.server_port)

    def _count(self, number: int, handle: Callable[..., object], *connection: Any) -> None:
        self._given[number] += 1
        handle(*connection)

    def _change(self, step: Callable[[], object]) -> tuple[int, int]:
        """Take *step* with handlers of the next generation; return from when to when, in ns."""
        self._replies = replace(self._replies, generation=self._replies.generation + 1)
        began = monotonic_ns()
        step()
        return began, monotonic_ns()

    def roll(self) -> tuple[int, int]:
        """Give the server another handler."""
        return self._change(lambda: self._server.roll(getattr(self._replies, self._kind)))

    def roll_each(self, seconds: float) -> None:
        """Do so again and again from now on. A server that can't ends, so that its clients fail."""

        def go_on() -> None:
            while True:
                gevent.sleep(seconds)
                with gevent.Timeout(ROLL_MAX_SECONDS):
                    self.roll()

        gevent.spawn(go_on).link_exception(lambda _: os._exit(1))

    def rolls(self) -> int:
        """Return how often it was."""
        return self._replies.generation

    def take_over(self) -> tuple[int, int]:
        """Have another server start on the same address, and this one drain."""

        def step() -> None:
            old, self._server = self._server, self._make(self._server.address)
            old.drain()

        return self._change(step)

    def resize(self, clones: int) -> list[list[int]]:
        """Have so many clones; return what each had accepted, before and after."""
        before = self.accepted()
        self._server.resize(clones)
        return [before, self.accepted()]

    def accepted(self) -> list[int]:
        """Return how many connections each clone was given, or each of gevent's."""
        return self._given or [each.accepted for each in self._server.clone_stats()]

    def cpu_seconds(self) -> float:
        return time.process_time()

    def begun_of(self, numbers: Sequence[int]) -> list[int]:
        """Return those of these requests that a handler was asked for."""
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

# -- what `glb serve` serves: see `loadtests.lossless.stage.Serving` -----------------------------


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

_served: Final = Replies(_generation, work=0.02, slow=0.5, name=os.environ.get("HOST", ""))
stream: Final = _served.stream
http: Final = _served.http
echo: Final = _served.echo
