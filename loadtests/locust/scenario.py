"""What the scenarios have in common: options, a server of their own, and its counts at the end.

    from scenario import Scenario, Want

    scenario = Scenario(Want("echo"))

That is all. With ``--host`` the server is given. Without it one is started, by the one process of a
load test that isn't a worker; workers learn the address from the master. Locust imports from the
folder of a locustfile, so this is a module of its own there.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from locust import events
from locust.runners import WorkerRunner

from glb.locust import MEASURE

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # wherever locust is run

from loadtests.frame.worker import Worker

#: glb's, gevent's own, and gevent's racing for one socket.
SERVERS: Final = ("glb", "gevent", "racing")

log: Final = logging.getLogger(__name__)
console: Final = logging.getLogger("locust.stats_logger")


@events.init_command_line_parser.add_listener
def add_options(parser: Any, **_: Any) -> None:
    group = parser.add_argument_group("The scenario's own server, without --host")
    group.add_argument("--clones", type=int, help="how many clones or racing servers, else 4")
    group.add_argument("--hubs", type=int, help="on how many hubs glb's clones live, else 1")
    group.add_argument("--patience", type=float, help="seconds that a connection waits for a hub")
    racing = "glb's (the default), gevent's own, or as many of those on one socket as clones"
    group.add_argument("--server", choices=SERVERS, help=racing)
    stats = "write what the server counted, and the clients, to this file as JSON"
    group.add_argument("--server-stats", metavar="FILE", help=stats)


@dataclasses.dataclass(frozen=True)
class Want:
    """A server that is to be.

    Attributes:
        kind: Of its replies: ``"echo"`` or ``"http"``.
        name: What its clones' names begin with, where there are several servers: ``glb.0``. The
            users that load it have it as their ``target``.
        server: One of `SERVERS`; ``None`` for glb's.
        clones: How many clones or racing servers.
        hubs, patience: As `glb.server.StreamServer` has them.
        roll_seconds: All clones get new handlers, one after another, each so many seconds.
    """

    kind: str
    name: str = ""
    server: str | None = None
    clones: int = 4
    hubs: int = 1
    patience: float | None = None
    roll_seconds: float | None = None

    @property
    def scheme(self) -> str:
        return "http" if self.kind == "http" else "tcp"

    def name_of(self, clone: int) -> str:
        return f"{self.name}.{clone}" if self.name else str(clone)

    def start(self) -> tuple[Worker, str]:
        """Start it in a process of its own, and return that and its address."""
        by = "glb" if self.server in {None, "glb"} else "gevent"
        if by != "glb" and self.roll_seconds is not None:
            sys.exit(f"gevent's own servers can't be rolled, got server {self.server!r}")
        what = {each: getattr(self, each) for each in ("kind", "name", "hubs", "patience")}
        clones = 1 if self.server == "gevent" else self.clones
        # What it complains of is for the terminal.
        server = Worker("loadtests.workers", stderr=None)
        url = f"{self.scheme}://127.0.0.1:{server.ask('open', by=by, clones=clones, **what)}"
        log.info("started a server of its own: %s, process %d", url, server.pid)
        if self.roll_seconds is not None:
            server.ask("roll_each", seconds=self.roll_seconds)
        return server, url


def chosen(want: Want, options: Any) -> Want:
    """Return what *want* becomes with *options*; a server that it names stays."""
    given = {name: getattr(options, name) for name in ("clones", "hubs", "patience")}
    given["server"] = want.server or options.server
    return dataclasses.replace(want, **{k: v for k, v in given.items() if v is not None})


def times(entry: Any) -> str:
    """Return how long the requests of *entry*, of locust's statistics, took."""
    parts = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "at most": 1.0}
    found = {name: entry.get_response_time_percentile(part) for name, part in parts.items()}
    return ", ".join(f"{name} {ms:g} ms" for name, ms in found.items())


class Scenario:
    """A load test with a server of its own, unless it is given one.

    Args:
        wants: The servers. With several, a user class says by its ``target`` which it loads.
        gates: Names and limits of the default gates.
        given_up: What the report calls connections that clients may give up before a reply.
        answer: Asked, at the end, for the lines that answer the scenario's question.
    """

    def __init__(
        self,
        *wants: Want,
        gates: Mapping[str, float] = MappingProxyType({}),
        given_up: str = "",
        answer: Callable[[Any], Iterable[str]] = lambda _: (),
    ) -> None:
        self._wants: Final = wants
        self._gates: Final = gates
        self._given_up: Final = given_up
        self._answer: Final = answer
        self._environment: Any = None
        self._servers: list[Worker] = []
        self._before: Mapping[str, int] = {}
        self._rolls_before = 0
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
        for gate, limit in self._gates.items():
            if getattr(options, gate) is None:
                setattr(options, gate, limit)
        events.test_stop.add_listener(self._test_stop)
        events.quit.add_listener(self._quit)
        if not environment.host:
            self._start_servers(options)
            lead_users(environment)
        elif len(self._wants) > 1:
            scheme = "http" if environment.host.startswith("http") else "tcp"
            known = {want.name for want in self._wants if want.scheme == scheme}
            for each in environment.user_classes:
                each.weight = each.weight if each.target in known else 0

    def _start_servers(self, options: Any) -> None:
        # Locust hands its options to the workers, and so these addresses.
        options.target_hosts = {}
        for want in self._wants:
            server, options.target_hosts[want.name] = chosen(want, options).start()
            self._servers.append(server)

    def _test_start(self, environment: Any, **_: Any) -> None:
        lead_users(environment)
        self._before, self._rolls_before = self._counted()

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
        for server in self._servers:
            server.end()

    def _report(self) -> None:
        lines: list[str] = []
        hosts = getattr(self._environment.parsed_options, "target_hosts", {})
        # On locust's page the users may have been given another host.
        if hosts and self._environment.host in {None, "", *hosts.values()}:
            lines += self._compare()
        for line in [*lines, *self._answer(self._environment)]:
            console.info(line)

    def _counted(self) -> tuple[dict[str, int], int]:
        accepted = {
            want.name_of(clone): count
            for want, server in zip(self._wants, self._servers, strict=False)
            for clone, count in enumerate(server.ask("accepted"))
        }
        return accepted, sum(server.ask("rolls") for server in self._servers)

    def _compare(self) -> Iterator[str]:
        """Yield, and write, what the servers counted by clone, and what their clients did."""
        now, rolls = self._counted()
        self.rolls = rolls - self._rolls_before
        accepted = {name: count - self._before.get(name, 0) for name, count in now.items()}
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
    """Give each class of users the address of its server, unless a host was given for all."""
    hosts = getattr(environment.parsed_options, "target_hosts", {})
    for each in environment.user_classes:
        if not environment.host and (target := getattr(each, "target", "")) in hosts:
            each.host = hosts[target]
