"""Through real HAProxy and nginx, an application sees what the proxy sent.

Clients send a proxy hundreds of requests: uploads, websockets, replies that come early, what a
proxy and a server may read in two ways, and requests within requests; pipelined, and cut into
pieces. The proxy passes them on over connections that all clients share, through a relay that
records both directions. What the application saw on a connection is compared with what the proxy
sent there.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import socket as native
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import unquote

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import SHUT_WR, create_connection

from loadtests.frame.process import Process
from loadtests.frame.traffic import reset
from loadtests.frame.worker import Worker

from . import pages
from .messages import FORGED, KINDS, SECOND_SIZE, Exchange, Kind, Maker, Message, read_message
from .pages import digest, page_of, part_of, reply_body

#: In the fault of a request that no proxy has sent, from where no client is.
SMUGGLED: Final = "a smuggled request"

#: How long anything may take on a busy machine, and the end of what has no client left.
PATIENCE_SECONDS, CLOSE_SECONDS = 30.0, 20.0

#: Of kinds whose reply a proxy's reset may outrun: it closes while the client still sends.
MAY_BE_OUTRUN: Final = {"early reply", "too large", "ambiguous"}

# -- the proxies ---------------------------------------------------------------------------------

# Any client may use a connection to the server between two requests. Nothing is tried again: a
# request that the server has lost must be seen.
_HAPROXY: Final = """
global
    nbthread 1
defaults
    mode http
    http-reuse always
    retries 0
{lax}
listen glb
    bind 127.0.0.1:{port}
    http-request set-header X-Forwarded-For %[src]
    server glb 127.0.0.1:{server_port}
