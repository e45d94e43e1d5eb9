"""Monkey patching: exact turns for programs that know nothing of glb.

Two lines on top of a program, or ``glb run`` in place of ``python``::

    import glb.monkey
    glb.monkey.patch_all()

`patch_all` is gevent's, and two things more:

* **sockets**: stream sockets with SO_REUSEPORT that listen on one address are clones of one
  kernel socket (see `glb.monkey.sockets`), and are told by pollers on their turns (see
  `glb.monkey.selectors`). Everything else is as gevent has it.
* **servers**: `gevent.server.StreamServer`, `gevent.pywsgi.WSGIServer` and `WSGIHandler` are glb's.

What is patched are methods of gevent's socket and selector, which reach every object, and names
of modules, which reach who looks them up later: so patch before anything else is imported.
"""

from __future__ import annotations

import errno
import importlib
import select
import selectors
import socket
import sys
import warnings
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, Final

import gevent.monkey
import gevent.select
import gevent.selectors
import gevent.server
import gevent.socket
from gevent.baseserver import BaseServer
from gevent.monkey import MonkeyPatchWarning
from gevent.socket import socket as GeventSocket

from ..accept import descriptor, exclusions
from ..model.limits import check_places
from ..server import StreamServer
from . import selectors as polls
from . import sockets as adopted
from .sockets import Adopted

__all__ = ["get_original", "is_patched", "patch_all", "restore"]

#: What `is_patched` can be asked for.
KINDS: Final = ("sockets", "servers")


def patch_all(
    clones: int | None = None,
    hubs: int | None = None,
    servers: bool = True,
    sockets: bool = True,
    exclude: Iterable[object] = (),
    **gevents: Any,
) -> bool:
    """Patch the standard library as gevent does, and gevent to take turns.

    Args:
        clones: How many clones gevent's servers have that aren't told, 1 or more; ``None`` is
            4, or as many as there are hubs.
        hubs: On how many hubs they live, 1 or more; ``None`` is 1. A server whose ``spawn`` is a
            pool keeps to one, since a pool belongs to one.
        servers: Put glb's servers in the place of gevent's.
        sockets: Let sockets with SO_REUSEPORT take turns.
        exclude: Addresses that are let alone, in any form of `glb.model.address.parse`; one without
            a host, ``":8000"``, is that port of every host. Servers there have one clone.
        **gevents: `gevent.monkey.patch_all`'s. Without any, what gevent has patched already is
            left as it is.

    Twice is harmless: what is new is added.

    Returns:
        Whether all was patched. ``False``, if a subscriber of gevent's events has prevented it.

    Raises:
        TypeError, ValueError, OSError: An argument has the wrong type or shape, or has a host
            that isn't known. Then nothing has changed.

    Warns:
        gevent.monkey.MonkeyPatchWarning: A module was imported before, and keeps what would have
            been patched. As gevent, for what it patches.
    """
    check_places(clones, hubs)
    if isinstance(exclude, (str, bytes)):
        raise TypeError(f"exclude must be a list of addresses, got {exclude!r}")
    excluded = exclusions.exclusions(exclude)
    late = []
    if gevents or not gevent.monkey.is_module_patched("socket"):
        late += _who_keeps(socket.socket)
        # Of a second time it tells nothing, even if somebody prevented the first.
        is_done = gevent.monkey.patch_all(**gevents) is not False
        is_wanted = gevents.get("socket", True)
        if not is_done or (is_wanted and not gevent.monkey.is_module_patched("socket")):
            return False
    exclusions.exclude(excluded)
    if sockets and not is_patched("sockets"):
        if gevent.monkey.is_module_patched("select"):
            late += _who_keeps(gevent.select.select)
            _patch_sockets()
        else:
            warnings.warn(
                "sockets with SO_REUSEPORT take no turns, as gevent has not patched select",
                MonkeyPatchWarning,
                stacklevel=2,
            )
    if servers:
        if not is_patched("servers"):
            late += _patch_servers()
        if clones is not None or hubs is not None:
            _put("servers", StreamServer, "clones", clones or max(hubs or 1, StreamServer.clones))
            _put("servers", StreamServer, "hubs_if_possible", hubs or 1)
    if late:
        warnings.warn(
            "glb.monkey.patch_all() comes too late for "
            + ", ".join(sorted({*late}))
            + ": patch before other modules are imported",
            MonkeyPatchWarning,
            stacklevel=2,
        )
    return True


def restore() -> None:
    """Undo what `patch_all` did beyond gevent's. Twice is harmless.

    Sockets that are clones, and servers that were made, stay what they are.
    """
    while _patched:
        _, where, name, original = _patched.pop()
        setattr(where, name, original)
    exclusions.exclude_nothing()


def is_patched(what: str | None = None) -> bool:
    """Tell whether ``"sockets"``, or ``"servers"``, are patched; ``None`` is anything."""
    if what is not None and what not in KINDS:
        raise ValueError(f"what must be one of {', '.join(KINDS)}, got {what!r}")
    return any(what in (None, kind) for kind, *_ in _patched)


def get_original(module: str | Sequence[str], name: str | Sequence[str]) -> Any:
    """Return what *name* of *module* was before gevent's patch and this one.

    The arguments are those of `gevent.monkey.get_original`: several names give a list.
    """
    if not isinstance(name, str):
        return [get_original(module, each) for each in name]
    if not isinstance(module, str) or not module.startswith("gevent."):
        # Of the standard library's, gevent knows what they were before its own patch.
        return gevent.monkey.get_original(module, name)  # type: ignore[arg-type]  # or several
    for _, where, patched, original in _patched:
        if isinstance(where, ModuleType) and (where.__name__, patched) == (module, name):
            return original
    return getattr(importlib.import_module(module), name)


