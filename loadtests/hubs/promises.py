"""What glb promises of many hubs, and whether it was kept: one table."""

from __future__ import annotations

from typing import Final

from loadtests.frame.figures import Figure
from loadtests.frame.old_promise import Promise

from . import figures


def _always(
    says: str, contender: str, figure: Figure, limit: float, *, is_floor: bool = False
) -> Promise:
    return Promise(says, contender, figure, limit, is_floor=is_floor, is_always=True)


def _of_stall(where: str, contender: str) -> tuple[Promise, ...]:
    return (
        _always(f"{where} blocked: the longest wait, ms", contender, figures.LONGEST_WAIT, 50),
        _always(f"{where} blocked: connections lost", contender, figures.LOST, 0),
        _always(f"{where} blocked: that waited for it", contender, figures.WAITED_FOR_IT, 0),
        _always(f"{where} back: its turns", contender, figures.TURNS_AFTER, 1, is_floor=True),
        _always(
            f"{where} trusted again: clones' turns differ by", contender, figures.SPREAD_AFTER, 1
        ),
    )


PROMISES: Final = (
    _always("4 hubs, one at a time: exact order", "order-4", figures.EXACT, 1, is_floor=True),
    _always("4 hubs, 64 at a time: clones' turns differ by", "order-4", figures.SPREAD, 1),
    *_of_stall("hub 2", "stall-4"),
    *_of_stall("hub 0", "stall-4-home"),
    Promise(
        "handlers that block: connections/s, 16 hubs beside 1",
        "block-16", figures.RATE, 13, "block-1", is_floor=True,
    ),
    Promise("CPU a connection, 2 hubs beside 1", "price-2", figures.CPU, 1.6, "price-1"),
    Promise(
        "CPU a connection, 2 hubs, the first first, beside 1",
        "price-2-first", figures.CPU, 1.1, "price-1",
    ),
    Promise(
        "p99 at 1,000 connections/s, 2 hubs beside 1", "price-2", figures.OPEN_P99, 2, "price-1"
    ),
    Promise(
        "p99 at 1,000 connections/s, 4 hubs beside 1", "price-4", figures.OPEN_P99, 2, "price-1"
    ),
)  # fmt: skip
