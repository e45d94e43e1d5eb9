"""Which clone a handler serves."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ..server import StreamServer

__all__ = ["Clone", "current_clone"]


class Clone(int):
    """One clone of a server: its index, 0 to N-1, which knows its server.

    It is a number, so that it can pick a shard or stand in a reply as it is::

        >>> clone = Clone(2, server=None)
        >>> ["a", "b", "c"][clone], f"served by {clone}"
        ('c', 'served by 2')

    but it is true even as clone 0, so that ``if glb.current_clone():`` asks whether there
    is one.

    Attributes:
        server: The `glb.server.StreamServer` (or ``WSGIServer``) it belongs to.
    """

    server: StreamServer

    def __new__(cls, index: int, server: StreamServer) -> Clone:
        clone = super().__new__(cls, index)
        clone.server = server
        return clone

    @property
    def index(self) -> int:
        """The plain index."""
        return int(self)

    def handle(self, sock: Any, *args: Any) -> None:
        """Have the server handle a connection for this clone. For accept loops, on its hub.

        All that the server does with what it accepts itself is done: *spawn* and its bound, TLS,
        the PROXY protocol, the counts, and the close. An error is reported, and pauses the server,
        as when gevent can't spawn a handler.

        Args:
            sock, args: What `glb.Listener.accept` has returned. The server closes *sock*.

        Raises:
            RuntimeError: This thread's hub is not the clone's, or the server has no such clone.

        Switches:
            While a pool for *spawn* is full; with ``spawn=None`` while the handler does. A kill
            then closes *sock*.
        """
        self.server.glb_engine.clones.handle(self, (sock, *args))

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return int.__repr__(self)

    def __repr__(self) -> str:
        return f"<clone {self} of {self.server!r}>"

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        # A copy of an environ or a log record wants the number; the server stays here.
        return (int, (int(self),))


CURRENT: Final[ContextVar[Clone | None]] = ContextVar("glb.clone", default=None)


def current_clone() -> Clone | None:
    """Return the clone whose connection the running handler serves.

    ``None`` outside of a handler, and in greenlets that a handler spawned: each greenlet
    has a context of its own (see `contextvars`), so hand the clone over as an argument.

    Switches:
        Never.
    """
    return CURRENT.get()
