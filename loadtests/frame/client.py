"""The client: `client.c`, compiled and run. And the C loop, compiled beside it."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from loadtests.bench.servers.job import REPLY

from .figures import CLIENT_BUSY, RATE, SERVER_BUSY, Figure
from .process import Cpus, pinned

#: When a load is given up, in seconds: the slowest contender takes 3 for 10,000 connections.
GIVE_UP_SECONDS: Final = 30

#: Requests of a connection that are not in the latencies: while a connection is new, Linux
#: acknowledges at once, for 16 segments.
QUICK_ACKS: Final = 16

#: What a browser says beside Host and Connection: with them there are 10 headers.
BROWSER: Final = (
    "Upgrade-Insecure-Requests: 1\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    "Accept-Language: en-US,en;q=0.5\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: none\r\n"
)
CLOSE: Final = "Connection: close\r\n"
KEEP: Final = "Connection: keep-alive\r\n"


def request(more: str = "") -> str:
    """Return a request with *more* headers than Host."""
    return f"GET / HTTP/1.1\r\nHost: bench\r\n{more}\r\n"


Mode = Literal["close", "keep", "open"]


class Served(NamedTuple):
    """One connection of a load: when it was due and when it was answered, and by which clone.

    In nanoseconds of the clock of `time.monotonic_ns`, which is that of all processes here.
    """

    due: int
    answered: int
    clone: int


@dataclass(frozen=True)
class Load:
    """What the client saw of one load: counts, seconds, and latencies in microseconds."""

    count: int
    errors: int
    seconds: float
    cpu_seconds: float
    p50: float
    p99: float
    p999: float
    #: CPU time of the server for it: see `Experiment.load`.
    server_seconds: float = 0.0
    #: Each connection, if these were to be noted, in the order in which they were due.
    connections: Sequence[Served] = field(default=(), repr=False)

    @property
    def price(self) -> float:
        """The server's CPU a connection or request, in us."""
        return self.server_seconds / self.count * 1e6

    def rate(self) -> dict[Figure, float]:
        """Return connections a second, and how busy that kept both sides."""
        return {
            RATE: self.count / self.seconds,
            SERVER_BUSY: self.server_seconds / self.seconds * 100,
            CLIENT_BUSY: self.cpu_seconds / self.seconds * 100,
        }


class Client:
    """Puts load on a port of 127.0.0.1, from one thread on the client's CPUs."""

    def __init__(self, program: pathlib.Path, cpus: Cpus) -> None:
        self._program = program
        self._cpus = cpus

    def run(
        self,
        mode: Mode,
        port: int,
        concurrency: int = 1,
        *,
        count: int = 0,
        seconds: float = GIVE_UP_SECONDS,
        rate: float = 0,
        http: bool = False,
        more: str = "",
        body: str | None = REPLY.decode(),
        is_noted: bool = False,
    ) -> Load:
        """Connect, have a reply and close, but for "keep": `client.c` explains the modes.

        Args:
            concurrency: Connections at a time; but for "open".
            count: Of connections to "close".
            seconds: How long connections "open", or are asked again: "keep".
            rate: Of connections that "open" in a second, answered or not.
            more: Headers beside Host, and Connection where it is to be closed.
            body: Of the reply; any if ``None``.
            is_noted: Servers reply with the number of their clone, and connections are returned.
        """
        command = [str(self._program), "-m", mode, "-p", str(port), "-c", str(concurrency)]
        command += ["-t", str(seconds), "-n", str(count), "-r", str(rate), "-s", str(QUICK_ACKS)]
        # What has to come back, all of it, and what to send over HTTP.
        command += ["-e", "HTTP/1.1 200" if http else "" if is_noted else REPLY.decode()]
        if http:
            sent = request(more if mode == "keep" else CLOSE + more)
            command += ["-q", sent, *([] if body is None else ["-b", body])]
        with tempfile.NamedTemporaryFile("r") as file, pinned(self._cpus.client):
            command += ["-w", file.name] if is_noted else []
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds + 30, check=False
            )
            noted = sorted(Served(*map(int, line.split())) for line in file)
        if done.returncode != 0:
            raise RuntimeError(f"the client failed: {done.stderr.strip()}")
        return Load(**json.loads(done.stdout), connections=noted)


def exchange(port: int, text: str = "", *, source: str = "127.0.0.1") -> list[str]:
    """Connect, send *text*, and return the words of the reply, up to its end."""
    address = ("127.0.0.1", port)
    with socket.create_connection(address, GIVE_UP_SECONDS, (source, 0)) as sock:
        sock.sendall(text.encode())
        reply = b""
        while piece := sock.recv(4096):
            reply += piece
    return reply.decode().split()


def compile_programs(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Compile client and C loop into *folder*, by ``$CC`` or ``cc``; return where they are."""
    programs = folder / "client", folder / "server"
    for program in programs:
        source = pathlib.Path(__file__).with_name(f"{program.name}.c")
        compiler = shlex.split(os.environ.get("CC", "cc"))
        subprocess.run([*compiler, "-O2", "-o", str(program), str(source)], check=True)
    return programs
