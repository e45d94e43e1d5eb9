"""Preloading: the monkey patch of an arbiter that imports the application itself.

With ``--preload`` gunicorn imports the application once, in its arbiter, before it forks. What the
application imports must be patched by then. But the arbiter keeps its own signals and children:
gevent tells a program of a child's end when its hub turns, and the arbiter waits outside of one. A
worker that died would never be replaced (as happens to gunicorn 27 with an application that patches
while it is preloaded).

So in the arbiter ``os`` and ``signal`` are left as they are, whatever else patches there, and each
worker process patches them when it begins. gevent is asked for that by its own events. Its
``patch_all`` believes to have patched all, so that it does nothing and warns of nothing when a
program calls it again.

The list of gevent's subscribers is of the process.
"""

from __future__ import annotations

from gevent import events, monkey

__all__ = ["finish_in_worker", "patch_in_arbiter"]

_KEPT = frozenset({"os", "signal"})


def patch_in_arbiter() -> None:
    """Patch all but signals and processes, unless a program has patched already."""
    if not monkey.is_module_patched("socket"):
        events.subscribers.append(_keep)
        monkey.patch_all()


def finish_in_worker() -> None:
    """In a forked worker: patch what its arbiter has kept."""
    if _keep in events.subscribers:
        events.subscribers.remove(_keep)
        monkey.patch_os()
        monkey.patch_signal()


def _keep(event: object) -> None:
    if isinstance(event, events.GeventWillPatchModuleEvent) and event.module_name in _KEPT:
        raise events.DoNotPatch
