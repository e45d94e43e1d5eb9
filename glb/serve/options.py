"""Options: what a constructor, or an attribute, sets of a server, and the checks of it.

Everything is checked before gevent's constructor, which takes the listener over and closes it when
something fails: what is refused here has touched nothing. Each option is an attribute of the
server, which a subclass or a program may set; limits are read again when the server starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ..model.forwarded import TrustedProxies
from ..model.limits import check_count, check_rate, check_seconds
from ..model.policy import Policy
from ..model.proxy_header import Version
from ..net.sockets import DEFAULT_BACKLOG, check_backlog
from .hooks import Handler
from .proxied import check_version

__all__ = ["Options"]

#: What `gevent.ssl.wrap_socket` takes beside the socket.
_OF_TLS: Final = frozenset(
    {
        "keyfile",
        "certfile",
        "cert_reqs",
        "ssl_version",
        "ca_certs",
        "ciphers",
        "server_side",
        "suppress_ragged_eofs",
        "do_handshake_on_connect",
    }
)


def _check_names(server: object, ssl_args: Mapping[str, object]) -> None:
    """Refuse arguments that *server* doesn't have.

    Gevent takes each for one of TLS, so a misspelt one would make each handshake fail. A context
    has a `wrap_socket` of its own, which takes what it takes.
    """
    unknown = [] if "ssl_context" in ssl_args else [*ssl_args.keys() - _OF_TLS]
    if not unknown:
        return
    import difflib  # noqa: PLC0415  # nothing else needs it

    name = min(unknown)
    known = inspect.signature(type(server)).parameters
    close = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {close[0]!r}?" if close else ""
    raise TypeError(f"{type(server).__name__} has no argument {name!r}{hint}")


class Options:
    """The options of `glb.server.StreamServer`, which has what each of them means."""

    clones: int = 4
    hubs: int = 1
    #: How many hubs if no number was given, and nothing else keeps them to one: a pool would.
    #: `glb.monkey.patch_all` sets it.
    hubs_if_possible: int = 1
    #: ``None`` leaves it to others that share the address.
    patience: float | None = None
    reuse_port: bool = False
    nodelay: bool = True
    # Of each limit, ``None`` is none; of each timeout, it is for ever.
    max_connections: int | None = None
    max_connections_per_clone: int | None = None
    accept_rate: float | None = None
    handshake_timeout: float | None = None
    first_byte_timeout: float | None = None
    #: Which header of the PROXY protocol a connection begins with; ``None`` is none.
    proxy_protocol: Version | None = None
    #: From which addresses and networks it may come.
    proxy_allow_ips: Iterable[str] | str = ("127.0.0.1", "::1", "unix")
    handler_factory: Callable[[int], Handler] | None = None
    #: Accepts for each clone: see `glb.serve.accept_loop`. A subclass may have it as a method.
    accept_loop: Any = None
    #: gevent's 128 overflows in the first burst.
    backlog: int = DEFAULT_BACKLOG
    #: Whether a connection is its handler's as a whole. HTTP's are made of requests.
    has_streams: bool = True

    _policy: Policy | None = None
    # Whether the numbers of clones or hubs were given to the constructor.
    _has_places: bool = False

    def _take_options(
        self,
        handle: object,
        backlog: object,
        spawn: object,
        ssl_args: Mapping[str, object],
        *,
        clones: int | None,
        hubs: int | None,
        handler_factory: Callable[[int], Handler] | None,
        policy: Policy | str | None,
        **options: Any,
    ) -> None:
        _check_names(self, ssl_args)
        if handle is not None and not callable(handle):
            raise TypeError(f"handle must be callable, got {handle!r}")
        if backlog is not None:
            check_backlog(backlog)
        check_spawn(spawn)
        for name, value in {**options, "handler_factory": handler_factory}.items():
            if value is not None:
                is_flag = name in ("reuse_port", "nodelay")
                setattr(self, name, bool(value) if is_flag else value)
        if self.handler_factory is not None:
            if not callable(self.handler_factory):
                raise TypeError(f"handler_factory must be callable, got {self.handler_factory!r}")
            if handle is not None:
                raise TypeError(f"give a handler_factory or a handler, not both: got {handle!r}")
        if spawn is None and self.proxy_protocol is not None:
            raise ValueError("proxy_protocol needs greenlets for the handlers, got spawn=None")
        if self.accept_loop is not None and not callable(self.accept_loop):
            raise TypeError(f"accept_loop must be callable, got {self.accept_loop!r}")
        if policy is not None:
            self._policy = Policy.of(policy)
        self._check_limits()
        self._take_places(spawn, clones, hubs)

    def _check_limits(self) -> None:
        for name in ("max_connections", "max_connections_per_clone"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_rate("accept_rate", self.accept_rate)
        for name in ("handshake_timeout", "first_byte_timeout"):
            check_seconds(name, getattr(self, name))
        check_version(self.proxy_protocol)
        TrustedProxies(self.proxy_allow_ips)

    def _take_places(self, spawn: object, clones: int | None, hubs: int | None) -> None:
        self._has_places = clones is not None or hubs is not None
        if hubs is not None:
            self.hubs = hubs
        elif self.hubs == 1 and not hasattr(spawn, "spawn"):
            wished = self.hubs_if_possible
            self.hubs = wished if not isinstance(clones, int) or clones >= wished else 1
        check_count("hubs", self.hubs)
        if clones is not None:
            self.clones = clones
        elif self.clones < self.hubs:
            self.clones = self.hubs
        check_seconds("patience", self.patience)


def check_spawn(spawn: object) -> None:
    """Refuse what can't run handlers.

    Raises:
        TypeError, ValueError: It is such a thing.
    """
    if isinstance(spawn, int):
        if spawn < 0:
            raise ValueError(f"spawn must be 0 handlers or more, got {spawn!r}")
    elif hasattr(spawn, "spawn"):
        if not hasattr(spawn, "_semaphore"):  # which tells gevent when there is room
            raise TypeError(f"spawn must be a gevent.pool.Pool, got {spawn!r}")
    elif spawn is not None and spawn != "default" and not callable(spawn):
        raise TypeError(f"spawn must be callable, a pool, a number or None, got {spawn!r}")
