"""The collector: connects the measure with locust's events, its workers and its end.

A run is counted to the last connection, which takes two things that locust doesn't do by itself:

* Users finish their requests when they stop (within `STOP_TIMEOUT_SECONDS`, unless
  ``--stop-timeout`` is given). Otherwise a server serves connections that no client counts.
* A worker sends its last report when its users have stopped, and the master waits for it, where
  locust's waits for half a second in any case. It is a whole report: locust's own counts, and the
  figures that the gates judge, are complete too.
"""

from __future__ import annotations

import json
import logging
import pathlib
import time
from collections.abc import Callable
from typing import Any, Final

import gevent
import locust.log
from gevent.event import Event
from locust.runners import STATE_INIT, STATE_STOPPED, MasterRunner, WorkerRunner

from . import gates, report
from .measure import Measure

__all__ = ["Collector"]

log: Final = logging.getLogger(__name__)
console: Final = logging.getLogger("locust.stats_logger")

#: Users that stop have so long to finish their requests, by default.
STOP_TIMEOUT_SECONDS: Final = 5.0

#: So much longer than its users a worker may take for its last report.
LAST_REPORT_SECONDS: Final = 10.0

SAMPLE_SECONDS: Final = 1.0

# Messages between master and workers.
FINISH: Final = "glb_balance_finish"
FINISHED: Final = "glb_balance_finished"
KEY: Final = "glb_balance"

#: The header of a reply that names its clone.
HEADER: Final = "X-Glb-Clone"

#: Returns the clone of a reply, by the arguments of a `request` event; ``None`` if unknown.
Reader = Callable[..., "int | str | bytes | None"]


