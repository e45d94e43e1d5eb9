"""What the scenarios have in common: options, a server of their own, and its counts at the end.

    from loadtests.target.scenario import Scenario, Want

    scenario = Scenario(Want("stream"))

That is all: with ``--host`` the server is given, and without it one is started, by the one process
of a load test that isn't a worker. Workers learn the address from the master.
"""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from locust import events
from locust.runners import WorkerRunner

from glb.locust import MEASURE

from .process import Target
from .servers import SERVERS

__all__ = ["Scenario", "Want"]

log: Final = logging.getLogger(__name__)
console: Final = logging.getLogger("locust.stats_logger")

#: How a server of each protocol is addressed.
SCHEMES: Final = {"stream": "tcp", "http": "http"}

#: An option for workers alone, by which they find the servers.
HOSTS: Final = "target_hosts"


@events.init_command_line_parser.add_listener
def add_options(parser: Any, **_: Any) -> None:
    group = parser.add_argument_group("The scenario's own server, without --host")
    for flag, kind, words in (
        ("--clones", int, "how many clones, or racing servers, 4 by default"),
        ("--hubs", int, "on how many hubs glb's clones live, 1 by default"),
        ("--patience", float, "how long a hub may let a connection lie, in seconds"),
    ):
        group.add_argument(flag, type=kind, help=words)
    group.add_argument(
        "--server",
        choices=SERVERS,
        help="glb's (the default), gevent's own, or as many of those racing for one socket as "
        "there are clones",
    )
    group.add_argument(
        "--server-stats",
        metavar="FILE",
        help="write what the server counted, and the clients, to this file as JSON",
    )


@dataclass(frozen=True)
class Want:
    """A server that a scenario loads, if it isn't given one.

    Attributes:
        protocol: ``"stream"`` or ``"http"``.
        name: What the clones' names begin with, where there are several servers: ``glb.0``. The
            users that load it have it as their ``target``.
        server, clones, hubs, patience: What it is unless the command line says something.
        is_fixed: Whether it is what it is, whatever the command line says of ``--server``.
    """

    protocol: str = "stream"
    name: str | None = None
    server: str = "glb"
    clones: int = 4
    hubs: int = 1
    patience: float | None = None
    is_fixed: bool = False

    @property
    def scheme(self) -> str:
        return SCHEMES[self.protocol]

    def start(self, options: Any) -> Target:
        """Return the server that this becomes with *options* of the command line."""
        chosen = {
            each: getattr(self, each) if getattr(options, each) is None else getattr(options, each)
            for each in ("server", "clones", "hubs", "patience")
        }
        if self.is_fixed:
            chosen["server"] = self.server
        return Target(protocol=self.protocol, name=self.name, **chosen)


@dataclass(frozen=True)
class Counts:
    """Connections of each clone: what its server counted, and what its clients did."""

    accepted: Mapping[str, int]
    turns: Mapping[str, int]
    #: Connections that clients gave up before there was a reply, if that is what they do.
    given_up: int | None

    @property
    def agree(self) -> bool:
        if self.given_up is None:
            return self.accepted == {**dict.fromkeys(self.accepted, 0), **self.turns}
        # Their clones aren't known, and neither is how many of them the server has seen.
        return 0 <= sum(self.accepted.values()) - sum(self.turns.values()) <= self.given_up

    def lines(self) -> Iterable[str]:
        yield f"the server accepted {total(self.accepted)}"
        if self.given_up is None:
            verdict = "they agree" if self.agree else "THEY DIFFER"
        else:
            verdict = f"and gave up {self.given_up}: " + ("fits" if self.agree else "DOESN'T FIT")
        yield f"the clients counted {total(self.turns)}, {verdict}"

    def as_json(self) -> dict[str, Any]:
        return {
            "names": [*self.accepted],
            "clones": [*self.accepted.values()],
            "turns": [self.turns.get(name, 0) for name in self.accepted],
            "given_up": self.given_up,
            "agree": self.agree,
        }


def total(counts: Mapping[str, int]) -> str:
    each = ", ".join(f"{name}: {count}" for name, count in counts.items())
    return f"{sum(counts.values())} ({each})"


class Scenario:
    """A load test with a server of its own, unless it is given one.

    Args:
        wants: The servers.
        gates: Names and limits of the default gates.
        given_up: Asked, at the end, how many connections clients gave up before a reply.
        answer: Asked, at the end, for the lines that answer the scenario's question.
    """

    def __init__(
        self,
        *wants: Want,
        gates: Mapping[str, float] | None = None,
        given_up: Callable[[Any], int] | None = None,
        answer: Callable[[Any], Iterable[str]] | None = None,
    ) -> None:
        self._wants: Final = wants
        self._gates: Final = dict(gates or {})
        self._given_up: Final = given_up
        self._answer: Final = answer
        self._environment: Any = None
        self._before: Mapping[str, int] = {}
        self._has_quit = False
        # Of its only server; locust's page may have another one set, or none.
        self._host: str | None = None
        #: The servers of its own that run.
        self.targets: Final[list[Target]] = []
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
            self._start_targets(environment, options)
        elif len(self._wants) > 1:
            self._keep_users_of(urlsplit(environment.host).scheme)

    def _start_targets(self, environment: Any, options: Any) -> None:
        hosts = {}
        for want in self._wants:
            target = want.start(options)
            self.targets.append(target)
            hosts[want.name] = f"{want.scheme}://{target.address[0]}:{target.address[1]}"
            log.info("started a server of its own: %s, process %d", hosts[want.name], target.pid)
        if len(hosts) == 1:
            (self._host,) = hosts.values()
            environment.host = self._host
        else:
            setattr(options, HOSTS, hosts)
            tell_users(environment)

    def _keep_users_of(self, scheme: str) -> None:
        known = {want.name for want in self._wants if want.scheme == scheme}
        for each in self._environment.user_classes:
            if each.target not in known:
                each.weight = 0

    def _test_start(self, environment: Any, **_: Any) -> None:
        environment.host = environment.host or self._host
        tell_users(environment)
        self._before = self._accepted()

    def _test_stop(self, **_: Any) -> None:
        if self._environment.web_ui is not None:
            self._tell()

    def _quit(self, **_: Any) -> None:
        # A signal may have two greenlets end locust at once.
        if self._has_quit:
            return
        self._has_quit = True
        # Not before: the last that workers report of their requests comes after `test_stop`.
        if self._environment.web_ui is None:
            self._tell()
        for target in self.targets:
            target.end()
        self.targets.clear()

    def _tell(self) -> None:
        lines: list[str] = []
        if self.targets and (self._environment.host or None) == self._host:
            counts = self._count()
            lines += counts.lines()
            if name := self._environment.parsed_options.server_stats:
                pathlib.Path(name).write_text(json.dumps(counts.as_json()) + "\n", encoding="utf-8")
        if self._answer is not None:
            lines += self._answer(self._environment)
        for line in lines:
            console.info(line)

    def _accepted(self) -> dict[str, int]:
        return {
            each["name"]: each["accepted"] for target in self.targets for each in target.stats()
        }

    def _count(self) -> Counts:
        return Counts(
            {name: now - self._before.get(name, 0) for name, now in self._accepted().items()},
            {str(each.clone): each.turns for each in MEASURE.figures().clones},
            None if self._given_up is None else self._given_up(self._environment),
        )


def tell_users(environment: Any) -> None:
    """Give each class of users the address of the server that it loads, if there are several."""
    hosts = getattr(environment.parsed_options, HOSTS, None) or {}
    for each in environment.user_classes:
        if (target := getattr(each, "target", None)) in hosts:
            each.host = hosts[target]