# -- Global state: what was patched, by kind: where, which name, and what it was ------------------

_patched: Final[list[tuple[str, Any, str, Any]]] = []


def _put(kind: str, where: Any, name: str, value: Any) -> None:
    _patched.append((kind, where, name, getattr(where, name)))
    setattr(where, name, value)


# -- sockets --------------------------------------------------------------------------------------

_gevents_init: Final[Any] = GeventSocket.__init__
_gevents_bind: Final[Any] = GeventSocket.bind
_gevents_listen: Final[Any] = GeventSocket.listen
_gevents_accept: Final[Any] = GeventSocket.accept
_gevents_shutdown: Final[Any] = GeventSocket.shutdown
_gevents_dup: Final[Any] = GeventSocket.dup
_gevents_fromfd: Final[Any] = gevent.socket.fromfd


def _init(
    self: Any,
    family: int = -1,
    type: int = -1,  # noqa: A002  # the standard library's name
    proto: int = -1,
    fileno: int | None = None,
) -> None:
    _gevents_init(self, family, type, proto, fileno)
    if fileno is not None:
        adopted.made(self, fileno)


def _bind(self: Any, address: Any) -> None:
    try:
        _gevents_bind(self, address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not adopted.bind(self, address):
            raise
        _meet_clones()


def _listen(self: Any, *args: Any) -> None:
    if adopted.listen(self, *args):
        _meet_clones()
    else:
        _gevents_listen(self, *args)


def _meet_clones() -> None:
    # What each connection goes through is patched with the first clone: without SO_REUSEPORT a
    # program never pays for it.
    if is_patched("sockets") and GeventSocket.accept is _gevents_accept:
        _put("sockets", GeventSocket, "__init__", _init)
        _put("sockets", GeventSocket, "accept", _accept)
        _put("sockets", GeventSocket, "shutdown", _shutdown)


def _accept(self: Any) -> Any:
    plain = self._sock
    if isinstance(plain, Adopted):
        return adopted.accept(self, plain)
    return _gevents_accept(self)


def _dup(self: Any) -> Any:
    plain = self._sock
    if isinstance(plain, Adopted):
        return adopted.duplicate(self, plain)
    return _gevents_dup(self)


def _shutdown(self: Any, how: Any) -> None:
    plain = self._sock
    if isinstance(plain, Adopted):
        adopted.shutdown(self, plain, how)
    else:
        _gevents_shutdown(self, how)


def _fromfd(fd: int, family: int, type: int, proto: int = 0) -> Any:  # noqa: A002  # as above
    """Return a socket object from a duplicate of a descriptor; see `socket.fromfd`."""
    sock = _gevents_fromfd(fd, family, type, proto)
    clone = descriptor.find(fd)
    if clone is not None:
        adopted.join(sock, clone)
    return sock


def _select(_self: Any, *args: Any, **options: Any) -> Any:
    return polls.select(*args, **options)


_select._gevent_monkey = True  # type: ignore[attr-defined]  # gevent's mark, which its tests look for


def _patch_sockets() -> None:
    _put("sockets", GeventSocket, "bind", _bind)
    _put("sockets", GeventSocket, "listen", _listen)
    _put("sockets", GeventSocket, "dup", _dup)
    if adopted.has_been():
        _meet_clones()  # from before a `restore`
    _put("sockets", gevent.select.poll, "poll", polls.poll)
    _put("sockets", gevent.selectors.GeventSelector, "select", polls.select_of_selector)
    _put("sockets", BaseServer, "start_accepting", polls.start_accepting)
    # The standard library's, if gevent has patched them.
    for name, original, ours, modules in (
        ("select", gevent.select.select, polls.select, (gevent.select, select)),
        ("fromfd", _gevents_fromfd, _fromfd, (gevent.socket, socket)),
    ):
        for module in modules:
            if getattr(module, name) is original:
                _put("sockets", module, name, ours)
    if hasattr(getattr(selectors.SelectSelector, "_select", None), "_gevent_monkey"):
        _put("sockets", selectors.SelectSelector, "_select", _select)


# -- servers --------------------------------------------------------------------------------------


def _patch_servers() -> list[str]:
    # These import ssl, which must come after gevent's patch.
    import gevent.pywsgi  # noqa: PLC0415

    from ..pywsgi import WSGIHandler, WSGIServer  # noqa: PLC0415

    originals = (gevent.server.StreamServer, gevent.pywsgi.WSGIServer, gevent.pywsgi.WSGIHandler)
    late = _who_keeps(*originals)
    _put("servers", gevent.server, "StreamServer", StreamServer)
    _put("servers", gevent.pywsgi, "WSGIServer", WSGIServer)
    _put("servers", gevent.pywsgi, "WSGIHandler", WSGIHandler)
    return late


# -- who comes too late ---------------------------------------------------------------------------

#: Modules that keep the original on purpose.
OURS: Final = ("gevent", "glb", "select", "socket", "ssl")


def _who_keeps(*originals: Any) -> list[str]:
    """Return which modules have one of *originals* under a name of their own."""
    found = []
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] in OURS or not isinstance(module, ModuleType):
            continue
        for attribute, value in [*vars(module).items()]:
            if any(value is original for original in originals):
                found.append(f"{name}.{attribute}")
    return found
