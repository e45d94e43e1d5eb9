r"""Users that load a server over TCP, TLS or Unix sockets, as `FastHttpUser` does over HTTP.

All of them, and `WebSocketUser` too, have in common:

* Each method of ``self.client`` is one timed request in locust's reports. One that fails is a
  failure there, with its reason; then the connection is closed, the task ends (`RequestFailed`),
  and the user goes on with its next one.
* No connection outlives its user, however that ends; nor its task, unless `keep_alive`.
* A timeout is for the whole request, however many pieces its reply comes in.
* A user whose connection is refused waits before it goes on: 0.05 s, then twice as long each time,
  up to a second.

An event's context is what the user's ``context()`` gives, and `glb_clone` and `glb_turn` where a
reply tells which clone gave it (`ConnectionUser.clone_of`).
"""

from __future__ import annotations

import functools
import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EAGAIN, EALREADY, EINPROGRESS
from os import strerror
from struct import pack
from time import perf_counter, time
from typing import Any, ClassVar, Final, NoReturn
from urllib.parse import urlsplit

import gevent
import gevent.socket
from gevent import GreenletExit, get_hub, getcurrent
from gevent.socket import (
    AF_UNIX,
    IPPROTO_TCP,
    SO_ERROR,
    SO_LINGER,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
)
from locust import TaskSet, User, task
from locust.exception import CatchResponseError, RescheduleTask, StopTest
from locust.user.task import (
    LOCUST_STATE_RUNNING,
    LOCUST_STATE_STOPPING,
    LOCUST_STATE_WAITING,
)

from ..net.connection import Connection, say_goodbye

__all__ = [
    "Client",
    "ConnectionUser",
    "EchoUser",
    "PatientUser",
    "RequestFailed",
    "Target",
    "TcpClient",
    "TcpUser",
]

#: A server's name for a clone.
Told = int | str | bytes

# Mostly a reply in one piece; a longer one takes more.
CHUNK_BYTES: Final = 16_384

#: A line that is longer is a failure: a server that never ends one would fill the memory.
MOST_BYTES: Final = 16 * 1024 * 1024

#: There is no server: on a port, or behind the file of a Unix socket.
REFUSALS: Final = (ConnectionRefusedError, FileNotFoundError)

# The most bytes of a reply in a failure's text: locust lists each different text.
SHOWN_BYTES: Final = 60

# A user whose connection is refused waits so long, and twice as long each further time up to the
# second: without it one core makes 15,000 connections/s to a port where no server listens, and
# a server that starts again meets all of them.
REFUSED_SECONDS: Final = 0.05
MOST_REFUSED_SECONDS: Final = 1.0

# The pause when the accept queue of a Unix socket is full. The kernel has no event for room.
FULL_SECONDS: Final = 0.002


class RequestFailed(RescheduleTask):
    """A request failed. locust has it in its report already; uncaught, it ends the task.

    Not an error of the task's: locust goes on with the next one, and prints no traceback. In
    ``on_start`` there is no task to end: there it is an error as any other.

    Attributes:
        reason: What it was: `ConnectionRefusedError`, `ConnectionResetError`, `TimeoutError`...
    """

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Expired(BaseException):
    """The time is up. No `Exception`, which a library in between might take for its own."""


@dataclass
class Target:
    """Where to connect to.

    Attributes:
        kind: ``"TCP"``, ``"TLS"`` or ``"UNIX"``, and for WebSockets ``"WS"`` or ``"WSS"``.
        name: Host, without brackets, or path.
    """

    url: str
    kind: str
    name: str
    port: int | None
    _resolved: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def is_secure(self) -> bool:
        return self.kind in {"TLS", "WSS"}

    def resolve(self) -> list[tuple[int, Any]]:
        """Return families and addresses, the one that last answered first.

        Names are looked up once: a name server's time is no figure of the server under load, and
        the load has the same addresses to the end.
        """
        if not self._resolved:
            if self.port is None:
                self._resolved.append((AF_UNIX, self.name))
            else:
                found = gevent.socket.getaddrinfo(self.name, self.port, 0, SOCK_STREAM)
                self._resolved[:] = dict.fromkeys((each[0], each[4]) for each in found)
        return self._resolved

    def prefer(self, family: int, address: Any) -> None:
        """Have this one of its addresses tried first from now on."""
        if self._resolved[0] != (family, address):
            self._resolved.remove((family, address))
            self._resolved.insert(0, (family, address))


