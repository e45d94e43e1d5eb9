"""What the scenarios have in common: options, a server of their own, and its counts at the end.

    from scenario import Scenario

    scenario = Scenario("echo")

That is all. With ``--host`` the server is given. Without it one is started, by the one process of a
load test that isn't a worker; workers learn the address from the master. Locust imports from the
folder of a locustfile, so this is a module of its own there.
"""

from __future__ import annotations

import json
import logging
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from locust import events
from locust.runners import WorkerRunner

from glb.locust import MEASURE

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # wherever locust is run

from loadtests.frame.worker import Worker

log: Final = logging.getLogger(__name__)
console: Final = logging.getLogger("locust.stats_logger")


@events.init_command_line_parser.add_listener
def add_options(parser: Any, **_: Any) -> None:
    group = parser.add_argument_group("The scenario's own server, without --host")
    group.add_argument("--clones", type=int, help="how many clones or racing servers, else 4")
    group.add_argument("--hubs", type=int, help="on how many hubs glb's clones live, else 1")
    group.add_argument("--patience", type=float, help="seconds that a connection waits for a hub")
    racing = "glb's (the default), gevent's own, or as many of those on one socket as clones"
    group.add_argument("--server", choices=["glb", "gevent", "racing"], default="glb", help=racing)
    keep = "tcp.py and http.py: clients keep their connections"
    group.add_argument("--keep-alive", action="store_true", help=keep)
    stats = "write what the server counted, and the clients, to this file as JSON"
    group.add_argument("--server-stats", metavar="FILE", help=stats)


class Scenario:
    """A load test with a server of its own, unless it is given one.

    Args:
        kind: Of the server's replies: ``"echo"`` or ``"http"``.
        gates: Names and limits of the default gates.
        given_up: What the report calls connections that clients may give up before a reply.
        answer: Asked, at the end, for the lines that answer the scenario's question.
        roll_seconds: All clones get new handlers, one after another, each so many seconds.
        options: *clones*, *hubs* and *patience*, unless they are in the command line.
    """

    def __init__(
        self,
        kind: str,
        *,
        gates: Mapping[str, float] = MappingProxyType({}),
        given_up: str = "",
        answer: Callable[[Any], Iterable[str]] = lambda _: (),
        roll_seconds: float | None = None,
        **options: float,
    ) -> None:
        self._kind: Final = kind
        self._given_up: Final = given_up
        self._answer: Final = answer
        self._roll_seconds: Final = roll_seconds
        self._defaults: Final = {"clones": 4, "hubs": 1, **gates, **options}
        self._environment: Any = None
        self._server: Worker | None = None
        # What it has counted before a run.
        self._before: tuple[Sequence[int], int] = ((), 0)
        self._has_quit = False
        #: How often its server was rolled, when a run is over.
        self.rolls = 0
        # glb.locust is imported, so its listeners come first: in the end all workers have reported
        events.init.add_listener(self._init)
        events.test_start.add_listener(self._test_start)

    def _init(self, environment: Any, runner: Any, **_: Any) -> None:
        if isinstance(runner, WorkerRunner):
            return
        self._environment = environment
        options = environment.parsed_options
        for name, value in self._defaults.items():
            if getattr(options, name) is None:
                setattr(options, name, value)
        events.test_stop.add_listener(self._test_stop)
        events.quit.add_listener(self._quit)
        if not environment.host:
            self._start_server(options)
            lead_users(environment)

    def _start_server(self, options: Any) -> None:
        if options.server != "glb" and self._roll_seconds is not None:
            sys.exit(f"gevent's own servers can't be rolled, got server {options.server!r}")
        # What it complains of is for the terminal.
        self._server = server = Worker("loadtests.workers", stderr=None)
        port = server.ask(
            "open",
            kind=self._kind,
            by="glb" if options.server == "glb" else "gevent",
            clones=1 if options.server == "gevent" else options.clones,
            hubs=options.hubs,
            patience=options.patience,
        )
        if self._roll_seconds is not None:
            server.ask("roll_each", seconds=self._roll_seconds)
        # Locust hands its options to the workers, and so this address.
        url = f"{'http' if self._kind == 'http' else 'tcp'}://127.0.0.1:{port}"
        options.own_host = url
        log.info("started a server of its own: %s, process %d", url, server.pid)

    def _test_start(self, environment: Any, **_: Any) -> None:
        lead_users(environment)
        if self._server is not None:
            self._before = self._server.ask("counts")

    def _test_stop(self, **_: Any) -> None:
        if self._environment.web_ui is not None:
            self._report()

    def _quit(self, **_: Any) -> None:
        # A signal may have two greenlets end locust at once.
        if self._has_quit:
            return
        self._has_quit = True
        # Not before: the last that workers report of their requests comes after `test_stop`.
        if self._environment.web_ui is None:
            self._report()
        if self._server is not None:
            self._server.end()

    def _report(self) -> None:
        lines: list[str] = []
        # On locust's page the users may have been given another host.
        own = getattr(self._environment.parsed_options, "own_host", None)
        if self._server is not None and self._environment.host in {None, "", own}:
            lines += self._compare(self._server)
        for line in [*lines, *self._answer(self._environment)]:
            console.info(line)

    def _compare(self, server: Worker) -> Iterator[str]:
        """Yield, and write, what the server counted by clone, and what its clients did."""
        (before, rolls_before), (now, rolls) = self._before, server.ask("counts")
        self.rolls = rolls - rolls_before
        given = (late - early for early, late in zip(before, now, strict=False))
        accepted = {str(index): count for index, count in enumerate(given)}
        measured = {str(each.clone): each.turns for each in MEASURE.figures().clones}
        turns = dict.fromkeys(accepted, 0) | measured
        # A connection that is given up may have been accepted, by a clone that is not known.
        stats = self._environment.stats
        given_up = stats.get(self._given_up, "TCP").num_requests if self._given_up else 0
        more = sum(accepted.values()) - sum(turns.values())
        agree = 0 <= more <= given_up if given_up else accepted == turns
        yield f"the server accepted {sum(accepted.values())}: {accepted}"
        yield f"the clients counted {sum(turns.values())}: {turns}"
        yield f"and gave up {given_up}: " + ("they agree" if agree else "THEY DIFFER")
        if name := self._environment.parsed_options.server_stats:
            found = {"accepted": accepted, "turns": turns, "given_up": given_up, "agree": agree}
            pathlib.Path(name).write_text(json.dumps(found) + "\n", encoding="utf-8")


def lead_users(environment: Any) -> None:
    """Give all users the address of the scenario's own server, unless a host was given."""
    if own := getattr(environment.parsed_options, "own_host", None):
        for each in environment.user_classes:
            each.host = environment.host or own