class Collector:
    """Fills *measure* with the events of *environment*, reports it, and judges it at the end."""

    def __init__(self, environment: Any, measure: Measure, readers: list[Reader]) -> None:
        #: locust's.
        self.environment: Final = environment
        self._measure: Final = measure
        self._readers: Final = readers
        self._began = time.monotonic()
        self._sampling: Any = None
        # A report that is older is another run's.
        self._made: Final = time.time()
        # Workers that have reported in this run; those of which a last report is there; those of
        # which it has come since the master waits; and what shows another one.
        self._reporting: set[str] = set()
        self._ended: set[str] = set()
        self._finished: set[str] = set()
        self._came: Final = Event()
        self._misses: list[str] = []
        runner = environment.runner
        #: Whether it only reports to another.
        self.is_worker: Final = isinstance(runner, WorkerRunner)
        self._is_master: Final = isinstance(runner, MasterRunner)
        if not environment.stop_timeout:
            environment.stop_timeout = STOP_TIMEOUT_SECONDS
        self._has_quit = False
        self._listeners: Final[list[tuple[Any, Any]]] = []
        events = environment.events
        self._listen(events.test_start, self._test_start)
        self._listen(events.test_stop, self._test_stop)
        self._listen(events.reset_stats, self._reset_stats)
        self._listen(events.spawning_complete, self._spawning_complete)
        if not self._is_master:
            self._listen(events.request, self._request)
        if self.is_worker:
            self._listen(events.report_to_master, self._report_to_master)
            runner.register_message(FINISH, self._finish)
            return
        self._listen(events.worker_report, self._worker_report)
        self._listen(events.quitting, self._quitting)
        self._listen(events.quit, self._quit)
        if self._is_master:
            runner.register_message(FINISHED, self._worker_finished)

    def _listen(self, event: Any, listener: Any) -> None:
        event.add_listener(listener)
        self._listeners.append((event, listener))

    def detach(self) -> None:
        """Hear nothing more of the environment."""
        while self._listeners:
            event, listener = self._listeners.pop()
            event.remove_listener(listener)

    # -- requests ------------------------------------------------------------------------------

    def _request(
        self,
        response_time: float | None,
        response_length: int = 0,
        response: Any = None,
        context: Any = None,
        exception: BaseException | None = None,
        **more: Any,
    ) -> None:
        told = context.get("glb_clone") if context else None
        if told is None and response is not None:
            headers = getattr(response, "headers", None)
            if headers:
                told = headers.get(HEADER)
        if told is None and self._readers:
            told = self._ask_readers(
                response_time=response_time,
                response_length=response_length,
                response=response,
                context=context,
                exception=exception,
                **more,
            )
        if told is not None:
            self._measure.record(
                told,
                response_time or 0.0,
                is_turn=not context or bool(context.get("glb_turn", True)),
                is_failure=exception is not None,
            )
        if exception is not None:
            self._measure.fail(exception)

    def _ask_readers(self, **event: Any) -> int | str | bytes | None:
        for read in self._readers:
            told = read(**event)
            if told is not None:
                return told
        return None

    # -- a run ---------------------------------------------------------------------------------

    def _test_start(self, **_: Any) -> None:
        self._measure.clear()
        self._reporting.clear()
        self._ended.clear()
        self._misses = []
        self._began = time.monotonic()
        if not self.is_worker:
            self._sampling = gevent.spawn(self._sample)

    def _test_stop(self, **_: Any) -> None:
        if self.is_worker:
            self._send_last_report()
            return
        if self._is_master:
            self._wait_for_workers()
        if self._sampling is not None:
            # Without a switch: it may be a user that ends the run, and is killed itself by now.
            self._sampling.kill(block=False)
            self._sampling = None
            self._measure.sample(time.monotonic() - self._began)

    def _reset_stats(self, **_: Any) -> None:
        self._measure.clear()

    def _spawning_complete(self, **_: Any) -> None:
        if self.environment.reset_stats:  # which locust does now, without an event
            self._measure.clear()

    def _sample(self) -> None:
        while True:
            self._measure.sample(time.monotonic() - self._began)
            gevent.sleep(SAMPLE_SECONDS)

    # -- workers -------------------------------------------------------------------------------

    def _report_to_master(self, client_id: str, data: dict[str, Any]) -> None:
        data[KEY] = self._measure.take()

    def _worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        found = data.get(KEY)
        if found is not None:
            self._reporting.add(client_id)
            self._measure.merge(found)

    def _finish(self, environment: Any, msg: Any) -> None:
        if environment.runner.state in {STATE_INIT, STATE_STOPPED}:
            # It has nothing to stop; its last report may be on its way, and this is another.
            self._send_last_report()
        else:
            environment.runner.stop()

    def _send_last_report(self) -> None:
        runner = self.environment.runner
        data: dict[str, Any] = {}
        self.environment.events.report_to_master.fire(client_id=runner.client_id, data=data)
        runner.send_message(FINISHED, data)

    def _worker_finished(self, environment: Any, msg: Any) -> None:
        environment.events.worker_report.fire(client_id=msg.node_id, data=msg.data)
        self._finished.add(msg.node_id)
        self._ended.add(msg.node_id)
        self._came.set()

    def _wait_for_workers(self) -> None:
        # A worker that has stopped has reported, and has left the list until it is ready again.
        self._finished.clear()
        for client in self._missing():
            self.environment.runner.send_message(FINISH, None, client)
        deadline = time.monotonic() + (self.environment.stop_timeout or 0) + LAST_REPORT_SECONDS
        while (missing := self._missing()) and (left := deadline - time.monotonic()) > 0:
            self._came.clear()
            # Not for long: a worker may have died meanwhile.
            self._came.wait(min(left, 0.5))
        if lost := {*missing, *(self._reporting - self._ended)}:
            log.warning(
                "no last report from %s: some seconds of their counts are lost",
                ", ".join(sorted(lost)),
            )

    def outstanding(self) -> int:
        """Return how many workers' last reports of this run are still to come."""
        if not self._is_master:
            return 0
        clients = self.environment.runner.clients
        at_work = {each.id for each in clients.spawning + clients.running}
        return len((at_work | self._reporting) - self._ended)

    def _missing(self) -> list[str]:
        clients = self.environment.runner.clients
        here = (each.id for each in clients.ready + clients.spawning + clients.running)
        return [each for each in here if each not in self._finished]

    # -- the end -------------------------------------------------------------------------------

    def _quitting(self, **_: Any) -> None:
        # After an interrupt all still runs, and locust would stop it only after the status is set.
        runner = self.environment.runner
        if self._is_master:
            # A worker that gets "stop", and not "quit", leaves the master's list for as long as its
            # users may take to stop, and never gets "quit". locust sends "stop" itself meanwhile
            # where all workers have been silent for some seconds.
            workers = [each.id for each in runner.clients.all]
            runner.stop(send_stop_to_client=False)
            for each in workers:
                if each not in runner.clients:  # locust sends it to these
                    runner.send_message("quit", None, each)
        elif runner.state not in {STATE_INIT, STATE_STOPPED}:
            runner.stop()

    def judge(self) -> None:
        """Set the exit status, if there are gates. After all that other listeners did to it."""
        environment = self.environment
        options, total = environment.parsed_options, environment.stats.total
        if options is None or not gates.are_set(options):
            return
        self._misses = gates.misses(options, self._measure.figures(), total)
        if self._misses:
            environment.process_exit_code = environment.process_exit_code or 1
        elif (
            options.max_fail_ratio is not None
            and environment.process_exit_code is None
            and not environment.runner.exceptions
            and not locust.log.unhandled_greenlet_exception
        ):
            environment.process_exit_code = 0  # so many may fail

    def _quit(self, **_: Any) -> None:
        # A signal may have two greenlets end locust at once.
        if self._has_quit:
            return
        self._has_quit = True
        figures = self._measure.figures()
        if figures.clones:
            for line in report.table(figures):
                console.info(line)
            console.info("")
        for miss in self._misses:
            log.error(miss)
        options = self.environment.parsed_options
        if options is None:
            return
        history = self._measure.history
        if options.csv_prefix:
            write(f"{options.csv_prefix}_balance.csv", report.to_csv(figures))
        if options.balance_json:
            data = report.to_dict(figures, history)
            write(options.balance_json, json.dumps(data, indent=2) + "\n")
        if options.html_file:
            section = report.html_section(figures, history)
            add_section(options.html_file, section, since=self._made)


def add_options(parser: Any) -> None:
    """Add what is no gate to locust's command line."""
    group = parser.add_argument_group("Balance (glb)")
    group.add_argument(
        "--balance-json",
        metavar="<file>",
        default=None,
        env_var="LOCUST_BALANCE_JSON",
        help="Write the balance, and how it came about second by second, to this file. With --csv "
        "a <prefix>_balance.csv is written too",
    )


def write(name: str, text: str) -> None:
    """Write *text* to a file; its folder is made if need be, as locust does.

    An error goes to the log, so that the other files are still written.
    """
    path = pathlib.Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        log.error("can't write %r: %s", name, error.strerror or error)


def add_section(name: str, section: str, since: float) -> None:
    """Put *section* to the end of locust's HTML report, if one was written since that time."""
    path = pathlib.Path(name)
    try:
        text, changed = path.read_text(encoding="utf-8"), path.stat().st_mtime
    except OSError:
        return
    # At SIGTERM locust writes none. A file's time is up to a clock tick early.
    if changed > since - 1 and report.SECTION not in text:
        write(name, insert_section(text, section))


def insert_section(text: str, section: str) -> str:
    """Return the page *text* with *section* at the end of its body."""
    head, body, tail = text.rpartition("</body>")
    return f"{head}{section}{body}{tail}" if body else text + section
