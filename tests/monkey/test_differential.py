"""Sockets under `glb.monkey` do what they do under gevent alone: the same values, the same errors.

Random sequences of operations run in two child processes, and are compared operation by operation.
What may differ is which copy gets a connection. ``GLB_DIFFERENTIAL_SEED`` and
``GLB_DIFFERENTIAL_EXAMPLES`` choose others, and more; with ``GLB_DIFFERENTIAL_WILD`` set, also what
is known to differ (see `tamed`).
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.thorough

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "conformance" / "legacy" / "sequences.py"
SEED = int(os.environ.get("GLB_DIFFERENTIAL_SEED", "1"))
EXAMPLES = int(os.environ.get("GLB_DIFFERENTIAL_EXAMPLES", "150"))
WILD = bool(os.environ.get("GLB_DIFFERENTIAL_WILD"))
ANSWER_SECONDS = 20  # a sequence takes some milliseconds
UNDER_GEVENT = ["-m", "gevent.monkey"]
UNDER_GLB = ["-W", "error", "-m", "glb", "run"]

Operations = list[list[Any]]


class Child:
    """A process that runs sequences."""

    def __init__(self, command: list[str]) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", *command, str(PROGRAM)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors: list[str] = []
        self.reader = threading.Thread(target=self._read_errors)
        self.reader.start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        # `glb run` says in a line that these programs share no address.
        hint = "glb: no address is shared"
        self.errors.extend(line for line in self.process.stderr if not line.startswith(hint))

    def run(self, operations: Operations) -> dict[str, Any]:
        """Return what came of *operations*."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(operations) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], ANSWER_SECONDS)[0]:
            self.process.kill()
        line = self.process.stdout.readline()
        if not line:
            return {"results": ["no answer", *self.end()]}
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> list[str]:
        """Let it end, and return what it wrote to stderr."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return self.errors


# -- sequences ----------------------------------------------------------------------------------

V4_HOSTS = ["127.0.0.1", "localhost", "", "0.0.0.0", "bytearray/127.0.0.1", "bytes/127.0.0.1"]
V6_HOSTS = ["::", "::1", "::ffff:127.0.0.1", "", "localhost", "bytearray/::1"]
TARGETS = ["127.0.0.1", "127.0.0.2", "::1", "localhost"]
MALFORMED = ["one", "text port", "big port", "list", "text"]


def some_bind(chance: random.Random, number: int, family: str) -> list[Any]:
    hosts = V6_HOSTS if family == "AF_INET6" else V4_HOSTS
    if chance.random() < 0.04:
        hosts = V4_HOSTS + V6_HOSTS
    # Often the same: that is what this is about.
    host = hosts[0] if chance.random() < 0.5 else chance.choice(hosts)
    port = chance.choice(["a"] * 12 + ["b"] * 3 + [0])
    form = chance.choice(MALFORMED) if chance.random() < 0.03 else "pair"
    if family == "AF_INET6" and chance.random() < 0.3:
        form = "four"
    return ["bind", number, host, port, form]


def some_sequence(chance: random.Random) -> Operations:
    """Return operations on two to four sockets: first what opens them, then anything."""
    count = chance.randint(2, 4)
    family_of = ["AF_INET6" if chance.random() < 0.3 else "AF_INET" for _ in range(count)]
    if chance.random() < 0.6:
        family_of = family_of[:1] * count
    kind = "SOCK_DGRAM" if chance.random() < 0.12 else "SOCK_STREAM"
    operations: Operations = []
    for number in range(count):
        opening: Operations = [["socket", number, family_of[number], kind]]
        if chance.random() < 0.85:
            opening.append(["set", number, "reuse port", 1])
        if chance.random() < 0.3:
            opening.append(["set", number, "reuse address", 1])
        if chance.random() < 0.2:
            opening.append(["set", number, "v6 only", chance.randint(0, 1)])
        opening.append(some_bind(chance, number, family_of[number]))
        if chance.random() < 0.7:
            opening.append(["listen", number, *chance.choice([[], [0], [1], [5], [128], [-1]])])
        for operation in opening:
            operations.append(operation)
            if chance.random() < 0.1:
                operations.append(some_operation(chance, count, family_of))
    for _ in range(chance.randint(3, 16)):
        operations.append(some_operation(chance, count, family_of))
    return operations if WILD else tamed(operations)


def tamed(operations: Operations) -> Operations:
    """Return *operations* without those of which it is known that they differ.

    * A shutdown is the last of a socket. A clone that was shut down is still a clone, which may
      listen again, but not connect or be bound; and a duplicate of it is another clone, which
      isn't shut down with it. (Linux has a surprise of its own: shut down a socket that isn't
      connected, get an error, and what it accepts later can't be written to.)
    * A socket that is duplicated listens: of one that doesn't, only the object that listens is a
      clone.
    * Options are set before a socket listens, and not read then: clones have them in common,
      those of the first.
    """
    found: Operations = []
    listening: set[int] = set()
    have_duplicates = any(operation[0] in ("dup", "fromfd") for operation in operations)
    for operation in operations:
        name, number, *rest = operation
        if name == "listen":
            listening.add(number)
        elif name == "socket":
            listening.discard(number)
        elif name in ("dup", "fromfd"):
            if number not in listening:
                continue
            listening.add(rest[0])
        elif number in listening and (
            name == "set" or (name == "get" and rest[0] in ("reuse address", "keep alive"))
        ):
            continue
        elif name == "shutdown":
            if not have_duplicates:
                found += [operation, ["accept", number], ["close", number]]
            continue
        found.append(operation)
    return found


def some_operation(chance: random.Random, count: int, family_of: list[str]) -> list[Any]:
    number = chance.randrange(count)
    other = chance.randrange(count)
    family = family_of[number]
    option = chance.choice(["reuse port"] * 3 + ["reuse address", "v6 only", "keep alive"])
    asked = chance.choice([option, "listens", "listens", "type", "domain", "error"])
    kind = "SOCK_DGRAM" if chance.random() < 0.1 else "SOCK_STREAM"
    target = chance.choice(TARGETS)
    weighted: list[tuple[int, list[Any]]] = [
        (4, ["socket", number, family, kind]),
        (5, ["set", number, option, chance.randint(0, 1)]),
        (5, ["get", number, asked]),
        (8, some_bind(chance, number, family)),
        (8, ["listen", number, *chance.choice([[], [0], [3], [128], [-5]])]),
        (4, ["getsockname", number]),
        (2, ["getpeername", number]),
        (3, ["describe", number]),
        (4, ["shutdown", number, chance.randint(0, 2)]),
        (3, ["ready", number]),
        (3, ["poll", number]),
        (4, ["accept", number]),
        (4, ["connect", number]),
        (4, ["dup", number, other]),
        (3, ["fromfd", number, other]),
        (3, ["detach and close", number]),
        (4, ["detach and adopt", number]),
        (8, ["close", number]),
        (12, ["exchange", target, chance.choice("aaaab")]),
        (2, ["datagram", target, "a"]),
    ]
    weights, choices = zip(*weighted, strict=True)
    found: list[Any] = chance.choices(choices, weights)[0]
    return found


# -- comparison ---------------------------------------------------------------------------------


class Pair:
    """The two processes; a new one for each that has ended."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.start()

    def start(self) -> None:
        self.children = [Child(UNDER_GEVENT), Child(UNDER_GLB)]

    def run(self, operations: Operations) -> list[dict[str, Any]]:
        found = [each.run(operations) for each in self.children]
        if any(each.process.poll() is not None for each in self.children):
            self.end()
            self.start()
        return found

    def differ(self, operations: Operations) -> bool:
        """Return True if the two differ, or leave something."""
        gevents, ours = self.run(operations)
        return gevents != ours or not all(ours.values())

    def end(self) -> list[list[str]]:
        return [each.end() for each in self.children]

    def shortened(self, operations: Operations) -> Operations:
        """Return what still differs when no operation more can be left out."""
        size = len(operations) // 2
        while size:
            start = 0
            while start < len(operations):
                fewer = operations[:start] + operations[start + size :]
                if self.differ(fewer):
                    operations = fewer
                else:
                    start += size
            size //= 2
        return operations

    def explain(self, operations: Operations) -> str:
        gevents, ours = self.run(operations)
        lines = []
        left, right = gevents.pop("results"), ours.pop("results")
        for operation, one, two in zip(operations, left, right, strict=False):
            mark = " " if one == two else "!"
            lines.append(f"{mark} {operation}: {one}" + (f", and ours: {two}" * (one != two)))
        if len(left) != len(right):
            lines.append(f"{left}\n{right}")
        return "\n".join([*lines, f"gevent: {gevents}", f"ours: {ours}"])


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    try:
        yield made
    finally:
        made.end()


