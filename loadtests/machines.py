"""Are all hosts behind a load balancer deployed without one failed request?

    python -m loadtests.machines [deploy] [locust] --balancer haproxy --requests 10000 --rate 300

Three hosts in network namespaces run `glb serve` behind HAProxy or Envoy, with the configuration of
docs/many-machines.md. deploy: all are replaced, one after the other, while clients on two more
hosts make requests; each reply must be a 200 with the client's own address. locust: a master and
two workers, on three hosts; the turns of all clones may differ by 1. Exit status 0 only if every
promise was kept.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from loadtests.frame.command import QUICK, Tell, command_line, conduct
from loadtests.frame.process import ROOT, Process
from loadtests.frame.sheet import Answer, Promise
from loadtests.frame.traffic import GOOD, Visit
from loadtests.frame.worker import ANSWER_SECONDS, Worker
from loadtests.lossless.stage import Serving

# -- hosts: network namespaces, joined by a bridge ----------------------------------------------
#
# `enter` starts the program anew, as the first process of namespaces of its own for processes,
# mounts and the network. When that process ends, however it ends, the kernel kills all others in
# there, and then nothing holds the namespaces, links and mounts any more. So a run has no names and
# no addresses in common with the machine or with another run, and leaves nothing behind, not even
# if it is killed.

#: Of a run, on a file system of its own.
FOLDER: Final = Path("/run/machines")

#: Set in the namespaces alone.
ENTERED: Final = "GLB_MACHINES_ENTERED"

UNSHARE: Final = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")

#: Root needs no more. Others are root in a user namespace, where the machine allows it.
USERS: Final = ((), ("--user", "--map-root-user"))

#: Debian has `ip` and HAProxy there, and a user's PATH may not; PyPI's Envoy is beside Python.
PATH: Final = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
)

#: What a run will do, tried before.
TRIAL: Final = """
set -e
mount -t tmpfs tmpfs /run
ip netns add host
ip link add switch type bridge
ip link add port type veth peer name eth0 netns host
ip netns exec host true
"""


def enter(arguments: Sequence[str]) -> None:
    """Start Python with *arguments* in namespaces of its own, in place of this program.

    Raises:
        RuntimeError: This machine doesn't allow it; says why.
    """
    command = unsharing()
    python_path = os.pathsep.join([str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PATH": PATH, "PYTHONPATH": python_path, ENTERED: "1"}
    sys.stdout.flush()
    os.execvpe(command[0], [*command, sys.executable, *arguments], environ)


def unsharing() -> list[str]:
    """Return the command that has a program run in namespaces of its own. Raises as `enter`."""
    for needed in ("unshare", "ip", "mount"):
        if shutil.which(needed, path=PATH) is None:
            raise RuntimeError(f"needs the program {needed!r} (Debian's util-linux, iproute2)")
    said = ""
    for user in USERS:
        command = [*UNSHARE, *user]
        try:
            _run(*command, "sh", "-c", TRIAL)
        except RuntimeError as error:
            said = str(error).rpartition("\n")[2]
        else:
            return command
    raise RuntimeError(f"this machine doesn't allow network namespaces: {said}")


def set_up(address: str) -> None:
    """Make the bridge, and have this process at it, with that address."""
    assert ENTERED in os.environ, "the machine's own network stays as it is"
    _run("mount", "-t", "tmpfs", "tmpfs", "/run")
    FOLDER.mkdir()
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "switch", "type", "bridge")
    _run("ip", "addr", "add", f"{address}/24", "dev", "switch")
    _run("ip", "link", "set", "switch", "up")


class Host:
    """A host that has just been plugged into the bridge."""

    def __init__(self, name: str, address: str) -> None:
        self.name: Final = name
        self.address: Final = address
        #: Has the command that follows run here, in the same process.
        self.enters: Final = ("ip", "netns", "exec", name, "env", f"HOST={name}")
        _run("ip", "netns", "add", name)
        cable = ("ip", "link", "add", f"port-{name}", "type", "veth")
        _run(*cable, "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", f"port-{name}", "master", "switch", "up")
        _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _run("ip", "-n", name, "link", "set", link, "up")


def _run(*command: str) -> None:
    environ = {**os.environ, "PATH": PATH}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr.strip().partition(chr(10))[0]}")


# -- what runs on them: `glb serve` and the balancer, with the files of docs/many-machines.md -----

PAGE: Final = ROOT / "docs" / "many-machines.md"

#: The balancer's address. It runs beside the bridge, in the run's own namespace.
FRONT: Final = "10.0.0.2"

#: How long anything may take that a run waits for, in seconds: longer than a drain of the page's.
GIVE_UP_SECONDS: Final = 60.0


def write(name: str, folder: Path, changes: Mapping[str, str]) -> Path:
    """Write the page's file *name* into *folder*, with *changes*: what is there, what a run has.

    It is the block that follows a line which ends with its name and a colon.
    """
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"`{name}`:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{PAGE.name} has no block that is {name}")
    text = found[1]
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"{PAGE.name} has no {old!r} in {name}")
        text = text.replace(old, new)
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def fetch(port: int, asks: str) -> str:
    """Return what is said at *port* until the end; "" if nothing listens yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(asks.encode())
            return sock.makefile().read()
    except OSError:
        return ""


