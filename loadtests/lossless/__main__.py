"""Is a connection lost while a server of glb is rolled, resized, replaced or stopped?

    python -m loadtests.lossless [SCENARIO ...]

All of them, if none is given. Servers and clients are processes of their own, on loopback. Printed
are tables: what glb promises beside what was measured. Exit status 0 only if every promise was
measured and kept.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import click

from loadtests.frame.client import Client, compile_programs
from loadtests.frame.command import (
    QUICK,
    Tell,
    allow_descriptors,
    command_line,
    conduct,
    json_option,
    wants_linux,
)
from loadtests.frame.process import Cpus
from loadtests.frame.sheet import Answer, Table
from loadtests.frame.traffic import GIVE_UP_SECONDS, GOOD, RACED, REPLY, SLOW
from loadtests.frame.worker import ANSWER_SECONDS

from .stage import (
    KINDS,
    WORKERS,
    Load,
    Serving,
    Stage,
    clients,
    descriptors,
    settled,
    spread,
    tracebacks,
)

# -- the scenarios: what is done to a server, under which load, and what is promised ------------
#
# The first line of each says what it asks. Its arguments are how much there is of everything.


def rolls(stage: Stage, *, times: int = 20, clones: int = 4) -> None:
    """Is a connection lost while handlers are replaced?"""
    for kind, title in KINDS.items():
        with stage.open(kind, clones=clones, work=stage.work) as (server, client, port):
            stage.change(client, port, kind, title, times, partial(server.ask, "roll"))
            turns = server.ask("accepted")
        stage.promise(f"{title}: clones' turns differ by", max(turns) - min(turns), 1)


def resize(stage: Stage, *, times: int = 20, few: int = 1, many: int = 16) -> None:
    """Is a connection lost while clones come and go?"""
    few = max(few, stage.hubs)
    for kind, title in KINDS.items():
        spreads = []
        with (
            stage.open(kind, clones=few, work=stage.work) as (server, client, port),
            stage.load(client, port, kind, title),
        ):
            for _ in range(times):
                _, then = server.ask("resize", clones=many)
                time.sleep(stage.pause / 2)  # turns of many
                # What each was given from when there were many of them until there are few.
                before, _ = server.ask("resize", clones=few)
                time.sleep(stage.pause / 2)  # turns of few
                spreads.append(spread(then, before))
        # Counts of other hubs may be one behind, both times: they are read under load.
        limit = 1 if stage.hubs == 1 else 3
        stage.promise(f"{title}: turns of {many} clones differ by", max(spreads), limit)


def takeover(stage: Stage, *, times: int = 20, kept: int = 50, kept_pause: float = 0.1) -> None:
    """Is a connection lost while a server takes over the address of another, which drains?"""
    for kind, title in KINDS.items():
        with stage.open(kind, work=stage.work, reuse_port=True) as (server, client, port):
            stage.change(client, port, kind, title, times, partial(server.ask, "take_over"))
    title, load = "kept alive", Load()
    with stage.open("http", work=stage.work, reuse_port=True) as (server, client, port):
        client.ask("keep", place=port, clients=kept, pause=kept_pause, seed=12, names_us=True)
        for _ in range(times):
            time.sleep(stage.pause)  # requests come all the time
            server.ask("take_over")
        time.sleep(stage.pause)  # and to the last one, too
        load.depart(client)
        raced = [visit.number for visit in load.visits if visit.fate == RACED]
        begun = server.ask("begun_of", numbers=raced)
    fates, never_begun = load.fates(), len(raced) - len(begun)
    stage.promise(f"{title}: requests failed", fates.total() - fates[GOOD] - never_begun)
    stage.note(f"{title}: requests with a good reply", fates[GOOD])
    stage.note(f"{title}: what became of them", dict(load.counts))
    stage.note(f"{title}: raced, sent as it was closed, never begun", never_begun)


#: On a busy machine that is seen first.
CLOSED: Final = "has closed its channel"

#: What becomes of processes that are to take over, what the log says of it, and how many seconds
#: they have: what has its fate before may take as long as the machine needs.
FATES: Final = {
    "crashes": (f"(exited with status 2|{CLOSED}) before it was ready", 60),
    "exits": (f"(exited with status 0|{CLOSED}) before it was ready", 60),
    "is killed": (f"(was ended by SIGKILL|{CLOSED}) before it was ready", 60),
    "goes well after all these": ("serves now", 60),
    "hangs": ("wasn't ready after 1 s", 1),
}


def upgrade(stage: Stage, *, times: int = 20) -> None:
    """Is a connection lost while a new process takes over from `glb serve`, or fails to?"""
    words: tuple[Any, ...]
    with tempfile.TemporaryDirectory() as name, clients() as client:
        folder = pathlib.Path(name)
        socket, options = folder / "socket", ("--hubs", stage.hubs)
        for kind, bind in itertools.product(KINDS, ("127.0.0.1:0", f"unix:{socket}")):
            title = f"{KINDS[kind]}, {'TCP' if bind.endswith(':0') else 'Unix'}"
            log = ("--access-log", os.devnull) if kind == "http" else ()
            words = (f"{WORKERS}:{kind}", "--bind", bind, *options, *log)
            with Serving(folder, *words) as line:
                stage.change(client, line.place, kind, title, times, line.upgrade)
                is_there = socket.exists()
            if title.endswith("Unix"):
                stage.promise(f"{title}: its file after upgrades", is_there, 1, is_floor=True)
                stage.promise(f"{title}: its file after the end", socket.exists())
        said = {}
        for timeout, fates in itertools.groupby(FATES, lambda fate: FATES[fate][1]):
            words = (f"{WORKERS}:http", "--bind", bind, *options, "--upgrade-timeout", timeout)
            title = f"while new processes fail, within {timeout} s"
            with (
                Serving(folder, *words) as line,
                stage.load(client, line.place, "http", title),
            ):
                said.update({fate: line.replace(fate) for fate in fates})
    wrong = sum(not re.search(FATES[fate][0], text) for fate, text in said.items())
    stage.promise("failures that the log explains otherwise", wrong)
    stage.notes.extend(said.items())


def drain(
    stage: Stage,
    *,
    slow: int = 200,
    slow_seconds: float = 0.5,
    idle: int = 500,
    timeout: float = 5.0,
    others: Sequence[str] = ("gevent with a pool", "gevent"),
) -> None:
    """What becomes of requests in flight, and of idle connections, when a server stops?

    By ``stop(timeout, drain=True)``, and gevent's ``stop``. The process ends when it returns.
    """
    rows = []
    for (is_tls, title), by in itertools.product(enumerate(("HTTP", "HTTPS")), ("glb", *others)):
        options: dict[str, Any] = {"is_tls": bool(is_tls), "slow": slow_seconds, "clones": 1}
        with stage.open("http", by=by, **options) as (server, client, port):
            hold = partial(client.ask, "hold", place=port, is_tls=is_tls)
            hold(count=idle, asks=[REPLY])
            hold(count=slow, asks=[REPLY, SLOW])
            seconds, after = server.ask("end", after=slow, timeout=timeout)
            server.end()
            found = client.ask("let_go", at_most=GIVE_UP_SECONDS)
        idles, slows = (Counter(fate for fate, *_ in some) for some in (found[:idle], found[idle:]))
        closed, told = idles.pop("closed", 0), slows.pop("good, and told", 0)
        good = told + slows.pop("good", 0)
        rest = ", ".join(f"{count:,} {fate}" for fate, count in [*slows.items(), *idles.items()])
        numbers = (f"{good:,}", f"{told:,}", f"{closed:,}", f"{seconds:.2f}")
        rows.append((f"{by}, {title}", *numbers, rest))
        if by == "glb":
            floor = partial(stage.promise, is_floor=True)
            floor(f"{title}: good replies to requests in flight", good, slow)
            floor(f"{title}: that tell Connection: close", told, slow)
            clean = "with close_notify" if is_tls else "by EOF"
            floor(f"{title}: idle ones closed, {clean}", closed, idle)
            stage.promise(f"{title}: s from the last reply to the end of stop", after, 1.0)
    head = ("server", "good replies", "told close", "clean closes", "s", "others")
    stage.tables.append(Table("Beside gevent's stop", head, rows))


def resets(stage: Stage, *, resets: int = 50_000, work: float = 0.002, part: int = 5_000) -> None:
    """What is left of clients that reset their connections?

    Half of them come to either kind of server, in parts, so that each has its answer in time.
    """
    half = resets // len(KINDS)
    for kind, title in KINDS.items():
        fates: Counter[str] = Counter()
        with stage.open(kind, work=work) as (server, client, port):
            options = {"place": port, "is_http": kind == "http", "seconds": work / 2}
            reset = partial(client.ask, "reset_many", **options)
            reset(resets=20)  # what the first connections bring stays
            before = settled(server, 0, 0.5)
            with stage.load(client, port, kind, f"{title}, good ones"):
                for first in range(0, half, part):
                    fates.update(reset(resets=min(part, half - first)))
            stage.promise(f"{title}: descriptors left", settled(server, before) - before)
            stage.promise(f"{title}: tracebacks", tracebacks(server.complaints()))
            stage.note(f"{title}: accepted, of all", sum(server.ask("accepted")))
        stage.note(f"{title}: could not reset", dict(fates))


#: One timer looks for all that are silent, each quarter of the time that they have: see
#: `glb.serve.idle`.
LATE: Final = 1.25

#: Server and client don't see a connection begin in the same moment.
EARLY: Final = 0.98


def silent(
    stage: Stage,
    *,
    rounds: int = 7,
    silent: int = 2_000,
    windows: int = 6,
    seconds: float = 0.6,
    deadline: float = 6.0,
    ratio: float = 2.0,
    slack: float = 0.0,
) -> None:
    """Do silent clients keep the others waiting, and are they gone in time?

    Good ones come alone, and then beside silent ones, in *windows* of *seconds*, which are over
    before *deadline*, ``--first-byte-timeout``. Each window has its p99, and the median counts:
    many short ones, since another process that takes the CPU for 4 ms makes the p99 of its window,
    and of the longer one as well. A client may see the end *slack* later than the server's.
    """
    p99: dict[str, list[float]] = {"alone": [], "beside them": []}
    waits: list[float] = []
    stayed: list[float] = []
    errors = served = 0
    words: tuple[Any, ...]
    words = ("--clones", max(4, stage.hubs), "--hubs", stage.hubs, "--first-byte-timeout", deadline)
    words += ("--bind", "127.0.0.1:0", "--max-connections", 2 * silent)
    with (
        tempfile.TemporaryDirectory() as folder,
        clients() as client,
        Serving(pathlib.Path(folder), *words) as server,
    ):
        good = Client(compile_programs(pathlib.Path(folder))[0], Cpus.available())
        port = int(server.place)

        def come(where: str, least: int = 0) -> None:
            nonlocal errors, served
            for _ in range(windows):
                load = good.run(
                    "open", port, seconds=seconds, rate=stage.rate, http=True, body=None
                )
                if descriptors(server) >= least:  # otherwise silent ones have begun to leave
                    p99[where].append(load.p99 / 1e3)
                errors += load.errors
                served += load.count

        come("alone")
        p99["alone"].clear()  # what the first ones load
        for _ in range(rounds):
            come("alone")
            client.ask("hold", place=port, count=silent)
            # Beside clients that are there: while they come they wait for each other.
            until = time.monotonic() + ANSWER_SECONDS
            while descriptors(server) < silent and time.monotonic() < until:
                time.sleep(0.02)  # another process doesn't tell of its descriptors
            # Time in the accept queue doesn't count: it is the machine's.
            accepted = time.monotonic()
            come("beside them", silent)
            most = 2 * deadline
            found = client.ask("let_go", at_most=most, within=most + ANSWER_SECONDS)
            waits += [wait for _, wait, _ in found]
            stayed.append(max(when for *_, when in found) - accepted)
        server.finish()
        log = server.complaints()
    medians = [statistics.median(each) for each in p99.values()]
    stage.promise("p99 of good ones beside them, by p99 alone", medians[1] / medians[0], ratio)
    stage.promise("good ones not served within a second", errors)
    stage.promise("silent ones that stayed", sum(wait >= 2 * deadline for wait in waits))
    limit = LATE * deadline + slack
    stage.promise("s from the last accept until the last was gone", max(stayed), limit)
    limit = EARLY * deadline
    stage.promise("s from connecting until the first was gone", min(waits), limit, is_floor=True)
    stage.promise("tracebacks", tracebacks(log))
    stage.note("good ones", served)
    for (where, some), median in zip(p99.items(), medians, strict=True):
        span = f"{median:.2f}, {min(some):.2f} to {max(some):.2f}"
        stage.note(f"p99 of the windows {where}, ms: median, span", span)


#: Longer than an episode lasts for the log after its last failure: see `glb.accept.dispatcher`.
CALM_SECONDS: Final = 1.5

#: A client that isn't greeted for so long won't be, before another leaves.
GREETING_SECONDS: Final = 0.03


def exhaustion(
    stage: Stage,
    *,
    rounds: int = 200,
    clients: int = 100,
    room: int = 50,
    clones: int = 8,
    seconds: float = 2.0,
) -> None:
    """Does a server that is out of descriptors come back by itself?

    More *clients* come than it has *room* for, and leave; in the last round after *seconds*. One of
    ten rounds is an episode of its own for the log, and not one with those before.
    """
    least, rows = room // 2, []
    for by, first in (("glb", 0), ("gevent", rounds)):
        greeted, served, waits, lines = [], [], [], [0]
        options: dict[str, Any] = {"clones": clones, "descriptors": room}
        with stage.open("hold", by=by, **options) as (server, client, port):
            for number in range(first, rounds + 1):
                if number and number % 10 == 0:
                    time.sleep(CALM_SECONDS)  # the next one is an episode of its own
                client.ask("hold", place=port, count=clients)
                out, until = -1, time.monotonic() + GIVE_UP_SECONDS
                # Until no more of them are greeted.
                while out != (now := client.ask("ended")) or (
                    now < least and time.monotonic() < until
                ):
                    out = now
                    time.sleep(GREETING_SECONDS)
                before = server.ask("cpu_seconds")
                time.sleep(seconds if number == rounds else 0)
                core = (server.ask("cpu_seconds") - before) / seconds
                left = time.monotonic()
                found = client.ask("let_go", at_most=GIVE_UP_SECONDS)
                whens = sorted(when for fate, _, when in found if fate == "greeted")
                greeted.append(out)
                served.append(len(whens))
                waits += [when - left for when in whens[out : out + 1]]
                lines.append(len(server.complaints()))
        said = [after - before for before, after in itertools.pairwise(lines)]
        rows.append((by, f"{said[-1]:,}", f"{core:.1%}", f"{served[-1]:,} of {clients:,}"))
        if by == "glb":
            floor = partial(stage.promise, limit=rounds + 1, is_floor=True)
            floor("rounds in which it was out", sum(least <= one < clients for one in greeted))
            floor("rounds after which all were served", served.count(clients))
            stage.promise("most log lines in a round", max(said), 1)
            stage.promise(f"of a core, while it is out for {seconds:g} s", core, 0.05)
            stage.note("log lines in all", lines[-1])
            stage.note("greeted before it was out", f"{min(greeted)} to {max(greeted)}")
            stage.note("longest until another was greeted, s", f"{max(waits, default=0):.3f}")
    head = ("out of descriptors", "log lines", "of a core", "clients served")
    stage.tables.append(Table(f"{clones} acceptors, for {seconds:g} s", head, rows))


def memory(
    stage: Stage, *, connections: int = 500_000, first: int = 50_000, concurrency: int = 64
) -> None:
    """Does a server grow with the connections that it has served?

    It has resident memory after all of them, beside that after the *first*.
    """
    sizes: list[float] = []
    errors = 0
    with tempfile.TemporaryDirectory() as folder, stage.open("greet") as (server, _, port):
        program, _ = compile_programs(pathlib.Path(folder))
        client = Client(program, Cpus.available())
        for served in range(0, connections, first):
            count = min(first, connections - served)
            errors += count - client.run("close", port, concurrency, count=count).count
            sizes.append(server.rss_mib())
        stage.promise("tracebacks", tracebacks(server.complaints()))
    stage.promise("MiB grown", round(sizes[-1] - sizes[0], 3), 2.0)
    stage.promise("connections without their byte", errors)
    stage.note("MiB, each time", " ".join(f"{size:.2f}" for size in sizes))


#: All, in the order of a run, with sizes that try each in a second or two.
SCENARIOS: Final[Mapping[Callable[..., None], Mapping[str, Any]]] = {
    rolls: {"times": 2},
    resize: {"times": 2},
    takeover: {"times": 2, "kept": 10, "kept_pause": 0.02},
    upgrade: {"times": 1},
    drain: {"slow": 10, "slow_seconds": 0.1, "idle": 20, "timeout": 2.0, "others": ()},
    resets: {"resets": 200},
    silent: {"rounds": 1, "silent": 50, "windows": 1, "deadline": 1.0, "ratio": 100, "slack": 1},
    exhaustion: {"rounds": 2, "clients": 30, "room": 15, "seconds": 0.5},
    memory: {"connections": 2_000, "first": 500, "concurrency": 16},
}

NAMES: Final = {scenario.__name__: scenario for scenario in SCENARIOS}


def first_line(scenario: Callable[..., None]) -> str:
    return (scenario.__doc__ or "").partition("\n")[0]


def play(name: str, tell: Tell, *, hubs: int = 1, is_quick: bool, **sizes: Any) -> Answer:
    """Return what the scenario of that *name* has found, with servers on so many *hubs*."""
    tell(name)
    scenario = NAMES[name]
    stage = Stage(hubs, 200.0, 0.005, 0.05) if is_quick else Stage(hubs)
    sizes = {
        **(scenario.__kwdefaults__ or {}),
        **(SCENARIOS[scenario] if is_quick else {}),
        **sizes,
    }
    scenario(stage, **sizes)
    words = ", ".join(f"{name} {size}" for name, size in sizes.items())
    question = f"{first_line(scenario)} {words}; {stage.rate:g}/s, hubs {hubs}"
    return Answer(question, stage.promises, stage.notes, stage.tables)


QUESTIONS = "\n".join(f"{name:11}{first_line(scenario)}" for name, scenario in NAMES.items())


@click.command(help=f"{__doc__}\n\n\b\n{QUESTIONS}")
@click.argument("names", metavar="[SCENARIO]...", nargs=-1, type=click.Choice([*NAMES]))
@click.option(
    "--hubs", type=click.IntRange(1, 16), default=1, show_default=True, help="Of servers."
)
@QUICK
@json_option("Write what was measured to this file.")
@click.pass_context
def main(
    context: click.Context,
    names: tuple[str, ...],
    hubs: int,
    quick: bool,
    file: pathlib.Path | None,
) -> None:
    wants_linux("/proc, CPU affinity")
    allow_descriptors()  # 2,000 silent clients have more than the 1,024 that are usual
    chosen = {
        name: partial(play, name, hubs=hubs, is_quick=quick)
        for name in NAMES
        if name in (names or NAMES)
    }
    heading = f"Over loopback; {Cpus.available().describe()}"
    command = command_line(context, "lossless")
    conduct(command, chosen, heading, file=file)


if __name__ == "__main__":
    main()