def test_every_operation_does_the_same(pair: Pair) -> None:
    """Values, errors, and that nothing is left when all is closed: the same as gevent's."""
    chance = random.Random(SEED)
    for example in range(EXAMPLES):
        operations = some_sequence(chance)
        if pair.differ(operations):
            shorter = pair.shortened(operations)
            pytest.fail(f"seed {SEED}, example {example}:\n{pair.explain(shorter)}")
    assert pair.end()[1] == []


def opened(number: int) -> Operations:
    """Return what makes a socket that shares its address."""
    return [
        ["socket", number, "AF_INET", "SOCK_STREAM"],
        ["set", number, "reuse port", 1],
        ["bind", number, "127.0.0.1", "a"],
    ]


FOUND_ONCE: dict[str, Operations] = {
    "a connected socket can't listen": [
        *opened(0),
        *opened(1),
        ["listen", 0],
        ["connect", 1],
        ["listen", 1],
        ["getpeername", 1],
    ],
}


@pytest.mark.parametrize("name", FOUND_ONCE)
def test_what_differed_once_does_the_same(name: str, pair: Pair) -> None:
    """What the test above, or its wild brother, found in other runs."""
    if pair.differ(FOUND_ONCE[name]):
        pytest.fail(pair.explain(FOUND_ONCE[name]))
