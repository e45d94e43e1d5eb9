"""Reports: what the log says when the kernel has no room for another connection."""

from __future__ import annotations

import functools
import logging
from typing import Any, Final

from ..hubs.threads import call_where_it_may_switch
from ..net.fd_leaks import describe
from .registry import Entry, Registry

__all__ = ["count_connections", "report"]

log: Final = logging.getLogger("glb")


def report(entry: Entry, context: object, error: BaseException, delay: float) -> None:
    """Write one line: *entry* can't accept, for *context*, and tries again in *delay* seconds."""
    with entry.registry.reserve.lend():  # it reads a file
        found = _describe(entry, context, error)
    write = functools.partial(_write, entry, str(context), str(error), max(delay, 0), found)
    call_where_it_may_switch(write)


def _write(entry: Entry, context: str, error: str, delay: float, found: str) -> None:
    # A log handler may have a file to open.
    with entry.registry.reserve.lend():
        log.error(
            "%s can't accept: %s; clients wait in the accept queue, trying again in %g s%s",
            context,
            error,
            delay,
            found and f"; {found}",
        )


def _describe(entry: Entry, context: object, error: BaseException) -> str:
    # A program that accepts by a plain listener has handlers that can't be counted here.
    is_server = hasattr(type(context), "active")
    count = functools.partial(count_connections, entry.registry) if is_server else lambda: None
    # Descriptor numbers are given lowest first: so many were open when it was bound.
    return describe(error, count, entry.pristine.fileno())


def count_connections(registry: Registry) -> int | None:
    """Return how many connections handlers have, of all servers that are open here.

    A server that drains, or whose clones are all paused, isn't found. Its handler greenlets are,
    while another server is open on their hub. ``None`` without a server.
    """
    with registry.lock:
        dispatchers: list[Any] = [
            each for entry in registry for each in entry.turns.dispatchers.values()
        ]
        teams = [team for each in dispatchers for team in each.servers]
        first = [next(iter(team.line), None) for team in teams]
        servers = {id(member.context): member.context for member in first if member is not None}
    if not teams:
        return None
    hubs = {id(each.handlers): each.handlers for each in dispatchers}
    running = sum(len(each.all) - len(each) + len(each.jobs) for each in hubs.values())
    return max(running, sum(getattr(server, "active", 0) for server in servers.values()))