@dataclass(frozen=True)
class Kind:
    """What hosts serve by a *file* of the page's, and balancers have as a *backend*, in *front*."""

    backend: str
    file: str
    front: str


WEB: Final = Kind("web", "glb.toml", f"http://{FRONT}:80")
STREAM: Final = Kind("stream", "stream.toml", f"tcp://{FRONT}:7000")


@dataclass(frozen=True)
class Balancer:
    """A load balancer.

    Attributes:
        changes: Of the page's file: nothing may be tried again, or a loss isn't seen.
        quick: What a quick run changes beside.
        kinds: What its file has backends for.
        asks: What to send to its *admin* port.
        up: Matches what is said there of a host that is up, and gets its whole share, if it
            *is_exact*; and otherwise before slow start.
        is_exact: It goes round the hosts in exact turn.
    """

    command: tuple[str, ...]
    file: str
    changes: Mapping[str, str]
    quick: Mapping[str, str]
    kinds: Sequence[Kind]
    admin: int
    asks: str
    up: str
    is_exact: bool


class Site:
    """Three hosts that serve, with *changes* of their files; *balancer*; three hosts of clients."""

    def __init__(self, balancer: Balancer, changes: Mapping[str, str], is_quick: bool) -> None:
        set_up(FRONT)
        served = "from loadtests.workers import echo as handle, http as application\n"
        (FOLDER / "app.py").write_text(served)
        self.balancer: Final = balancer
        self.is_quick: Final = is_quick
        self.webs: Final = [Host(f"web{number}", f"10.0.0.1{number}") for number in (1, 2, 3)]
        self.loads: Final = [Host(f"load{number}", f"10.0.0.2{number}") for number in range(3)]
        self._changes: Final = changes
        self._services: Final[dict[tuple[Kind, Host], Serving]] = {}
        for kind, host in itertools.product(balancer.kinds, self.webs):
            self._start(kind, host)
        changed = {**balancer.changes, **(balancer.quick if is_quick else {})}
        self._front: Final = Process(
            [*balancer.command, str(write(balancer.file, FOLDER, changed))]
        )
        for kind in balancer.kinds:
            self._wait_up(kind, *self.webs)

    def replace(self, kind: Kind, host: Host) -> tuple[int, int]:
        """Replace what serves there; return the old exit status and the new process's id."""
        status = self._services[kind, host].finish()
        self._start(kind, host)
        self._wait_up(kind, host)
        return status, self._services[kind, host].pid

    def _start(self, kind: Kind, host: Host) -> None:
        folder = FOLDER / f"{host.name}-{kind.backend}"
        folder.mkdir(exist_ok=True)
        config = write(kind.file, folder, self._changes)
        self._services[kind, host] = Serving(folder, "--config", config, before=host.enters)

    def _wait_up(self, kind: Kind, *hosts: Host) -> None:
        it, until = self.balancer, time.monotonic() + GIVE_UP_SECONDS
        lines = [it.up.format(kind.backend, host.name, host.address) for host in hosts]
        while True:
            said = fetch(it.admin, it.asks)
            if all(re.search(line, said, re.MULTILINE) for line in lines):
                return
            if not self._front.is_running() or time.monotonic() > until:
                raise RuntimeError(f"{lines} are not up: {self._front.last_words()}")
            time.sleep(0.02)