@functools.lru_cache(maxsize=128)  # one for all users of a class
def tcp_target(url: str) -> Target:
    """Return where `TcpUser.host` leads to.

    Raises:
        ValueError: It is no ``tcp://host:port``, ``tls://host:port`` or ``unix:///path``.

    Example:
        >>> target = tcp_target("tls://[::1]:8443")
        >>> target.kind, target.name, target.port
        ('TLS', '::1', 8443)
    """
    # "unix:/path", too, as glb's servers have it.
    if match := re.fullmatch(r"unix:(?://)?(/[^/].*)", url):
        return Target(url, "UNIX", match[1], None)
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, a bracket that is left open
        parts, name, port = None, None, None
    if (
        parts is None
        or parts.scheme not in {"tcp", "tls"}
        or not name
        or not port
        or parts.path not in {"", "/"}
        or parts.query
        or parts.fragment
        or parts.username is not None
    ):
        raise ValueError(
            f"host must be tcp://host:port, tls://host:port or unix:///path, got {url!r}"
        )
    return Target(url, parts.scheme.upper(), name, port)


@functools.cache
def _verifying() -> ssl.SSLContext:
    """Return the default context. It reads all certificates: once is enough."""
    return ssl.create_default_context()


class Client(ABC):
    """A user's connection, and its requests in locust's reports. The base of `TcpClient`."""

    #: The errors of a failed request; any other is a mistake in the task.
    FAILURES: ClassVar[tuple[type[Exception], ...]] = (OSError,)

    def __init__(self, user: ConnectionUser, target: Target) -> None:
        self._user = user
        self._target = target
        self._fire = user.environment.events.request.fire
        # True if a reply on this connection has named the clone.
        self._has_clone = False

    @abstractmethod
    def drop(self) -> None:
        """Close the connection, if there is one. Never waits; not in locust's reports."""

    def end(self) -> None:
        """Close the connection, if there is one, as at the end of a task; not a timed request."""
        self.drop()

    def _timed(
        self,
        name: str,
        seconds: float | None,
        late: str,
        operation: Callable[..., Any],
        *args: Any,
        whose: Callable[[Any], Told | None] | None = None,
        check: Callable[[Any], str | None] | None = None,
    ) -> Any:
        """Return the result of *operation*, as one timed request of locust's.

        Args:
            seconds: It may take so long; ``None`` is for ever.
            late: The text of a timeout.
            whose: Returns the clone of a reply.
            check: Returns the fault of a reply; ``None`` if it has none.

        Raises:
            RequestFailed: It failed, and is in locust's report. The connection is closed.

        Switches:
            As *operation* does. A kill closes the connection.
        """
        timer = None
        reply: Any = None
        reason: Exception | None = None
        began, start = time(), perf_counter()
        try:
            if seconds is not None:
                # As `gevent.Timeout` does it, at a fifth of its price; and from now on, where that
                # counts from when the loop last looked at its clock: too soon, with many users.
                timer = get_hub().loop.timer(seconds)
                timer.start(getcurrent().throw, _Expired, update=True)
            reply = operation(*args)
        except _Expired:
            reason = TimeoutError(f"{late} within {seconds:g} s")
        except self.FAILURES as error:
            reason = error
        except BaseException:
            # A kill in the middle of a request: where the next reply begins isn't known.
            self.drop()
            raise
        finally:
            if timer is not None:
                timer.stop()
                timer.close()
        milliseconds = (perf_counter() - start) * 1000
        context = self._user.context()
        mistake: Exception | None = None
        if reason is None:
            try:
                if check is not None and (wrong := check(reply)) is not None:
                    reason = CatchResponseError(wrong)
                if whose is not None and (told := whose(reply)) is not None:
                    context = {**context, "glb_clone": told, "glb_turn": not self._has_clone}
                    self._has_clone = True
            except Exception as error:
                # A mistake of the locustfile's, or a reply that it didn't expect: of that request.
                reason = mistake = error
        if reason is not None:
            self.drop()
        self._fire(
            request_type=self._target.kind,
            name=name,
            response_time=milliseconds,
            response_length=0 if reply is None else len(reply),
            response=reply,
            context=context,
            exception=reason,
            start_time=began,
            url=self._target.url,
        )
        if mistake is not None:
            raise mistake
        if reason is not None:
            self._give_up(reason)
        return reply

    def _give_up(self, reason: Exception) -> NoReturn:
        if isinstance(reason, REFUSALS):
            self._user.wait_after_refusal()
        raise RequestFailed(reason) from reason

    # -- the transport -------------------------------------------------------------------------

    def _open(self) -> Any:
        """Return a new connection to the target, which is the caller's to close.

        Switches:
            While waiting. A kill leaves nothing open.
        """
        target, sock = self._target, None
        reason = OSError(f"can't find {target.name!r}")
        for family, address in [*target.resolve()]:
            sock = Connection(family, SOCK_STREAM)
            try:
                _establish(sock, family, address)
            except OSError as error:
                sock.close()
                sock, reason = None, error
            except BaseException:
                sock.close()
                raise
            else:
                target.prefer(family, address)
                break
        if sock is None:
            raise reason
        self._user.refusals = 0
        return self._secure(sock) if target.is_secure else sock

    def _secure(self, sock: Connection) -> Any:
        """Return the TLS socket that has taken over *sock*; closes it if there is none."""
        user, taken = self._user, sock
        try:
            taken = (user.ssl_context or _verifying()).wrap_socket(  # type: ignore[assignment]  # it is one for all that we do
                sock,
                server_hostname=user.server_hostname or self._target.name,
                do_handshake_on_connect=False,
            )
            taken.do_handshake()  # type: ignore[attr-defined]  # as above
        except BaseException:
            taken.close()
            raise
        return taken


