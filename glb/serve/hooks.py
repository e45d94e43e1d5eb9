"""Hooks: what the engine calls on a server, and what a server's hooks ask of this thread.

The engine knows a server by the protocol `Hooks` alone. Most of that are gevent's hooks and
attributes, which programs override and set; so each is looked up at the moment of its use.

gevent's hooks have no arguments: ``do_read()`` is not given the clone that has its turn. `Turn`
keeps such things for this thread while a hook runs. Between functions of ours they are arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..accept.protocols import PendingConnection
from ..model.states import State
from ..originals import Local

if TYPE_CHECKING:
    from .hub_worker import HubWorker

__all__ = ["Handler", "Hooks", "Turn", "TurnOfThread"]

Handler = Callable[..., object]


class Hooks(Protocol):
    """A server, as the engine sees it. What isn't gevent's is in `glb.serve.options.Options`."""

    # gevent's attributes
    address: Any
    backlog: int
    delay: float
    family: int
    max_accept: int
    max_delay: float
    min_delay: float
    pool: Any
    reuse_addr: ClassVar[Any]
    socket: Any

    # ours
    accept_loop: Any
    accept_rate: float | None
    accepts_by_hook: bool
    clones: int
    first_byte_timeout: float | None
    handler_factory: Callable[[int], Handler] | None
    has_streams: bool
    hubs: int
    max_connections: int | None
    max_connections_per_clone: int | None
    nodelay: bool
    patience: float | None
    reuse_port: bool

    @property
    def loop(self) -> Any: ...
    @property
    def runs_in_hub(self) -> bool: ...

    # gevent's hooks
    def close(self) -> None: ...
    def do_close(self, *args: Any) -> object: ...
    def do_handle(self, *args: Any) -> object: ...
    def do_read(self) -> Any: ...
    def full(self) -> bool: ...
    def get_listener(self, address: Any, backlog: Any, family: Any) -> Any: ...
    def is_fatal_error(self, ex: BaseException) -> bool: ...
    def start_accepting(self) -> object: ...
    def stop_accepting(self) -> object: ...

    # ours
    def handle_by_clone(self) -> bool: ...
    def is_long_lived(self, sock: Any) -> bool: ...


class Turn:
    """What a server does at this moment."""

    #: The acceptor that has its turn.
    acceptor: Any = None
    #: A connection that was accepted for it, and is not read yet.
    handed: PendingConnection | None = None
    #: The worker of this hub, once it was opened.
    worker: HubWorker | None = None
    #: The pause for which the server stops accepting: its state, its length in seconds, and why.
    pause: tuple[State, float | None, str] | None = None
    #: The pause that ends now, by its number: see `glb.serve.admission`.
    resumed: int | None = None


class TurnOfThread(Turn, Local):
    """What a server of several hubs does in this thread."""