HAPROXY: Final = Balancer(
    ("haproxy", "-db", "-f"),
    "haproxy.cfg",
    changes={"retries 2": "retries 0"},
    quick={"inter 1s": "inter 100ms", "slowstart 10s": "slowstart 500ms"},
    kinds=(WEB, STREAM),
    admin=9999,
    asks="show stat\n",
    up="^{0},{1},.*,UP,100,",
    is_exact=True,
)

ENVOY: Final = Balancer(
    ("envoy", "--concurrency", "2", "--log-level", "error", "--base-id", "1", "-c"),
    "envoy.yaml",
    changes={"num_retries: 2": "num_retries: 0"},
    quick={
        "interval: 1s": "interval: 0.1s",
        "window: 10s": "window: 0.5s",
        # What checks find becomes known a second later, unless it is 0.
        "{value: 0}}": "{value: 0}, update_merge_window: 0s}",
    },
    kinds=(WEB,),
    admin=9901,
    asks="GET /clusters HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    up="^{0}::{2}:8000::health_flags::healthy",
    is_exact=False,  # each of its threads goes round by itself
)

BALANCERS: Final = {"haproxy": HAPROXY, "envoy": ENVOY}

# -- what is asked ------------------------------------------------------------------------------

#: So many connections of a host's clients are kept; half of the requests are theirs. Of the others
#: each so manieth takes half a second, and is in flight when its host is stopped.
KEPT: Final = 10
SLOW_EACH: Final = 50

#: In the first quarter of slow start a host gets at most this part of an equal share. An eighth is
#: what a weight that rises evenly comes to; without slow start it is 1.
SLOW_START_SHARE: Final = 0.8


def deploy(tell: Tell, site: Site, requests: int, rate: float) -> Answer:
    """Deploy all again and again, until so many requests have been due: at least once."""
    tell("deploy")
    slow_start = 0.5 if site.is_quick else 10.0  # the page's
    clients = [
        Worker("loadtests.frame.traffic", python=(*host.enters, sys.executable))
        for host in site.loads[1:]
    ]
    each = rate / len(clients) / 2
    to: dict[str, Any] = {"place": (FRONT, 80), "names_us": True}
    for client in clients:
        client.ask("arrive", **to, rate=each, is_http=True, slow_each=SLOW_EACH)
        client.ask("keep", **to, clients=KEPT, pause=KEPT / each)
        client.ask("come", count=20)
    rounds, bad_ends, started, began = 0, 0, [], time.monotonic()
    while rounds == 0 or (time.monotonic() - began) * rate < requests:
        for host in site.webs:
            status, process = site.replace(WEB, host)
            bad_ends += status != 0
            started.append(str(process))
            if not site.balancer.is_exact:
                time.sleep(slow_start)
        rounds += 1
    found = [client.ask("depart", within=2 * ANSWER_SECONDS) for client in clients]
    seconds = time.monotonic() - began
    visits = [Visit(*visit) for some in found for visit in some["visits"]]
    fates = Counter(visit.fate for visit in visits)
    fates["idle, and closed"] = sum(some["counts"].get("met the end", 0) for some in found)
    lost = {fate: count for fate, count in fates.items() if count and fate != GOOD}
    good = [visit for visit in visits if visit.fate == GOOD]
    processes = Counter(host for host, *_ in {(*visit.words[1:],) for visit in good})
    least = min(processes[host.name] for host in site.webs)
    most = max(share(good, process, slow_start / 4, len(site.webs)) for process in started)
    return Answer(
        "Is a request lost in a rolling deploy of all hosts?",
        [
            Promise("requests that failed", sum(lost.values())),
            Promise("requests", len(visits), requests, is_floor=True),
            Promise("processes of a host that replied", least, rounds + 1, is_floor=True),
            Promise("ends with a status but 0", bad_ends),
            Promise("part of an equal share as slow start begins", most, SLOW_START_SHARE),
        ],
        [
            ("requests a second", f"{len(visits) / seconds:,.0f}"),
            ("seconds of a deploy of all", f"{seconds / rounds:.1f}"),
            *((f"failed: {fate}", f"{count:,}") for fate, count in lost.items()),
        ],
    )


def share(replies: Sequence[Visit], process: str, seconds: float, hosts: int) -> float:
    """Return what part of an equal share of *hosts* a *process* had in its first *seconds*."""
    # Without a reply it has no share: that one is missing is a promise of its own.
    first = min((each.left for each in replies if each.words[2] == process), default=0)
    early = [each.words[2] for each in replies if 0 <= each.left - first < seconds * 1e9]
    return early.count(process) / len(early) * hosts if early else 0.0


