"""Users that load a server over WebSockets, by the package ``websocket`` (websocket-client).

The rules for all users are in `glb.locust.users`. Here the handshake's reply may name the clone,
too, by the header ``X-Glb-Clone``. Then it is the connection's turn.
"""

from __future__ import annotations

import functools
import struct
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import gevent
import websocket
from websocket import ABNF

from .users import Client, ConnectionUser, Target, Told, shown

__all__ = ["WebSocketClient", "WebSocketUser"]

#: The header of the handshake's reply that names the clone.
HEADER: Final = "x-glb-clone"

# At the end of a task the server has so long for its close frame; without one there is no failure.
GOODBYE_SECONDS: Final = 1.0


@functools.lru_cache(maxsize=128)  # one for all users of a class
def websocket_target(url: str) -> Target:
    """Return where `WebSocketUser.host` leads to.

    Raises:
        ValueError: It is no ``ws://host[:port][/path]``, or one of ``wss://``.

    Example:
        >>> target = websocket_target("wss://example.org/chat")
        >>> target.kind, target.name, target.port
        ('WSS', 'example.org', 443)
    """
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, a bracket that is left open
        parts, name, port = None, None, None
    if parts is None or parts.scheme not in {"ws", "wss"} or not name or port == 0:
        raise ValueError(f"host must be ws://host[:port][/path] or wss://..., got {url!r}")
    standard = 443 if parts.scheme == "wss" else 80
    return Target(url, parts.scheme.upper(), name, port or standard)


class WebSocketClient(Client):
    """A WebSocket; ``self.client`` of a `WebSocketUser`.

    All but `close` connect first if there is no connection. One greenlet may receive while another
    sends.
    """

    FAILURES: ClassVar[tuple[type[Exception], ...]] = (
        OSError,
        websocket.WebSocketException,
        UnicodeDecodeError,  # of a text that is none
    )

    _user: WebSocketUser

    def __init__(self, user: WebSocketUser, target: Target) -> None:
        super().__init__(user, target)
        self._ws: Any = None

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection. The server may have closed it already."""
        return self._ws is not None

    @property
    def headers(self) -> dict[str, str]:
        """Those of the handshake's reply, their names in lower case; of none if there is none."""
        return dict(self._ws.getheaders() or {}) if self._ws is not None else {}

    def connect(self, *, name: str = "connect") -> None:
        """Connect, with all handshakes.

        With `keep_alive` an open connection stays; without, each call makes a new one.
        """
        if self._ws is not None:
            if self._user.keep_alive:
                return
            self.end()
        self._timed(
            name,
            self._user.connect_timeout,
            "no connection",
            self._connect,
            whose=self._whose_handshake,
        )

    def send(self, message: str | bytes, *, name: str = "send") -> None:
        """Send *message*, of text or bytes."""
        if self._ws is None:
            self.connect()
        self._timed(name, self._user.timeout, "not all sent", self._send, message)

    def receive(self, *, name: str = "receive") -> str | bytes:
        """Return the next message, of text or bytes."""
        if self._ws is None:
            self.connect()
        user = self._user
        reply: str | bytes = self._timed(
            name, user.timeout, "no reply", self._receive, whose=user.clone_of
        )
        return reply

    def request(
        self, message: str | bytes, *, name: str = "request", check: Any = None
    ) -> str | bytes:
        """Send *message* and return the next one that comes, as one timed request.

        Args:
            check: Called with the reply; what it returns, if not ``None``, is why it is a failure.
        """
        if self._ws is None:
            self.connect()
        user = self._user
        reply: str | bytes = self._timed(
            name,
            user.timeout,
            "no reply",
            self._exchange,
            message,
            whose=user.clone_of,
            check=check,
        )
        return reply

    def close(self, *, name: str = "close") -> None:
        """Close the connection, if there is one, and wait until the server agrees."""
        if self._ws is not None:
            self._timed(name, self._user.timeout, "no goodbye", self._say_goodbye)

    def drop(self) -> None:
        ws, self._ws = self._ws, None
        if ws is not None:
            ws.shutdown()

    def end(self) -> None:
        if self._ws is None:
            return
        try:
            gevent.with_timeout(GOODBYE_SECONDS, self._say_goodbye, timeout_value=None)
        except self.FAILURES:
            pass  # it is as gone as it would be
        finally:
            self.drop()

    # -- without locust ------------------------------------------------------------------------

    def _connect(self) -> None:
        sock = self._open()
        # Its own way to connect knows no cached address and no time for the whole.
        ws: Any = websocket.WebSocket()
        try:
            ws.connect(
                self._target.url,
                socket=sock,
                header=dict(self._user.headers),
                subprotocols=self._user.subprotocols,
                redirect_limit=0,  # a redirect would be to a server that isn't to be loaded
            )
        except websocket.WebSocketBadStatusException as error:
            # Its own words have the whole reply in them, and are others each second.
            raise ConnectionError(f"the handshake's reply is {error.status_code}") from error
        finally:
            if not ws.connected:
                sock.close()
        self._ws = ws
        self._has_clone = False

    def _whose_handshake(self, _: None) -> Told | None:
        return self.headers.get(HEADER)

    def _send(self, message: str | bytes) -> None:
        is_text = isinstance(message, str)
        self._ws.send(message, ABNF.OPCODE_TEXT if is_text else ABNF.OPCODE_BINARY)

    def _receive(self) -> str | bytes:
        with self._ws.readlock:
            opcode, data = self._ws.recv_data()
        if opcode == ABNF.OPCODE_CLOSE:
            raise ConnectionError(f"the server closed the WebSocket{_why(data)}")
        message: bytes = data
        return message.decode() if opcode == ABNF.OPCODE_TEXT else message

    def _exchange(self, message: str | bytes) -> str | bytes:
        self._send(message)
        return self._receive()

    def _say_goodbye(self) -> None:
        # Not `WebSocket.close`: that swallows whatever is raised in it, a kill as well.
        ws = self._ws
        ws.send_close()
        while ws.recv_frame().opcode != ABNF.OPCODE_CLOSE:
            pass
        self.drop()


def _why(data: bytes) -> str:
    """Return what a close frame says."""
    if len(data) < 2:
        return ""
    (status,) = struct.unpack("!H", data[:2])
    return f": {status} {shown(data[2:].decode(errors='replace'))}"


class WebSocketUser(ConnectionUser):
    """A user over WebSockets. ``self.client`` is a `WebSocketClient`.

    The host is ``ws://127.0.0.1:8000/chat``, or one of ``wss://``. `clone_of` is given text or
    bytes, as the message is.

    Example::

        class Client(WebSocketUser):
            host = "ws://127.0.0.1:8000/"

            @task
            def ask(self):
                self.client.request("hello")
    """

    abstract = True

    #: Of the handshake, besides its own.
    headers: ClassVar[dict[str, str]] = {}

    #: Those that the user speaks, the best first; ``None``: any.
    subprotocols: ClassVar[list[str] | None] = None

    client: WebSocketClient

    def _make_client(self, host: str) -> WebSocketClient:
        return WebSocketClient(self, websocket_target(host))
