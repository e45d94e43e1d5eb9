"""``glb top``: the clones of servers that another process has, live, as its administration tells.

It asks for ``/clones``, and shows the numbers as they come. What comes is another program's: it is
checked, and no control character of it reaches the terminal.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console
from rich.live import Live

from ..model.address import Address, parse
from . import console
from .clone_table import picture
from .settings import ABOVE_ZERO

__all__ = ["Source", "UnreadableError", "top"]

# An administration answers from a thread of its own: one that takes longer is not there.
ANSWER_SECONDS: Final = 3.0

# 10,000 clones are 3 MB.
MOST_BYTES: Final = 16 * 1024 * 1024

#: Of a terminal whose keys aren't read, Ctrl-C comes as a signal, and else as one of these.
ENDS: Final = {b"q", b"Q", b"\x03", b"\x04"}

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
        """Return what ``/clones`` tells of each server.

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
        except (http.client.HTTPException, ValueError, TypeError, LookupError) as error:
            what = _printable(console.one_line(error))
            raise UnreadableError(f"{self.where} is no administration of glb: {what}") from error
        finally:
            client.close()


class _Client(http.client.HTTPConnection):
    def __init__(self, address: Address) -> None:
        super().__init__("glb", timeout=ANSWER_SECONDS)
        self._address = address

    def connect(self) -> None:
        sock = self.sock = socket.socket(self._address.family)
        sock.settimeout(ANSWER_SECONDS)
        sock.connect(self._address.sockaddr)


def _checked(found: Any) -> Sequence[Mapping[str, Any]]:
    """Return what is shown of *found*, with each value of its type."""
    return [_server(each) for each in found["servers"]]


def _server(found: Any) -> Mapping[str, Any]:
    queue = found["accept_queue"]
    return {
        "address": _printable(found["address"]),
        "shown_state": _printable(found["shown_state"]),
        "accept_queue": queue and {name: int(queue[name]) for name in ("depth", "limit")},
        "hubs": [
            {
                "index": int(each["index"]),
                "lag_seconds": float(each["lag_seconds"]),
                "stalled_at": _printable(each["stalled_at"]),
            }
            for each in found["hubs"]
        ],
        "clones": [
            {name: _number(each[name]) for name in _NUMBERS}
            | {
                "shown_state": _printable(each["shown_state"]),
                "passed_over": {
                    _printable(why): int(turns) for why, turns in each["passed_over"].items()
                },
            }
            for each in found["clones"]
        ],
    }


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return value


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)


class _Rates:
    """Connections a second, between two answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock: Final = clock
        self._last: dict[str, int] = {}
        self._at = 0.0

    def of(self, servers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return each server's, by its address; those that are seen twice have one."""
        now = self._clock()
        passed, self._at = now - self._at, now
        counts = {
            each["address"]: sum(clone["accepted"] for clone in each["clones"]) for each in servers
        }
        last, self._last = self._last, counts
        return {
            address: max(0, count - last[address]) / passed
            for address, count in counts.items()
            if address in last and passed > 0
        }


@click.command(epilog="Example: glb top 127.0.0.1:9000")
@click.argument("address")
@click.option(
    "--interval",
    type=ABOVE_ZERO,
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.pass_context
def top(context: click.Context, address: str, interval: float) -> None:
    """Show the clones of a server that runs, live.

    ADDRESS is that of 'glb serve --admin', or of a program's glb.admin.Admin: host:port or
    unix:/path. The keys q and Ctrl-C end it. Where stdout is no terminal it is printed once.

    The status is 1 if there is no answer, or none any more.
    """
    try:
        source = Source(address)
    except (OSError, ValueError) as error:
        raise click.UsageError(str(getattr(error, "strerror", None) or error)) from error
    out = console.make_console()
    try:
        servers = source.read()
        if console.is_live(out):
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it is to end
                _show(source, servers, out, interval)
        else:
            out.print(picture(servers, title_of(source), "", (out.width, sys.maxsize)))
    except UnreadableError as error:
        click.echo(f"glb: {error}", err=True)
        context.exit(1)


def title_of(source: Source) -> str:
    """Return the first line of the picture."""
    return f"glb top {source.where}"


def _show(
    source: Source, servers: Sequence[Mapping[str, Any]], out: Console, interval: float
) -> None:
    rates = _Rates(time.monotonic)
    with _keys() as wait, Live(console=out, screen=True, auto_refresh=False) as screen:
        while True:
            note = f"{time.strftime('%H:%M:%S')}  q ends it"
            seen = picture(servers, title_of(source), note, out.size, rates.of(servers))
            screen.update(seen, refresh=True)
            if wait(interval) in ENDS:
                return
            servers = source.read()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bytes]]:
    """Yield a function that waits for a key, at most so many seconds; ``b""`` is none."""
    import termios  # noqa: PLC0415  # where there is no terminal, there may be no such module
    import tty  # noqa: PLC0415  # as above

    if not sys.stdin.isatty():
        yield _without_keys
        return
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def wait(seconds: float) -> bytes:
        ready, _, _ = select.select([stdin], [], [], seconds)
        # At its end a terminal that was closed is ready, and has nothing.
        return (os.read(stdin, 1) or b"q") if ready else b""

    tty.setcbreak(stdin)
    try:
        yield wait
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _without_keys(seconds: float) -> bytes:
    time.sleep(seconds)
    return b""
