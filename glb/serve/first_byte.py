"""The first byte: what a server waits for before it calls the handler of a stream.

That is TLS's handshake, and, with a ``first_byte_timeout``, something that the client says. A
connection that waits is idle meanwhile (see `glb.serve.idle`): whatever ends it, a timeout, a kill
or a drain, finds a socket that can be closed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from gevent import GreenletExit, Timeout, getcurrent

from ..model.clone import current_clone
from ..net.connection import Connection, say_goodbye, wait_for_data
from ..net.proxied import hand_header_on
from .engine import Engine
from .hooks import Handler
from .idle import IdleConnections, has_ended

__all__ = ["handle_tls", "wait_as_idle", "wait_for_first_byte"]

T = TypeVar("T")


class _LateHandshake(GreenletExit):
    """The end of a handler whose client has not shaken hands in time."""


def wait_for_first_byte(idle: IdleConnections | None, sock: Any) -> None:
    """Wait until the client of *sock* has said something.

    Raises:
        GreenletExit: It was silent for too long. gevent reports no such end of a handler.
    """
    wait_as_idle(idle, sock, functools.partial(wait_for_data, sock))


def handle_tls(
    server: Any,
    gevents_wrap: object,
    find_handle: Callable[[], Handler],
    client_socket: Any,
    args: tuple[Any, ...],
) -> object:
    """Handle a connection by TLS: as gevent's ``wrap_socket_and_handle``, with a timeout.

    Args:
        gevents_wrap: What gevent wraps sockets with. A program's own wrapper shakes hands as it
            likes.
        find_handle: Returns the handler to call, when it is to be called.
    """
    engine: Engine = server.glb_engine
    wrap, options = server.wrap_socket, {**server.ssl_args}
    is_known = wrap == gevents_wrap or _is_of_a_context(wrap)
    shakes_hands = is_known and options.pop("do_handshake_on_connect", True)
    if is_known:
        options["do_handshake_on_connect"] = False
    with wrap(client_socket, **options) as ssl_socket:
        if isinstance(client_socket, Connection):
            client_socket.secured = ssl_socket
        if server.proxy_protocol is not None:
            hand_header_on(client_socket, ssl_socket)
        if shakes_hands:
            try:
                with Timeout(server.handshake_timeout, _LateHandshake("the client was silent")):
                    wait_as_idle(engine.idle_here, ssl_socket, ssl_socket.do_handshake)
            except _LateHandshake:
                engine.count_timeout("handshake")
                raise
            except OSError as error:
                if not server.handshake_failed(ssl_socket, args[0] if args else None, error):
                    raise
                return None
        try:
            if server.first_byte_timeout is not None and server.has_streams:
                wait_for_first_byte(engine.idle_here, ssl_socket)
            return find_handle()(ssl_socket, *args)
        finally:
            if engine.is_ending(current_clone()) or has_ended(ssl_socket):
                say_goodbye(ssl_socket)


def _is_of_a_context(wrap: Any) -> bool:
    # Of another context, that is, which a program has set since: it may have a new certificate.
    from ssl import SSLContext  # noqa: PLC0415  # only servers that speak TLS need it

    return isinstance(getattr(wrap, "__self__", None), SSLContext)


def wait_as_idle(idle: IdleConnections | None, sock: Any, wait: Callable[[], T]) -> T:
    """Return what *wait* returns, and be idle until then.

    Raises:
        GreenletExit: The connection was ended meanwhile. gevent reports no such end of a handler.
    """
    if idle is None:
        return wait()
    greenlet = getcurrent()
    idle.enter(sock, greenlet, has_served=None)
    try:
        return wait()
    finally:
        is_over = idle.leave(greenlet)
        del greenlet  # or an error's traceback keeps it, and it keeps the error
        if is_over:
            raise GreenletExit("the client was silent")
