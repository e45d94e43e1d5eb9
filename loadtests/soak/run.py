"""A run: a server's process, clients, and what both have found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from glb.model.policy import Policy
from loadtests.frame.process import ProcessError

from .load import Load
from .plan import Kind, Plan
from .program import ANSWER_SECONDS, SERVER, Program, unexpected_errors
from .report import Report

__all__ = ["run"]

#: The policy whose turns are exact.
DEALS_IN_TURN: Final = Policy.ROUND_ROBIN.value


def run(plan: Plan, command: str = "", server: Sequence[str] = SERVER) -> Report:
    """Run *plan*, and return what was found.

    Args:
        command: What a user types to run it again.
        server: What runs the server's process.
    """
    found: dict[str, Any] = {}
    failures = []
    with Program(plan, server) as program:
        load = Load(plan, {})
        try:
            ports = program.answer()
            load = Load(plan, {Kind(name): port for name, port in ports.items()})
            load.run(lambda: not program.is_running())
            program.tell("rest")
            answer = program.answer()
            if answer == "at rest":
                failures += _ask_in_turn(plan, load)
                program.tell("end")
                answer = program.answer()
            found = answer
            if status := program.status(ANSWER_SECONDS):
                failures.append(f"the server has ended with status {status}")
        except ProcessError as error:
            failures.append(str(error))
        errors = program.said()
    unexpected = unexpected_errors(errors, found.get("crashed", ()))
    return Report(plan, command, load.outcome, found, unexpected, failures, errors)


def _ask_in_turn(plan: Plan, load: Load) -> list[str]:
    # With several hubs one that has blocked has its turns back a while later: see
    # glb.accept.watchdog.
    if plan.hubs > 1 or plan.policy != DEALS_IN_TURN:
        return []
    failures = []
    for kind in map(Kind, plan.kinds):
        replies = load.ask_in_turn(kind, 8 * plan.clones)
        places = [(each.server, each.clone) if each is not None else None for each in replies]
        count = len({*places})
        if None in places or places != (places[:count] * len(places))[: len(places)]:
            failures.append(f"{kind.value}: turns were not exact afterwards: {places}")
    return failures