#: Turns of all clones differ by no more, if the balancer goes round the hosts exactly.
EXACT: Final = ("--balance-max-spread", "1")

#: Of what can't be exact.
FAIR: Final = ("--balance-min-jain", "0.98")

#: Locustfiles that take a server which isn't their own: what they load, and their gates.
LOCUSTFILES: Final = {
    "http.py": (WEB, EXACT),
    "balance.py": (STREAM, EXACT),
    # A connection that is reset before its reply had a turn too, of a clone that isn't known.
    "churn.py": (STREAM, FAIR),
}


def locust(tell: Tell, site: Site) -> Answer:
    """Run a master and workers, on hosts of their own, against the balancer."""
    seconds = 1 if site.is_quick else 10
    load = ("--headless", "-u", "24", "-r", "24", "-t", f"{seconds}s", "--only-summary")
    master, *workers = site.loads
    lead = ("--master", "--expect-workers", str(len(workers)), "--max-fail-ratio", "0")
    follow = ("--worker", "--master-host", master.address)
    promises, notes = [], []
    for name, (kind, gates) in LOCUSTFILES.items():
        if kind not in site.balancer.kinds:
            continue
        tell(f"locust: {name}")
        locust = (sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests/locust" / name))
        some = gates if site.balancer.is_exact else FAIR
        command = [*master.enters, *locust, *lead, *load, "--host", kind.front, *some]
        leader = Process(["sh", "-c", 'exec "$@" >&2', "sh", *command])
        others = [Process([*each.enters, *locust, *follow]) for each in workers]
        status, *_ = [each.status(GIVE_UP_SECONDS) for each in (leader, *others)]
        words = leader.said()
        balances = re.findall(r"^.*\d+ turns of \d+ clones: .*$", words, re.MULTILINE)
        if not balances:
            raise RuntimeError(f"locust tells of no balance: {words}")
        promises.append(Promise(f"{name}: exit status", status))
        notes.append((name, balances[-1]))
    return Answer("Do locust's gates hold through the balancer?", promises, notes)


@click.command(help=__doc__)
@click.argument("what", nargs=-1, type=click.Choice(["deploy", "locust"]))
@click.option("--balancer", type=click.Choice([*BALANCERS]), default="haproxy", show_default=True)
@click.option(
    "--requests",
    type=click.IntRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    help="All hosts are deployed again and again, until so many were made: at least once.",
)
@click.option("--rate", type=click.FloatRange(10, 2000), default=300, show_default=True)
@click.option(
    "--drain-delay",
    type=click.FloatRange(0, 60),
    help="In place of the page's: with 0, requests fail.",
)
@QUICK
@click.pass_context
def main(
    context: click.Context,
    what: tuple[str, ...],
    balancer: str,
    requests: int,
    rate: float,
    drain_delay: float | None,
    quick: bool,
) -> None:
    # It isn't imported: that would patch the process.
    has_locust = importlib.util.find_spec("locust") is not None
    for needed, is_there in {
        balancer: shutil.which(balancer, path=PATH),
        "locust": has_locust,
    }.items():
        if not is_there and needed in (balancer, *what):
            raise click.ClickException(f"{needed} isn't installed")
    if ENTERED not in os.environ:
        try:
            enter(["-m", "loadtests.machines", *sys.argv[1:]])
        except RuntimeError as error:
            raise click.ClickException(str(error)) from None
    delay = 0.8 if quick and drain_delay is None else drain_delay  # a quick run's checks take 0.2
    changes = {} if delay is None else {"drain-delay = 5.0": f"drain-delay = {delay}"}
    site = Site(BALANCERS[balancer], changes, quick)
    # locust first: a balancer makes up for what a new process has missed, and then turns differ.
    asks = {
        "locust": lambda tell: locust(tell, site),
        "deploy": lambda tell: deploy(tell, site, requests, rate),
    }
    chosen = [name for name in asks if name in (what or ("deploy", "locust")[: 1 + has_locust])]
    heading = f"Hosts in network namespaces, behind {balancer}"
    conduct(command_line(context, "machines"), {name: asks[name] for name in chosen}, heading)


if __name__ == "__main__":
    main()
