"""Sockets that the process was started with, and words to its parent: systemd's protocols.

Sockets: ``LISTEN_FDS`` of them, from descriptor 3 on, if ``LISTEN_PID`` is this process, with names
in ``LISTEN_FDNAMES``; or ``EINHORN_FD_0`` and so on, if ``EINHORN_FD_COUNT`` says how many. They
listen already, and their accept queue is as long as it is.

Words: lines of ``NAME=value`` to the socket ``NOTIFY_SOCKET``. ``WATCHDOG_USEC`` says how often the
process is to show that it lives.

Source: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3); stripe's einhorn.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Final, NamedTuple

from ..originals import monotonic
from .sockets import send_datagram

__all__ = ["InheritedSocket", "Notifier", "take_sockets", "why_none"]

_FIRST: Final = 3
_SYSTEMD: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES")


class InheritedSocket(NamedTuple):
    """A descriptor that the process was started with, and its name; ``""`` if it has none."""

    name: str
    descriptor: int


def take_sockets(environ: MutableMapping[str, str] = os.environ) -> list[InheritedSocket]:
    """Return what the process was started with; its children's environment has nothing of them.

    Each is closed when this process runs another program. The caller owns them.

    Raises:
        ValueError: What is said of them is no number, or they are not there. The error has it.
    """
    pid = environ.get("LISTEN_PID")
    if pid is not None or "LISTEN_FDS" in environ:
        said = {name: environ.pop(name) for name in _SYSTEMD if name in environ}
        if _number("LISTEN_PID", said.get("LISTEN_PID", "")) != os.getpid():
            return []  # they were its parent's
        count = _number("LISTEN_FDS", said.get("LISTEN_FDS", ""))
        names = said.get("LISTEN_FDNAMES", "").split(":") if said.get("LISTEN_FDNAMES") else []
        if names and len(names) != count:
            raise ValueError(f"LISTEN_FDNAMES has {len(names)} names for {count} sockets")
        # Without names they are all "unknown" in systemd's words, which is no name.
        return _checked([(n, _FIRST + i) for i, n in enumerate(names or [""] * count)])
    count = _number("EINHORN_FD_COUNT", environ.pop("EINHORN_FD_COUNT", "0"))
    numbers = [(key, environ.pop(key, "")) for key in (f"EINHORN_FD_{i}" for i in range(count))]
    return _checked([("", _number(key, value)) for key, value in numbers])


def why_none(environ: Mapping[str, str] = os.environ) -> str:
    """Return why `take_sockets` is going to find none; ``""`` if it may find some."""
    pid = environ.get("LISTEN_PID")
    if pid is not None and pid != str(os.getpid()):
        return f"LISTEN_PID is {pid}, and this process is {os.getpid()}"
    if pid is None and "LISTEN_FDS" not in environ and "EINHORN_FD_COUNT" not in environ:
        return "the process was started with none"
    return ""


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return int(value)


def _checked(found: list[tuple[str, int]]) -> list[InheritedSocket]:
    for name, descriptor in found:
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            some = f"{descriptor} ({name!r})" if name else f"{descriptor}"
            raise ValueError(f"descriptor {some} was to be a socket: {error.strerror}") from None
    return [InheritedSocket(name, descriptor) for name, descriptor in found]


class Notifier:
    """Tells systemd, or whatever else set ``NOTIFY_SOCKET``, how the process is.

    Where nothing set it, nothing is sent.

    Attributes:
        watchdog_seconds: How often `alive` is to be called, in seconds: half of the time after
            which the process would be ended. ``None`` is never.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._path: Final = environ.get("NOTIFY_SOCKET", "")
        pid = environ.get("WATCHDOG_PID", "")
        microseconds = environ.get("WATCHDOG_USEC", "")
        is_ours = not pid or pid == str(os.getpid())
        self.watchdog_seconds: Final = (
            _number_or_zero(microseconds) / 2e6 or None if self._path and is_ours else None
        )

    def send(self, **fields: object) -> bool:
        """Send *fields* in one message; tell whether it was taken."""
        if not self._path:
            return False
        text = "\n".join(f"{name}={value}" for name, value in fields.items())
        try:
            send_datagram(self._path, text.encode())
        except OSError:
            return False  # it is not there any more; that is no reason to stop serving
        return True

    def ready(self, status: str) -> None:
        """Tell that it serves, and *status*, a line for its operators."""
        self.send(READY=1, STATUS=_line(status), MAINPID=os.getpid())

    def reloading(self, status: str) -> None:
        """Tell that it takes up something new; `ready` ends that."""
        self.send(RELOADING=1, MONOTONIC_USEC=int(monotonic() * 1e6), STATUS=_line(status))

    def stopping(self, status: str) -> None:
        """Tell that it is about to end."""
        self.send(STOPPING=1, STATUS=_line(status))

    def alive(self) -> None:
        """Tell that it lives."""
        self.send(WATCHDOG=1)


def _number_or_zero(value: str) -> int:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 20 else 0


def _line(text: str) -> str:
    return " ".join(text.split())