"""
_LAX: Final = "    option accept-invalid-http-request\n    option accept-invalid-http-response"

# The location is that of nginx's page on websockets, but for an empty Connection where there is no
# Upgrade: with "close" no connection is kept. Of a third of the tokens, nothing is buffered.
_NGINX: Final = """
daemon off;
master_process off;
pid {home}/nginx.pid;
error_log {home}/nginx.log warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {home}/a; proxy_temp_path {home}/b; fastcgi_temp_path {home}/c;
    uwsgi_temp_path {home}/d; scgi_temp_path {home}/e;
    client_max_body_size 0;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream servers {{ server 127.0.0.1:{server_port}; keepalive 16; }}
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_next_upstream off;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://servers; }}
        location ~ [0-4]$ {{
            proxy_pass http://servers; proxy_request_buffering off; proxy_buffering off;
        }}
    }}
}}
"""

#: By names: the program and its options, and its configuration. The lax one passes on more of what
#: is malformed.
PROXIES: Final = {
    "haproxy": (("haproxy", "-db", "-f"), _HAPROXY.replace("{lax}", "")),
    "haproxy-lax": (("haproxy", "-db", "-f"), _HAPROXY.replace("{lax}", _LAX)),
    "nginx": (("nginx", "-p", "/", "-c"), _NGINX),
}


def find(name: str) -> str | None:
    """Return where a proxy's program is; ``None`` if it isn't installed."""
    # Debian has them there, and a user's PATH may not.
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"))
    return shutil.which(PROXIES[name][0][0], path=path)


class Proxy(Process):
    """A proxy in front of a server, in a folder of its own; it listens on *port*."""

    def __init__(self, name: str, server_port: int, home: Path) -> None:
        (_, *options), configuration = PROXIES[name]
        with native.create_server(("127.0.0.1", 0)) as free:
            self.port: Final[int] = free.getsockname()[1]
        file = home / "proxy.conf"
        file.write_text(configuration.format(port=self.port, server_port=server_port, home=home))
        super().__init__([find(name) or name, *options, str(file)])
        until = time.monotonic() + PATIENCE_SECONDS
        with native.socket() as sock:
            while sock.connect_ex(("127.0.0.1", self.port)):
                if not self.is_running() or time.monotonic() > until:
                    said = self.said()
                    self.end()
                    raise RuntimeError(f"{name} doesn't start: {said[:1000]}")
                time.sleep(0.02)

    def _stop(self) -> None:
        self.signal(15)


# -- the connections between a proxy and the server, recorded ------------------------------------


@dataclass
class Line:
    """One connection. It was ended by "proxy" or "server", or by "proxy's reset"."""

    sent: bytearray = field(default_factory=bytearray)  # by the proxy
    answered: bytearray = field(default_factory=bytearray)
    ended_by: str = ""
    is_closed: bool = False  # by the server, in time


class Relay:
    """Passes on what a proxy and a server say, and keeps it, by the addresses of its own end."""

    def __init__(self, port: int) -> None:
        self._target: Final = ("127.0.0.1", port)
        self.lines: Final[dict[str, Line]] = {}
        # A pool, so that its end can be waited for.
        here = ("127.0.0.1", 0)
        self.server: Final[Any] = StreamServer(here, self._handle, backlog=1024, spawn=Pool())
        self.server.start()

    def _handle(self, proxy: Any, _peer: object) -> None:
        count = len(self.lines) + 1
        address = f"127.200.{count >> 8}.{count & 255}"
        line = self.lines[address] = Line()
        server = create_connection(self._target, source_address=(address, 0))
        for each in (proxy, server):
            each.setsockopt(native.IPPROTO_TCP, native.TCP_NODELAY, 1)
        back = gevent.spawn(self._pass, line, server, proxy, line.answered, "server")
        self._pass(line, proxy, server, line.sent, "proxy")
        back.join(CLOSE_SECONDS)
        line.is_closed = back.dead
        back.kill()
        server.close()
        proxy.close()

    def _pass(self, line: Line, source: Any, to: Any, record: bytearray, name: str) -> None:
        try:
            while data := source.recv(65536):
                record += data
                try:
                    to.sendall(data)
                except OSError:
                    return  # what it has said before it left is read by the other direction
        except OSError:
            # The other side is to see it as it would without us.
            line.ended_by = line.ended_by or f"{name}'s reset"
            for each in (source, to):
                with contextlib.suppress(OSError):
                    reset(each)
        else:
            line.ended_by = line.ended_by or name
            with contextlib.suppress(OSError):
                to.shutdown(SHUT_WR)


# -- one proxy -----------------------------------------------------------------------------------


def send(sock: Any, pieces: list[bytes]) -> None:
    # A proxy that doesn't read on has its reasons, which its reply tells.
    with contextlib.suppress(OSError):
        for each in pieces:
            sock.sendall(each)
            if len(pieces) > 1:
                gevent.sleep(0)


@dataclass
class Trial:
    """What is asked through the proxy *name*, and what was seen of it."""

    name: str
    maker: Maker
    kinds: list[Kind]
    port: int = 0
    left: int = 0  # so many requests are to be sent
    asked: dict[str, Exchange] = field(default_factory=dict)  # by tokens
    lines: dict[str, Line] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def run(self, relay: Relay, home: Path, requests: int, at_once: int) -> None:
        """Have clients ask the server behind *relay*."""
        self.lines = relay.lines
        with Proxy(self.name, relay.server.server_port, home) as proxy:
            self.port = proxy.port
            with self.connect() as sock, sock.makefile("rb") as file:
                self.exchange(sock, file, [self.maker.second()])
            [line] = self.lines.values()
            self.maker.second_head, self.left = len(line.sent) - SECOND_SIZE, requests
            gevent.joinall([gevent.spawn(self._ask) for _ in range(at_once)], raise_error=True)
            if not proxy.is_running():
                self.faults.append(f"{self.name} has ended: {proxy.last_words()}")
            # In a thread: the relay goes on meanwhile.
            gevent.get_hub().threadpool.apply(proxy.end)
            relay.server.stop(timeout=2 * CLOSE_SECONDS)

    # -- the clients: each looks whether what it gets is its own -----------------------------------

    def connect(self) -> Any:
        return create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    def _ask(self) -> None:
        while self.left > 0:
            with self.connect() as sock, sock.makefile("rb") as file:
                # A connection has seven batches, on average.
                while self.left > 0 and self.maker.choose.random() > 1 / 8:
                    batch = self.maker.batch(self.kinds)
                    self.left -= len(batch)
                    if not self.exchange(sock, file, batch):
                        break

    def exchange(self, sock: Any, file: IO[bytes], batch: list[Exchange]) -> bool:
        """Send *batch* and read the replies; return True if the connection may have more."""
        self.asked.update((each.token, each) for each in batch)
        data = b"".join(each.head + (b"" if each.kind.waits else each.tail) for each in batch)
        if batch[-1].kind.name == "leaving":
            self._leave(sock, data)
            return False
        sending, goes_on = gevent.spawn(send, sock, self.maker.pieces(data)), True
        try:
            for each in batch:
                goes_on = goes_on and self._receive(sock, file, each)
            sending.join(PATIENCE_SECONDS if goes_on else 0.0)
            return goes_on and not batch[-1].ends
        finally:
            sending.kill()

    def _leave(self, sock: Any, data: bytes) -> None:
        choose = self.maker.choose
        send(sock, [data[: choose.choice((len(data), choose.randint(0, len(data))))]])
        gevent.sleep(choose.choice((0.0, 0.005, 0.02, 0.05)))
        if choose.random() < 0.5:
            reset(sock)

    def _receive(self, sock: Any, file: IO[bytes], exchange: Exchange) -> bool:
        """Look at the reply to *exchange*; return whether the connection goes on."""
        kind, reply, failure = exchange.kind, None, "no reply"
        is_excused = kind.name in MAY_BE_OUTRUN
        tail = [exchange.tail] if kind.waits else []
        try:
            reply = read_message(file, exchange.method, lambda: send(sock, tail))
        except TimeoutError:
            failure, is_excused = "no reply in time", False
        except OSError:
            failure = "a reset, and no reply"
        except ValueError as error:
            failure, is_excused = str(error), kind.name == "ambiguous"  # some ask as HTTP/0.9 does
        if reply is None:
            if not is_excused:
                self._fault(exchange, failure)
            return False
        self._look_at(exchange, reply)
        if reply.code == 101:
            self._talk(sock, file, exchange)
        is_last = reply.code == 101 or "close" in reply.value("connection").lower()
        return reply.is_whole and not is_last

    def _look_at(self, exchange: Exchange, reply: Message) -> None:
        kind, token, code = exchange.kind, reply.value("x-token"), reply.code
        if code not in kind.statuses:
            self._fault(exchange, f"answered with {reply.line!r}")
        elif token in self.asked and token != exchange.token:
            self._fault(exchange, f"has the reply to another: {self.asked[token].head!r}")
        elif kind.name != "ambiguous" and code != 413:
            is_bodiless = exchange.method == "HEAD" or code in {101, 204, 304}
            read = digest(part_of(exchange.page, exchange.body))
            body = b"" if is_bodiless else reply_body(exchange.token, read, exchange.size)
            wanted = exchange.token, digest(body), is_bodiless or exchange.page != "short"
            if (seen := (token, digest(reply.body), reply.is_whole)) != wanted:
                self._fault(exchange, f"has {seen} as token, body and whole, and not {wanted}")

    def _talk(self, sock: Any, file: IO[bytes], exchange: Exchange) -> None:
        choose = self.maker.choose
        said = [f"{choose.randbytes(size).hex()}\n".encode() for size in (1, 62, 30_000)]
        try:
            for line in [*said, b"\n"][: choose.randint(0, 6)]:
                send(sock, self.maker.pieces(line))
                # It is the end behind an empty line; the others leave without a word.
                if (echo := file.readline() if line != b"\n" else file.read()) != line:
                    self._fault(exchange, f"has {echo[:100]!r} for {line[:100]!r}")
                    return
        except OSError as error:
            self._fault(exchange, f"ends behind the upgrade: {error!r}")

    def _fault(self, exchange: Exchange, what: str) -> None:
        self.faults.append(f"{self.name}: [{exchange.kind.name}] {exchange.head[:300]!r} {what}")

    # -- what was sent on a connection, and what the application saw there -------------------------

    def compare(self, line: Line, calls: list[dict[str, Any]]) -> None:
        """Look at a connection and the application's *calls* there."""
        sent, answered = io.BytesIO(line.sent), io.BytesIO(line.answered)
        about = "nothing"

        def fault(what: str) -> None:
            self.faults.append(f"{self.name} and the server: {what}: {about}")

        if not line.is_closed:
            fault("the server has not closed it")
        while (request := read_message(sent)) is not None:
            method, target, *_ = f"{request.line} ".split(" ")
            fields = [f"{name}: {value}"[:60] for name, value in request.fields]
            about = f"{request.line[:150]!r} {fields}, behind {about[:600]}"
            try:
                reply = read_message(answered, method)
            except ValueError as error:
                fault(f"behind a reply: {error}")
                break
            is_last = reply is None or "close" in reply.value("connection").lower()
            is_due = request.is_whole and line.ended_by.startswith("server")
            if reply and 400 <= reply.code <= 505 and not reply.value("x-token"):
                # The server refuses without the application, or while that reads the body.
                if calls and page_of(calls[0]["PATH_INFO"])[1] in target:
                    calls.pop(0)
                if not is_last:
                    fault("refused, but not closed")
                break
            if not calls:
                # A reset takes with it what the server has not read.
                if is_due or (request.is_whole and line.ended_by != "proxy's reset"):
                    fault("not given to the application")
                break
            if what := _difference(request, calls.pop(0)):
                fault(what)
            is_whole = reply is not None and reply.is_whole
            if is_due and not is_whole and "/short/" not in target:
                fault("no whole reply")
            if is_last or not is_whole or (reply and reply.code == 101):
                break
        else:
            if rest := answered.read():
                fault(f"a reply too many: {rest[:100]!r}")
        for call in calls:
            fault(f"{_kind_of(call, 'a call too many')}: {call}")


