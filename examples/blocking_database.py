"""Blocking database calls on hubs, with a connection for each hub.

    glb serve blocking_database:application --clones 8 --hubs 4
    curl http://127.0.0.1:8000/

sqlite3 waits in C, where gevent can't see it: a query stops its hub. The other hubs go on, as
sqlite3 releases the GIL while it waits, and connections that come meanwhile go to them.

A driver's connection belongs to one thread, and a hub is a thread. So each hub has its own: the
first request on a hub opens it. A query never lets another greenlet run, so that one connection a
hub is enough. With a driver that gevent does patch (PyMySQL, pg8000), greenlets of a hub wait side
by side: there make it a pool a hub, a `gevent.queue.LifoQueue` of connections.
"""

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import gevent

#: A counter in a file, for all hubs.
DATABASE = os.environ.get("COUNTER", os.path.join(tempfile.gettempdir(), "glb-counter.db"))

_connections: WeakKeyDictionary[Any, sqlite3.Connection] = WeakKeyDictionary()


def connection() -> sqlite3.Connection:
    """Return the connection of the hub that runs this."""
    hub = gevent.get_hub()
    found = _connections.get(hub)
    if found is None:
        found = sqlite3.connect(DATABASE, timeout=10, isolation_level=None)
        found.execute("CREATE TABLE IF NOT EXISTS visits (hub INTEGER)")
        _connections[hub] = found
    return found


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    clone = environ["glb.clone"]
    hub = clone % clone.server.hubs
    database = connection()
    database.execute("INSERT INTO visits VALUES (?)", (hub,))  # waits for the lock of the file
    (visits,) = database.execute("SELECT count(*) FROM visits").fetchone()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"visit {visits}, on hub {hub}\n".encode()]