def _establish(sock: Connection, family: int, address: Any) -> None:
    """Connect *sock*, which has no timeout."""
    plain = sock._sock
    if family != AF_UNIX:
        # What a task sends in two pieces isn't to wait for the server's delayed ACK.
        plain.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    error = plain.connect_ex(address)
    while error == EAGAIN and family == AF_UNIX:
        gevent.sleep(FULL_SECONDS)
        error = plain.connect_ex(address)
    if error == EINPROGRESS:
        # Over loopback it is done by now. Asking again is cheaper than waiting for the hub.
        error = plain.connect_ex(address)
        if error == EALREADY:
            sock._wait(sock._write_event)  # type: ignore[attr-defined]  # gevent's, not in the stubs
            error = plain.getsockopt(SOL_SOCKET, SO_ERROR)
    if error:
        raise OSError(error, strerror(error))


class TcpClient(Client):
    """A connection over TCP, TLS or a Unix socket; ``self.client`` of a `TcpUser`.

    All but `close` and `abort` connect first if there is no connection.
    """

    def __init__(self, user: ConnectionUser, target: Target) -> None:
        super().__init__(user, target)
        self._sock: Any = None
        # What has been received and not been asked for.
        self._ahead = b""

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection. The server may have closed it already."""
        return self._sock is not None

    def connect(self, *, name: str = "connect") -> None:
        """Connect: by TLS, with its handshake.

        With `keep_alive` an open connection stays, unless the server has closed it meanwhile;
        without, each call makes a new one.
        """
        if self._sock is not None:
            if self._user.keep_alive and not self._has_ended():
                return
            self.end()
        self._timed(name, self._user.connect_timeout, "no connection", self._connect)

    def send(self, data: bytes, *, name: str = "send") -> None:
        """Give all of *data* to the kernel."""
        if self._sock is None:
            self.connect()
        self._timed(name, self._user.timeout, "not all sent", self._send, data)

    def receive(self, length: int, *, name: str = "receive") -> bytes:
        """Return exactly *length* bytes."""
        return self._reply(name, self._receive, length)

    def receive_until(self, end: bytes, *, name: str = "receive") -> bytes:
        """Return what comes until *end*, and *end*."""
        return self._reply(name, self._receive_until, end)

    def receive_line(self, *, name: str = "receive") -> bytes:
        r"""Return a line, with its ``b"\n"``."""
        return self.receive_until(b"\n", name=name)

    def request(
        self,
        data: bytes,
        until: bytes = b"\n",
        *,
        length: int | None = None,
        name: str = "request",
        check: Callable[[bytes], str | None] | None = None,
    ) -> bytes:
        """Send *data* and return the reply, as one timed request.

        Args:
            until: What a reply ends with.
            length: Or how long it is, in bytes.
            check: Called with the reply; what it returns, if not ``None``, is why it is a failure.
        """
        end = until if length is None else length
        return self._reply(name, self._exchange, data, end, check=check)

    def close(self, *, name: str = "close") -> None:
        """Close the connection in good order, if there is one: what was sent will arrive."""
        if self._sock is not None:
            self._timed(name, None, "", self.drop)

    def abort(self) -> None:
        """Reset the connection, if there is one: RST instead of FIN. Not a timed request."""
        sock, self._sock = self._sock, None
        self._ahead = b""
        if sock is not None:
            sock.setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))
            sock.close()

    def drop(self) -> None:
        sock, self._sock = self._sock, None
        self._ahead = b""
        if sock is not None:
            if self._target.is_secure:
                say_goodbye(sock)
            sock.close()

    def _reply(
        self,
        name: str,
        operation: Callable[..., bytes],
        *args: Any,
        check: Callable[[bytes], str | None] | None = None,
    ) -> bytes:
        """Return the reply that *operation* gets, as one timed request."""
        if self._sock is None:
            self.connect()
        user = self._user
        reply: bytes = self._timed(
            name, user.timeout, "no reply", operation, *args, whose=user.clone_of, check=check
        )
        return reply

    # -- without locust ------------------------------------------------------------------------

    def _connect(self) -> None:
        self._sock = self._open()
        self._has_clone = False

    def _send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def _exchange(self, data: bytes, end: bytes | int) -> bytes:
        self._sock.sendall(data)
        return self._receive_until(end) if isinstance(end, bytes) else self._receive(end)

    def _receive(self, length: int) -> bytes:
        parts, left = [self._ahead], length - len(self._ahead)
        while left > 0:
            part = self._sock.recv(min(left, CHUNK_BYTES))
            if not part:
                raise _cut_off(b"".join(parts), f" of {length}")
            parts.append(part)
            left -= len(part)
        had = b"".join(parts)
        self._ahead = had[length:]
        return had[:length]

    def _receive_until(self, end: bytes) -> bytes:
        had: bytes | bytearray = self._ahead
        receive, searched = self._sock.recv, 0
        while (at := had.find(end, searched)) < 0:
            if len(had) > MOST_BYTES:
                raise ConnectionError(f"no {end!r} in {MOST_BYTES} bytes")
            part = receive(CHUNK_BYTES)
            if not part:
                raise _cut_off(bytes(had), "")
            if not had:
                had = part
                continue
            searched = max(0, len(had) - len(end) + 1)
            had = bytearray(had) if isinstance(had, bytes) else had
            had += part
        at += len(end)
        self._ahead = bytes(had[at:])
        return bytes(had[:at])

    def _has_ended(self) -> bool:
        """Return True if the server has closed the connection; received data isn't lost."""
        sock = self._sock
        sock.settimeout(0)
        try:
            part = sock.recv(CHUNK_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            sock.settimeout(None)
            return False
        except OSError:
            return True
        sock.settimeout(None)
        self._ahead += part
        return not part


def _cut_off(had: bytes, of: str) -> ConnectionError:
    """Return the error of a stream that ended in the middle of a reply."""
    if not had:
        return ConnectionError("the server closed the connection without a reply")
    return ConnectionError(
        f"the server closed the connection after {len(had)}{of} bytes: {shown(had)}"
    )


def shown(data: bytes | str) -> str:
    """Return *data* as a failure shows it."""
    return repr(data) if len(data) <= SHOWN_BYTES else f"{data[:SHOWN_BYTES]!r}..."


# -- users -------------------------------------------------------------------------------------


class PatientUser(User):
    """A user that finishes its request when it is stopped.

    For any kind of client: ``class Client(PatientUser, FastHttpUser)``. Those of this package are.
    """

    abstract = True

    def stop(self, force: bool = False) -> bool:
        """Stop the user, as locust's does; a request is not cut off unless it is by *force*.

        locust's kills a user that waits between two tasks. But a kill takes a turn of the hub, and
        with no wait time the user is in its next request by then, which the server has counted.
        """
        if force or self._state != LOCUST_STATE_WAITING:
            return bool(super().stop(force))
        get_hub().loop.run_callback(self._stop_waiting)
        return False

    def _stop_waiting(self) -> None:
        """Called in the hub, where no other greenlet runs meanwhile."""
        greenlet: Any = self._greenlet
        if self._state == LOCUST_STATE_RUNNING:
            self._state = LOCUST_STATE_STOPPING
        elif self._state == LOCUST_STATE_WAITING and not greenlet.dead:
            greenlet.throw(GreenletExit)


class ConnectionUser(PatientUser):
    """The base of `TcpUser` and `WebSocketUser`."""

    abstract = True

    #: Whether a connection is for all tasks of a user. If not, each task begins without one.
    keep_alive: bool = False

    #: Seconds until a connection must stand, with its handshakes; ``None``: as long as it takes.
    connect_timeout: float | None = 5.0

    #: Seconds that each other request may take; ``None``: as long as it takes.
    timeout: float | None = 10.0

    #: For TLS; ``None``: one that verifies the server's certificate.
    ssl_context: ssl.SSLContext | None = None

    #: Whose certificate it must be; ``None``: the host's.
    server_hostname: str | None = None

    #: Whether the end of a task's connection is a request "close" in the report, too.
    report_close: bool = False

    #: How often in a row its connection was refused.
    refusals: int = 0

    client: Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # locust has no event for the end of a task.
        cls.tasks = [_to_its_end(each) for each in cls.tasks]

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        if self.host is None:
            raise StopTest(
                f"no host to connect to: give --host, or {type(self).__name__} an attribute host"
            )
        try:
            self.client = self._make_client(self.host)
        except ValueError as error:
            raise StopTest(str(error)) from error

    def _make_client(self, host: str) -> Client:
        """Return the client for *host*, and raise `ValueError` if there can't be one."""
        raise NotImplementedError  # by abc it can't be said: locust's users have a metaclass

    def clone_of(self, reply: Any) -> Told | None:
        """Return which clone gave *reply*: 3, ``"3"`` or ``b"3/4"``; ``None`` if that isn't known.

        Override it. What it returns is in the event's context: `glb_clone`, and `glb_turn`, which
        is true of the first reply on each connection that has one.
        """
        return None

    def start(self, group: Any) -> Any:
        # Tasks that it was given after its class was made.
        self.tasks = [_to_its_end(each) for each in self.tasks]
        greenlet = super().start(group)
        # Whatever its end is: also with an `on_stop` that doesn't call ours, or before it began.
        greenlet.rawlink(lambda _: self.client.drop())
        return greenlet

    def wait_after_refusal(self) -> None:
        """Wait, since no server listens: longer each time until there is one.

        In the report it is no part of a request.

        Switches:
            While waiting, as between two tasks: a user that is stopped stops at once.
        """
        seconds = min(REFUSED_SECONDS * 2.0**self.refusals, MOST_REFUSED_SECONDS)
        self.refusals = min(self.refusals + 1, 10)
        before, self._state = self._state, LOCUST_STATE_WAITING
        try:
            gevent.sleep(seconds)
        finally:
            if self._state == LOCUST_STATE_WAITING:
                self._state = before

    def on_stop(self) -> None:
        self.client.drop()

    def _break_off_task(self) -> None:
        # Not `end`, which may wait: it may be a kill that ends the task.
        if not self.keep_alive:
            self.client.drop()

    def _end_task(self) -> None:
        if self.keep_alive:
            return
        if self.report_close:
            self.client.close()
        else:
            self.client.end()


def _to_its_end(each: Any) -> Any:
    """Return *each*, a task of locust's, with a call to its user when it has ended."""
    if isinstance(each, type):
        return _with_ends(each) if issubclass(each, TaskSet) else each
    if hasattr(each, "glb_ends"):  # a base class's
        return each

    @functools.wraps(each)
    def run(user: ConnectionUser) -> None:
        try:
            each(user)
        except BaseException:
            user._break_off_task()
            raise
        user._end_task()

    run.glb_ends = True  # type: ignore[attr-defined]  # read above
    return run


@functools.cache
def _with_ends(tasks: type[TaskSet]) -> type[TaskSet]:
    """Return a set of the same tasks, which tells its user when one of them has ended."""
    if hasattr(tasks, "glb_ends"):
        return tasks

    execute: Callable[[TaskSet, Any], None] = tasks.execute_task
    make: Any = type(tasks)  # each kind of set has its own

    def execute_task(self: TaskSet, each: Any) -> None:
        if isinstance(each, type):
            execute(self, _to_its_end(each))
            return
        user: Any = self.user
        try:
            execute(self, each)
        except BaseException:
            user._break_off_task()
            raise
        user._end_task()

    made: type[TaskSet] = make(
        tasks.__name__,
        (tasks,),
        {
            "__module__": tasks.__module__,
            "__qualname__": tasks.__qualname__,
            "execute_task": execute_task,
            "glb_ends": True,
            "abstract": True,  # a Markov chain is checked only once
        },
    )
    return made


class TcpUser(ConnectionUser):
    r"""A user over TCP, TLS or a Unix socket. ``self.client`` is a `TcpClient`.

    The host is ``tcp://127.0.0.1:8000``, ``tls://[::1]:8443`` or ``unix:///run/glb.sock``.

    Example::

        class Client(TcpUser):
            host = "tcp://127.0.0.1:8000"

            @task
            def ask(self):
                self.client.connect()
                self.client.request(b"hello\n")
    """

    abstract = True

    client: TcpClient

    def _make_client(self, host: str) -> TcpClient:
        return TcpClient(self, tcp_target(host))


class EchoUser(TcpUser):
    r"""Sends a line, and expects it back: ``b"hello\n"``, or with its clone, ``b"3/4 hello\n"``.

    Two requests in the report: "connect", one a connection, and "echo". There is none for "close",
    unless `report_close`: the client waits for nothing then, so it isn't worth a third of the cost
    of locust's bookkeeping.
    """

    abstract = True

    #: One line, without its end.
    message: bytes = b"hello"

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        if b"\n" in self.message:
            raise StopTest(f"message must be one line, got {self.message!r}")
        self._line = self.message + b"\n"

    def clone_of(self, reply: bytes) -> Told | None:
        """Return what stands before the message and a space; ``None`` of a pure echo."""
        line = self._line
        if len(reply) <= len(line) + 1 or not reply.endswith(b" " + line):
            return None
        return reply[: -len(line) - 1]

    def _wrong(self, reply: bytes) -> str | None:
        line = self._line
        if reply == line or reply.endswith(b" " + line):
            return None
        return f"sent {shown(line)}, got {shown(reply)}"

    @task
    def echo(self) -> None:
        self.client.connect()
        self.client.request(self._line, name="echo", check=self._wrong)