def _difference(request: Message, call: dict[str, Any]) -> str:
    """Return what the application saw otherwise; an empty string if it is nothing."""
    method, target, *_ = f"{request.line} ".split(" ")
    path, _, query = target.removeprefix("http://").partition("?")
    path = "/" + path.partition("/")[2] if target.startswith("http://") else path
    sent = (method, unquote(path, "latin-1"), query, request.value("x-forwarded-for") or None)
    names = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "HTTP_X_FORWARDED_FOR")
    if (seen := tuple(map(call.get, names))) != sent:
        return f"the application saw {_kind_of(call, 'something else')} for {sent}: {seen}"
    page, read = page_of(path)[0], call.get("read")
    if page == "websocket":
        return ""
    if read is None:
        return "its body was not read" if request.is_whole and "error" not in call else ""
    if read != (wanted := digest(part_of(page, request.body))):
        return f"another body: {read}, for {wanted}"
    is_cut = not request.is_whole and part_of(page, bytes(11)) == bytes(11)
    return "a body was cut, and taken for whole" if is_cut else ""


def _kind_of(call: dict[str, Any], otherwise: str) -> str:
    return SMUGGLED if call.get("HTTP_X_FORWARDED_FOR") == FORGED else otherwise


# -- all of it -----------------------------------------------------------------------------------


