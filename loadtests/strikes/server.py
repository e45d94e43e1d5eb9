"""The servers' process: ``python -m loadtests.strikes.server SERVER HUBS WHERE TOLD``.

It prints the ports, by kind, as JSON. After a line it prints another one, and signals may strike,
until the last one; each writes a byte to the descriptor *TOLD*. Then it stops, and prints what was
found.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import gevent
import gevent.pywsgi
import gevent.server
from gevent import get_hub
from gevent.exceptions import InvalidSwitchError
from gevent.hub import Hub

import glb
import glb.pywsgi
import glb.server
from glb.accept.registry import REGISTRY

from .words import TOKEN_LENGTH, Kind

__all__ = ["LAST_SIGNAL", "SIGNALS"]

#: What strikes.
SIGNALS: Final = (signal.SIGUSR1, signal.SIGALRM)
#: When it has come, no more do. It may have to be sent again.
LAST_SIGNAL: Final = signal.SIGTERM

LOCAL: Final = ("127.0.0.1", 0)
CLONES: Final = 8

#: What isn't so after as many seconds won't be.
REST_SECONDS: Final = 10.0

#: What `Sentinels` have open at a time: about as many as there are connections.
SENTINELS: Final = 16

_HOME: Final = os.path.dirname(glb.__file__) + os.sep
_GEVENT: Final = os.path.dirname(gevent.__file__) + os.sep
#: gevent's loop on libuv is Python, and what strikes there may wedge it: with gevent's own servers
#: as with glb's. That on libev is C, where no signal handler runs.
_LOOPS: Final = (f"{_GEVENT}_ffi{os.sep}", f"{_GEVENT}libuv{os.sep}")

#: Where a signal is seen while nothing runs, on libev and on libuv.
_IN_LOOP: Final = (("hub.py", "run"), ("loop.py", "python_check_callback"))

#: Of ours what a signal handler runs, which the next signal may strike.
_HANDLERS: Final = ("_strike", "_strike_the_last_time", "_is_in_loop", "_lines")

#: When what would have struck the loop tries again.
AGAIN_SECONDS: Final = 0.0002


class StruckError(Exception):
    """What strikes."""


class OverError(BaseException):
    """The last strike. The main greenlet gets it, if the hub has nothing else to do."""


class Strikes:
    """Raises in signal handlers, and counts where.

    Args:
        told: A descriptor that gets a byte with each.
        is_anywhere: Also in the Python code of gevent's loop.
    """

    def __init__(self, told: int, is_anywhere: bool) -> None:
        self._told: Final = told
        self._is_anywhere: Final = is_anywhere
        #: How often it was the loop's turn, and it was spared.
        self.spared = 0
        self.where: Counter[str] = Counter()
        #: One after another: the line that was struck, and what had called it.
        self.lines: list[str] = []
        #: What reached the main greenlet: gevent gives it what strikes the loop itself.
        self.caught: Counter[str] = Counter()

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._strike)
        signal.signal(LAST_SIGNAL, self._strike_the_last_time)

    def _strike_the_last_time(self, _number: int, frame: Any) -> None:
        if self._is_anywhere or not _is_in_loop(frame):
            raise OverError

    def _strike(self, _number: int, frame: Any) -> None:
        if not self._is_anywhere and _is_in_loop(frame):
            self.spared += 1
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
            return
        name = frame.f_code.co_filename
        place = "a program" if name == __file__ else "Python"
        for home, what in ((_HOME, "glb"), (_GEVENT, "gevent")):
            if name.startswith(home):
                place = what
        if (os.path.basename(name), frame.f_code.co_name) in _IN_LOOP:
            place = "the loop"
        self.where[place] += 1
        self.lines.append(" < ".join(_lines(frame)))
        os.write(self._told, b"!")
        raise StruckError


def _is_in_loop(frame: Any) -> bool:
    if frame.f_code.co_name == "python_check_callback":
        return False  # where gevent looks for signals, and gives the main greenlet what they raise
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_LOOPS):
            return True
        is_ours = name == __file__ and frame.f_code.co_name not in _HANDLERS
        if is_ours or name.startswith(_HOME):
            return False
        frame = frame.f_back
    return False


def _lines(frame: Any) -> Iterator[str]:
    for _ in range(6):
        if frame is None:
            return
        code = frame.f_code
        yield f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back


# Python's file of a socket was struck in its constructor, before it had the socket: when it is
# freed, Python's own close() says so.
HALF_MADE: Final = "'SocketIO' object has no attribute '_sock'"


class Reports:
    """What gevent and Python report in place of raising it."""

    def __init__(self, strikes: Strikes) -> None:
        self._strikes: Final = strikes
        self.counts: Counter[str] = Counter()

    def install(self) -> None:
        hub: Any = Hub
        hub.print_exception = lambda _, _context, *error: self._add(*error[:2])
        sys.unraisablehook = lambda found: self._add(found.exc_type, found.exc_value)
        threading.excepthook = lambda found: self._add(found.exc_type, found.exc_value)

    def _add(self, kind: Any, value: Any) -> None:
        if kind is not None and issubclass(kind, (StruckError, OverError)):
            self.counts["struck"] += 1
            return
        if kind is AttributeError and str(value) == HALF_MADE:
            self.counts["struck"] += 1
            return
        lines = traceback.extract_tb(getattr(value, "__traceback__", None))[-4:]
        where = [f"{os.path.basename(each.filename)}:{each.lineno}" for each in lines]
        after = len(self._strikes.lines)
        self.counts[f"{kind!r}: {value} at {' > '.join(where)}, after {after} signals"] += 1


class Sentinels:
    """A native thread that opens files and closes them, and looks whether they stay its own.

    A descriptor that glb closes twice, or keeps as its own, is sooner or later one of these.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over = True
        self._thread.join()

    def _run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for index in range(SENTINELS):
                name = os.path.join(folder, str(index))
                number = os.open(name, os.O_CREAT | os.O_RDWR)
                files.append((name, number, os.fstat(number).st_ino))
            turn = 0
            while not self._is_over:
                time.sleep(0.0005)
                name, number, node = files[turn % SENTINELS]
                self._close(number, node)
                files[turn % SENTINELS] = name, os.open(name, os.O_RDWR), node
                turn += 1
            for _, number, node in files:
                self._close(number, node)

    def _close(self, number: int, node: int) -> None:
        try:
            found = os.fstat(number).st_ino
            if found == node:
                os.close(number)
                return
            self.faults.append(f"descriptor {number} is {found}, and not {node}, which it was")
        except OSError as error:
            self.faults.append(f"descriptor {number} was closed: {error}")


