"""Monkey patching: exact turns for programs that know nothing of glb.

Two lines on top of a program, or ``glb run`` in place of ``python``::

    import glb.monkey
    glb.monkey.patch_all()

`patch_all` is gevent's, and two things more:

* **sockets**: stream sockets with SO_REUSEPORT that listen on one address are clones of one
  kernel socket (see `glb.monkey.sockets`), and selectors show each as readable on its turn (see
  `glb.monkey.selectors`). Everything else is as gevent has it.
* **servers**: `gevent.server.StreamServer`, `gevent.pywsgi.WSGIServer` and `WSGIHandler` are glb's.

It replaces methods of gevent's socket and selector, which reaches every object, and names in
modules, which reaches later imports only: so patch before anything else is imported.
"""

from __future__ import annotations

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

from ..accept import exclusions
from ..model.limits import check_places
from ..server import StreamServer
from . import selectors as our_selectors
from . import sockets as shared_sockets

__all__ = ["get_original", "is_patched", "patch_all", "restore"]

#: The arguments of `is_patched`.
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
        clones: How many clones a server has that doesn't say so itself, 1 or more; ``None`` is
            4, or as many as there are hubs.
        hubs: On how many hubs they live, 1 or more; ``None`` is 1. A server whose ``spawn`` is a
            pool keeps to one, since a pool belongs to one.
        servers: Replace gevent's servers by glb's.
        sockets: Let sockets with SO_REUSEPORT take turns.
        exclude: Addresses to leave alone, in any form of `glb.model.address.parse`; one without
            a host, ``":8000"``, is that port of every host. Servers there have one clone.
        **gevents: Arguments of `gevent.monkey.patch_all`. Without any, what gevent has patched
            already stays as it is.

    A second call is harmless: it adds what is new.

    Returns:
        True if all was patched; ``False`` if a subscriber of gevent's events has vetoed it.

    Raises:
        TypeError, ValueError, OSError: An argument has the wrong type or shape, or has an unknown
            host. Then nothing has changed.

    Warns:
        gevent.monkey.MonkeyPatchWarning: An earlier import keeps a reference to an original.
            gevent warns of its own.
    """
    check_places(clones, hubs)
    if isinstance(exclude, (str, bytes)):
        raise TypeError(f"exclude must be a list of addresses, got {exclude!r}")
    excluded = exclusions.exclusions(exclude)
    late = []
    if gevents or not gevent.monkey.is_module_patched("socket"):
        late += _find_late_modules(socket.socket)
        # gevent reports no veto on a repeated call.
        is_done = gevent.monkey.patch_all(**gevents) is not False
        is_wanted = gevents.get("socket", True)
        if not is_done or (is_wanted and not gevent.monkey.is_module_patched("socket")):
            return False
    exclusions.exclude(excluded)
    if sockets and not is_patched("sockets"):
        if gevent.monkey.is_module_patched("select"):
            late += _find_late_modules(gevent.select.select)
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

    Existing clones and servers stay what they are.
    """
    while _patched:
        _, where, name, original = _patched.pop()
        setattr(where, name, original)
    exclusions.exclude_nothing()


def is_patched(what: str | None = None) -> bool:
    """Return True if ``"sockets"``, or ``"servers"``, are patched; ``None`` is either."""
    if what is not None and what not in KINDS:
        raise ValueError(f"what must be one of {', '.join(KINDS)}, got {what!r}")
    return any(what in (None, kind) for kind, *_ in _patched)


def get_original(module: str | Sequence[str], name: str | Sequence[str]) -> Any:
    """Return the original *name* of *module*, before gevent's patch and this one.

    The arguments are those of `gevent.monkey.get_original`: several names give a list.
    """
    if not isinstance(name, str):
        return [get_original(module, each) for each in name]
    if not isinstance(module, str) or not module.startswith("gevent."):
        # gevent keeps the standard library's originals.
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


def _select(_self: Any, *args: Any, **options: Any) -> Any:
    return our_selectors.select(*args, **options)


_select._gevent_monkey = True  # type: ignore[attr-defined]  # gevent's mark, which its tests look for


def _patch_sockets() -> None:
    _put("sockets", GeventSocket, "bind", shared_sockets.bind)
    _put("sockets", GeventSocket, "listen", shared_sockets.listen)
    _put("sockets", GeventSocket, "dup", shared_sockets.dup)
    shared_sockets.when_shared(_patch_connections)
    _put("sockets", gevent.select.poll, "poll", our_selectors.poll)
    _put("sockets", gevent.selectors.GeventSelector, "select", our_selectors.select_of_selector)
    _put("sockets", BaseServer, "start_accepting", our_selectors.start_accepting)
    # The standard library's, if gevent has patched them.
    for name, original, ours, modules in (
        ("select", gevent.select.select, our_selectors.select, (gevent.select, select)),
        ("fromfd", shared_sockets.gevents_fromfd, shared_sockets.fromfd, (gevent.socket, socket)),
    ):
        for module in modules:
            if getattr(module, name) is original:
                _put("sockets", module, name, ours)
    if hasattr(getattr(selectors.SelectSelector, "_select", None), "_gevent_monkey"):
        _put("sockets", selectors.SelectSelector, "_select", _select)


def _patch_connections() -> None:
    # What each connection goes through is patched with the first clone, so that a program without
    # SO_REUSEPORT never pays for it.
    if is_patched("sockets"):
        _put("sockets", GeventSocket, "__init__", shared_sockets.init)
        _put("sockets", GeventSocket, "accept", shared_sockets.accept)
        _put("sockets", GeventSocket, "shutdown", shared_sockets.shutdown)


# -- servers --------------------------------------------------------------------------------------


def _patch_servers() -> list[str]:
    # These import ssl, which must come after gevent's patch.
    import gevent.pywsgi  # noqa: PLC0415

    from ..pywsgi import WSGIHandler, WSGIServer  # noqa: PLC0415

    originals = (gevent.server.StreamServer, gevent.pywsgi.WSGIServer, gevent.pywsgi.WSGIHandler)
    late = _find_late_modules(*originals)
    _put("servers", gevent.server, "StreamServer", StreamServer)
    _put("servers", gevent.pywsgi, "WSGIServer", WSGIServer)
    _put("servers", gevent.pywsgi, "WSGIHandler", WSGIHandler)
    return late


# -- imports that came too early ------------------------------------------------------------------

#: Modules that keep originals on purpose.
OURS: Final = ("gevent", "glb", "select", "socket", "ssl")


def _find_late_modules(*originals: Any) -> list[str]:
    """Return the names in other modules that refer to one of *originals*."""
    found = []
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] in OURS or not isinstance(module, ModuleType):
            continue
        for attribute, value in [*vars(module).items()]:
            if any(value is original for original in originals):
                found.append(f"{name}.{attribute}")
    return found
