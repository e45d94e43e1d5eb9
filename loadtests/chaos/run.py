"""A run, as its command sees it: the servers' process, and what it and the clients have found."""

from __future__ import annotations

import pathlib
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, ClassVar, Final

import click

from loadtests.frame.command import command_line, conduct, seed_option, wants_linux
from loadtests.frame.process import ProcessError
from loadtests.frame.worker import Worker

from .life import Plan
from .tally import Tally

#: What the servers' process does takes no longer, or it is stuck.
ANSWER_SECONDS: Final = 60.0

#: So much of what it has said at last is shown, in characters.
SHOWN: Final = 3000


class Servers(Worker):
    """The servers' process: see `loadtests.chaos.life`."""

    end_seconds: ClassVar[float] = 0.0  # it is over, or it is stuck

    def have(self, it: str, **arguments: Any) -> Any:
        """Have its life do *it*, a method, and return what that does."""
        return self.ask("have", within=ANSWER_SECONDS, it=it, **arguments)


def run(
    name: str,
    plan: Plan,
    course: Callable[[Servers, Tally], object],
    python: Sequence[str] = (sys.executable,),
    tolerated: Sequence[str] = (),
) -> Tally:
    """Run *plan* of the experiment of that *name*, and return what was found.

    Args:
        course: What happens from the time when there is the servers' `Life` until its end.
        python: What runs their process.
        tolerated: What lines may have in them that it says.
    """
    tally = Tally(plan.began)
    with Servers(f"loadtests.{name}", python=python) as servers:
        try:
            servers.ask("begin", **asdict(plan))
            course(servers, tally)
            tally.add(servers.have("end"))
            status = servers.status(ANSWER_SECONDS)
            tally.hold("the servers' process ends as it should", status == 0, status)
        except ProcessError as error:
            tally.hold("the run comes to its end", False, error)
            if servers.is_running():
                servers.signal(signal.SIGUSR2)  # then it says where it is, and what it has found
                with suppress(ProcessError):
                    tally.add(servers.answer())
        said = servers.said()
    found = strange(said, tolerated)
    detail = f"{dict(found)}, and at last: {said[-SHOWN:]}"
    tally.hold("the servers' process says nothing strange", not found, detail)
    return tally


def strange(said: str, tolerated: Sequence[str] = ()) -> Counter[str]:
    """Return the lines that were *said* beside stacks, but for *tolerated* ones; how often each."""
    lines = (line for line in said.splitlines() if not line.startswith((" ", "\t", "Traceback")))
    return Counter(line for line in lines if line and not any(each in line for each in tolerated))


def command(name: str, words: str, find: Callable[..., Tally], *options: Any) -> click.Command:
    """Return ``python -m loadtests.NAME``, whose help are its *words*: first its question.

    Args:
        find: Makes a run of the values of *options*, and of a seed.
    """

    @seed_option()
    @click.pass_context
    def main(context: click.Context, /, file: pathlib.Path | None = None, **given: Any) -> None:
        wants_linux("/proc")
        question = words.partition("\n")[0]
        ask = {name: lambda _: find(**given).answer(question)}
        conduct(command_line(context, name), ask, file=file)

    for option in reversed(options):
        main = option(main)
    return click.command(help=words)(main)