# -- servers ------------------------------------------------------------------------------------


def work() -> None:
    """Have it take a while, so that signals strike here as well."""
    for _ in range(2000):
        pass


def echo(sock: Any, _peer: Any) -> None:
    while data := sock.recv(TOKEN_LENGTH):
        work()
        if data[-2] % 2:
            gevent.sleep(0.001)
        sock.sendall(data)


def application(environ: Any, start_response: Any) -> list[bytes]:
    token = environ["PATH_INFO"][1:].encode()
    work()
    if token[-2] % 2:
        gevent.sleep(0.001)
    start_response("200 OK", [("Content-Length", str(len(token)))])
    return [token]


def make(kind: Kind, server: str, hubs: int) -> Any:
    options = {"hubs": hubs, "clones": CLONES} if server == "glb" else {}
    if kind is Kind.STREAM:
        module: Any = glb.server if server == "glb" else gevent.server
        return module.StreamServer(LOCAL, echo, **options)
    module = glb.pywsgi if server == "glb" else gevent.pywsgi
    return module.WSGIServer(LOCAL, application, log=None, error_log=None, **options)


# -- a run --------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_for_line() -> None:
    while not select.select([0], [], [], 0)[0]:
        gevent.sleep(0.005)
    sys.stdin.readline()


def serve(strikes: Strikes) -> None:
    """Return when the last signal has come, whatever strikes."""
    while True:
        # Twice, as one may strike where the first is caught, and none follows at once. Not all are
        # what struck: on libuv gevent switches to a greenlet whose watcher was struck.
        try:
            while True:
                try:
                    gevent.sleep(3600)
                except Exception as error:
                    strikes.caught[type(error).__name__] += 1
        except OverError:
            for number in (LAST_SIGNAL, *SIGNALS):
                signal.signal(number, signal.SIG_IGN)
            return
        except Exception as error:
            strikes.caught[type(error).__name__] += 1


def what_is_left(servers: list[Any], before: int) -> dict[str, object]:
    """Return what is not as it should be when no client is there."""
    gc.collect()
    found: dict[str, object] = {"descriptors": max(0, descriptors() - before)}
    for server in servers:
        if isinstance(server, glb.server.StreamServer):
            stats = server.clone_stats()
            name = type(server).__name__
            found |= {
                f"{name}: active": server.active,
                f"{name}: active of clones": sum(each.active for each in stats),
                f"{name}: load": sum(each.load for each in server.glb_engine.clones.acceptors),
                f"{name}: expected": server.glb_engine.admission.expected,
            }
    return {what: count for what, count in found.items() if count}


def what_has_not_ended(greenlet: Any) -> dict[str, object]:
    return {} if greenlet.ready() else {"running": greenlet}


def pause() -> None:
    try:
        gevent.sleep(0.05)
    except InvalidSwitchError:
        pass  # gevent has a switch left from what struck the loop


def wait_for_nothing(look: Callable[[], dict[str, object]]) -> list[str]:
    until = time.monotonic() + REST_SECONDS
    while (found := look()) and time.monotonic() < until:
        pause()
    return [f"{what} left: {count}" for what, count in found.items()]


def main(server: str, hubs: str, where: str, told: str) -> None:
    strikes, sentinels = Strikes(int(told), where == "anywhere"), Sentinels()
    reports = Reports(strikes)
    servers = [make(kind, server, int(hubs)) for kind in Kind]
    for each in servers:
        each.start()
    ports = {kind: each.server_port for kind, each in zip(Kind, servers, strict=True)}
    reports.install()
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    wait_for_line()  # the first clients come and go, before anything strikes
    faults = wait_for_nothing(lambda: what_is_left(servers, descriptors()))
    before = descriptors()
    sentinels.start()
    strikes.install()
    print("ready", flush=True)
    serve(strikes)
    print("over", flush=True)
    sentinels.stop()
    faults += sentinels.faults
    faults += wait_for_nothing(lambda: what_is_left(servers, before))
    for each in servers:
        stopping = gevent.spawn(each.stop, 1)
        wait_for_nothing(partial(what_has_not_ended, stopping))
        if not stopping.successful():
            faults.append(f"stop() of {type(each).__name__}: {stopping!r}")
    faults += [f"open: {each}" for each in REGISTRY.entries()]
    REGISTRY.check()
    faults += [f"reported: {what}" for what in reports.counts if what != "struck"]
    found = {
        "where": strikes.where,
        "lines": strikes.lines,
        "spared": strikes.spared,
        "caught": strikes.caught,
        "reported": reports.counts["struck"],
        "faults": faults,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    get_hub()
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # what a fault has left must not hang this
