"""Where ``glb top`` reads: the administration of another process, by its ``/clones``.

The answer is another program's, so it is checked, and its control characters are replaced.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..model.address import Address, parse
from . import console

__all__ = ["Source", "UnreadableError"]

# An administration answers from a thread of its own, within milliseconds.
ANSWER_SECONDS: Final = 3.0

# 10,000 clones are 3 MB.
MOST_BYTES: Final = 16 * 1024 * 1024

# What counts connections stays far below, and what is larger may be shown by no float.
_MOST: Final = 2**60

_NUMBERS: Final = ("index", "hub", "accepted", "active", "completed", "failed", "stalled_seconds")


class UnreadableError(Exception):
    """There is no answer, or none of an administration's. The text says why, in a line."""


class Source:
    """Where the clones are read.

    Args:
        where: The address of an administration: ``host:port``, ``unix:/path``, or its URL.

    Raises:
        ValueError, OSError: It is no address.
    """

    def __init__(self, where: str) -> None:
        self.where: Final = where
        self._address: Final[Address] = parse(where.removeprefix("http://").removesuffix("/"))

    def read(self) -> Sequence[Mapping[str, Any]]:
        """Return what ``/clones`` has of each server.

        Raises:
            UnreadableError: There is no such answer.
        """
        client = _Client(self._address)
        try:
            client.request("GET", "/clones")
            reply = client.getresponse()
            body = reply.read(MOST_BYTES + 1)
            if reply.status != http.client.OK or len(body) > MOST_BYTES:
                raise ValueError(f"{reply.status} {reply.reason}")
            return _checked(json.loads(body))
        except OSError as error:
            why = error.strerror or str(error)
            raise UnreadableError(f"can't read {self.where}: {console.one_line(why)}") from error
        except (
            http.client.HTTPException,
            ValueError,
            TypeError,
            LookupError,
            RecursionError,  # of JSON that is nested too deeply
        ) as error:
            what = _printable(console.one_line(error))
            raise UnreadableError(f"{self.where} is no administration of glb: {what}") from error
        finally:
            client.close()


class _Client(http.client.HTTPConnection):
    def __init__(self, address: Address) -> None:
        super().__init__("glb", timeout=ANSWER_SECONDS)
        self._address = address

    def connect(self) -> None:
        port = self._address.port
        if port is not None and self._address.sockaddr[0] in {"", "::", "0.0.0.0"}:
            # A port alone. An administration is mostly on the loopback interface, of either kind.
            self.sock = socket.create_connection(("localhost", port), ANSWER_SECONDS)
            return
        sock = self.sock = socket.socket(self._address.family)
        sock.settimeout(ANSWER_SECONDS)
        sock.connect(self._address.sockaddr)


def _checked(found: Any) -> Sequence[Mapping[str, Any]]:
    """Return what is shown of *found*, with each value of its type."""
    return [_server(each) for each in found["servers"]]


def _server(found: Any) -> Mapping[str, Any]:
    queue = found["accept_queue"]
    if not found["clones"]:
        raise ValueError(f"a server has one clone or more, got {found['clones']!r}")
    return {
        "address": _printable(found["address"]),
        "shown_state": _printable(found["shown_state"]),
        "accept_queue": queue and {name: _number(queue[name]) for name in ("depth", "limit")},
        "hubs": [
            {
                "index": _number(each["index"]),
                "lag_seconds": _number(each["lag_seconds"]),
                "stalled_at": _printable(each["stalled_at"]),
            }
            for each in found["hubs"]
        ],
        "clones": [
            {name: _number(each[name]) for name in _NUMBERS}
            | {
                "shown_state": _printable(each["shown_state"]),
                "passed_over": {
                    _printable(why): _number(turns)
                    for why, turns in dict(each["passed_over"]).items()
                },
            }
            for each in found["clones"]
        ],
    }


def _number(value: Any) -> float:
    # A float that is no number is not less than another.
    if not (isinstance(value, (int, float)) and abs(value) < _MOST):
        raise TypeError(f"{ascii(value)[:100]} is no number that is shown")
    return value


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)
