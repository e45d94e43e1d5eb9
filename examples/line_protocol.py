"""A protocol of lines over TCP, where each clone has a state of its own.

    glb serve line_protocol:handle --clones 4
    nc 127.0.0.1 8000

A client sets and gets words in the store of its connection's clone::

    set colour blue
    3/4 ok
    get colour
    3/4 blue

`glb.current_clone` is a number that picks the store. All of a connection's lines belong to one
clone; the next connection is the next clone's. A real program would keep in it what must not be
shared: a buffer, a counter, a connection to a shard.

`glb.idle` says when nothing is under way, so that a drain may close the connection then.
"""

from typing import Any

import glb

CLONES = 4

stores: list[dict[str, str]] = [{} for _ in range(CLONES)]


def handle(sock: Any, _address: Any) -> None:
    clone = glb.current_clone()
    assert clone is not None, "a server called this"
    store = stores[clone % CLONES]
    lines = sock.makefile("rb")
    while True:
        with glb.idle():
            line = lines.readline(1000)
        if not line:
            return
        reply = answer(store, line.decode("utf-8", "replace").split())
        sock.sendall(f"{clone}/{CLONES} {reply}\n".encode())


def answer(store: dict[str, str], words: list[str]) -> str:
    """Do what one line asks for, and return the reply."""
    match words:
        case ["set", key, value]:
            store[key] = value
            return "ok"
        case ["get", key]:
            return store.get(key, "nothing")
        case _:
            return "error: say 'set KEY VALUE' or 'get KEY'"
