"""Ports for programs that don't take port 0."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port"]

#: Below those that Linux gives to sockets that ask for any: until the program binds it, a port of
#: these would often be another's.
PORTS = range(20000, 32000)


def free_port() -> int:
    """Return a port of the loopback that is free now, and that no client gets meanwhile."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:  # it is in use
            continue