def ask_through(
    name: str,
    home: Path,
    requests: int,
    *,
    server: str = "lean",
    kinds: Collection[str] = (),
    clients: int = 8,
    seed: str = "",
    module: str = pages.__name__,
    **options: Any,
) -> list[str]:
    """Have clients send *requests* by the proxy *name* to a server; return what was wrong.

    Args:
        home: A folder, for the proxy.
        server: One of `pages.SERVERS`, with *options*.
        kinds: Of requests; all, if there are none.
        seed: Of all that is chosen.
        module: Has the commands of the server's process.
    """
    chosen = [kind for kind in KINDS if kind.name in kinds or not kinds]
    # nginx (1.22) takes the 103 of early hints for the reply.
    trial = Trial(name, Maker(random.Random(f"{seed} {name}"), name != "nginx"), chosen)
    calls = defaultdict(list)
    with Worker(module) as process:
        trial.run(Relay(process.ask("start", name=server, **options)), home, requests, clients)
        for call in process.ask("stop"):
            calls[call["REMOTE_ADDR"]].append(call)
        status, said = process.status(PATIENCE_SECONDS), process.said()
    for address, line in trial.lines.items():
        trial.compare(line, calls.pop(address, []))
    faults = [
        *trial.faults,
        *(f"calls on no connection of ours: {each}" for each in calls.values()),
    ]
    if status or "Traceback" in said:
        faults.append(f"the server has ended with status {status}, and said: {said}")
    # The gravest first; and what was recorded tells more than what a client has seen.
    return sorted(faults, key=lambda each: (SMUGGLED not in each, " and the server: " not in each))
