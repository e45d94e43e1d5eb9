"""The contenders of each question: servers of `loadtests.bench`, on so many hubs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from loadtests.bench.servers.job import Job
from loadtests.frame import process


class Question(Enum):
    """What is asked of a contender, and what its handlers do then."""

    ORDER = "order"
    STALL = "stall"
    BLOCK = "block"
    PRICE = "price"

    @property
    def job(self) -> Job:
        return {
            Question.ORDER: Job.ORDER,
            Question.STALL: Job.STALL,
            Question.BLOCK: Job.BLOCK,
            Question.PRICE: Job.REPLY,
        }[self]


@dataclass(frozen=True)
class Contender(process.Contender):
    """A server on so many *hubs*.

    If it is asked about stalls, *blocked* is the hub that is; ``None`` is whichever it happens
    to be. *has_schedule* tells if the latency on a schedule is measured as well.
    """

    question: Question = Question.PRICE
    hubs: int = 1
    blocked: int | None = None
    has_schedule: bool = False


def _glb(
    question: Question,
    name: str,
    hubs: int,
    clones: int,
    title: str,
    *,
    policy: str = "round_robin",
    blocked: int | None = None,
) -> Contender:
    return Contender(
        f"{question.value}-{name}",
        f"glb, {title}",
        "balanced:hubs",
        clones,
        clones,
        options=(str(hubs), policy),
        question=question,
        hubs=hubs,
        blocked=blocked,
        has_schedule=question is Question.PRICE and policy == "round_robin",
    )


def _gevent(question: Question, *, blocked: int | None = None) -> Contender:
    return Contender(
        f"{question.value}-gevent",
        "gevent StreamServer",
        "plain:one",
        places=1,
        question=question,
        blocked=blocked,
        has_schedule=question is Question.PRICE,
    )


#: As many as a question needs that isn't about them.
CLONES: Final = 8

#: Handlers that block want a clone each: there are as many as hubs.
BLOCKING_HUBS: Final = (1, 2, 4, 8, 16)

CONTENDERS: Final = (
    _glb(Question.ORDER, "4", 4, CLONES, "4 hubs"),
    _gevent(Question.STALL, blocked=0),
    Contender(
        "stall-racing", "gevent, 4 hubs in 4 threads", "plain:threads", 4, 4,
        question=Question.STALL, hubs=4,
    ),
    _glb(Question.STALL, "1", 1, CLONES, "1 hub", blocked=0),
    _glb(Question.STALL, "4", 4, CLONES, "4 hubs, hub 2 blocked", blocked=2),
    _glb(Question.STALL, "4-home", 4, CLONES, "4 hubs, hub 0 blocked", blocked=0),
    _gevent(Question.BLOCK),
    *(
        _glb(Question.BLOCK, str(hubs), hubs, hubs, "1 hub" if hubs == 1 else f"{hubs} hubs")
        for hubs in BLOCKING_HUBS
    ),
    _gevent(Question.PRICE),
    _glb(Question.PRICE, "1", 1, CLONES, "1 hub"),
    _glb(Question.PRICE, "2", 2, CLONES, "2 hubs"),
    _glb(Question.PRICE, "2-first", 2, CLONES, "2 hubs, the first first", policy="first"),
    _glb(Question.PRICE, "4", 4, CLONES, "4 hubs"),
)  # fmt: skip
