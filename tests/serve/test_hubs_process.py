"""Servers of several hubs in whole processes: how these end, fork, and are monkey-patched.

Each test runs a child, for what it does to itself. Nothing in a child sleeps and hopes: it
goes on by what it reads from sockets and pipes.

GLB_EXIT_ROUNDS is how often a process ends in each of the ways; 200 find what 5 don't.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

pytestmark = pytest.mark.process

ROUNDS: Final = int(os.environ.get("GLB_EXIT_ROUNDS", "5"))

#: So many children at a time. More of them than processors make races likelier.
AT_A_TIME: Final = int(os.environ.get("GLB_EXIT_AT_A_TIME", "8"))

#: How long a child may take, in seconds: it takes well under one, alone on a machine.
CHILD_SECONDS: Final = 30


def start(program: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", program, *args],
        # What a process that ends in the middle of its work leaves open is not the question.
        env={**os.environ, "PYTHONDEVMODE": "", "PYTHONWARNINGS": "ignore"},
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return exit status, output and errors of *child*; one that hangs says where."""
    try:
        output, errors = child.communicate(timeout=CHILD_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGABRT)  # faulthandler's report, of a fork's child as well
        output, errors = child.communicate(timeout=CHILD_SECONDS)
        pytest.fail(f"the child hangs: {output[-1000:]}\n{errors[-4000:]}")
    return child.returncode, output, errors


def tell(program: str, *args: str) -> Any:
    """Run *program*, which ends well and has nothing to complain of; return what it printed."""
    status, output, errors = finish(start(program, *args))
    assert (status, errors) == (0, ""), f"{status}: {output[-1000:]}\n{errors[-4000:]}"
    return json.loads(output)


# -- the end ----------------------------------------------------------------------------------

# Six handlers, two a hub, are in the middle of something as the process ends.
ENDS = """
import os, signal, sys, time
import gevent
from gevent import socket
from glb.server import StreamServer

how, *whats = sys.argv[1:]

def handle(sock, peer):
    what = sock.recv(1)
    here = gevent.get_hub() is not home
    sock.sendall(b"+" if here else b"-")
    if what == b"x" and here:
        sys.exit(4)
    # Not sleep(0): its loop looks at I/O after 50 callbacks that take long, and not before.
    while what == b"r":  # run
        sum(range(100))
        gevent.sleep(0.0001)
    while what == b"b":  # block in C
        time.sleep(0.02)
        gevent.sleep(0.0001)
    while what == b"c":  # have all hubs at work
        try:
            client = socket.create_connection(server.address)
        except RuntimeError:
            return  # gevent's resolver can't start its thread any more, since Python 3.12
        with client:
            client.sendall(b"i")
            while client.recv(1):
                pass
    if what == b"w":  # wait
        gevent.sleep(100)

home = gevent.get_hub()
# Where another hub has to answer, that all of them block is not the question.
patience = 30 if how == "another hub exits" else None
server = StreamServer(("127.0.0.1", 0), handle, clones=3, hubs=3, patience=patience)
server.start()
clients = []

def ask(what):
    clients.append(socket.create_connection(server.address))
    clients[-1].sendall(what)
    return clients[-1].recv(1)

for count in range(6):
    ask(whats[count % len(whats)].encode())
if how == "exits":
    sys.exit(3)
if how == "raises":
    raise LookupError("on purpose")
if how == "another hub exits":
    while ask(b"x") == b"-":
        pass
if how == "terminated":
    os.kill(os.getpid(), signal.SIGTERM)
if how == "interrupted":
    os.kill(os.getpid(), signal.SIGINT)
if how != "falls off":
    gevent.sleep(100)
    os._exit(99)
"""

#: What the handlers do: idle, run, block, wait, connect.
WHATS: Final = [["i"], ["r"], ["b"], ["w"], ["c"], ["r", "b", "w", "c", "i"]]


@pytest.mark.parametrize(
    ("how", "status", "last_words"),
    [
        ("falls off", 0, ""),
        ("exits", 3, ""),
        ("raises", 1, "LookupError: on purpose"),
        ("another hub exits", 4, ""),
        ("terminated", -signal.SIGTERM, ""),
        ("interrupted", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_a_process_ends_with_its_own_status_and_last_words(
    how: str, status: int, last_words: str
) -> None:
    """Whatever its hubs are at: no crash, no hang, no word but what ended it."""
    jobs = [WHATS[count % len(WHATS)] for count in range(max(ROUNDS, len(WHATS)))]
    wrong = []
    for first in range(0, len(jobs), AT_A_TIME):
        some = jobs[first : first + AT_A_TIME]
        children = [start(ENDS, how, *whats) for whats in some]
        for whats, child in zip(some, children, strict=True):
            found, _, errors = finish(child)
            is_quiet = errors.count("Traceback") <= 1 and "Fatal" not in errors
            words = errors.rstrip().rpartition("\n")[2]
            if found != status or words != last_words or not is_quiet:
                wrong.append((whats, found, errors[-3000:]))
    assert not wrong, f"{len(wrong)} of {len(jobs)} ends: {wrong[:3]}"


# Each of two hubs has two handlers that take 20 ms of each round of its loop, so both are late
# whenever the watchdog looks. The client has a hub of its own, in a thread.
BUSY = """
import json, os, threading, time
import gevent
from gevent import socket
from glb.server import StreamServer

def handle(sock, peer):
    what = sock.recv(1)
    sock.sendall(b"+")
    while what == b"b":
        time.sleep(0.02)
        gevent.sleep(0.0001)

def be_client():
    for what in b"bbbbs":
        clients.append(socket.create_connection(server.address, 20))
        clients[-1].sendall(bytes([what]))
        try:
            got.append(clients[-1].recv(1).decode())
        except TimeoutError:
            got.append("nothing")
    os.write(1, json.dumps(got).encode())
    os._exit(0)

clients, got = [], []
server = StreamServer(("127.0.0.1", 0), handle, clones=2, hubs=2)
server.start()
threading.Thread(target=be_client).start()
gevent.sleep(100)
"""


def test_a_connection_is_served_though_all_hubs_are_late() -> None:
    """Taking it back from each in turn would be no help: one of them has to have it."""
    assert tell(BUSY) == ["+"] * 5


# -- fork -------------------------------------------------------------------------------------

# What the programs below begin with. A parent and its child send each other lines by pipes.
FORKS = """
import json, multiprocessing, os, sys, threading, time
import gevent, gevent.os
from gevent import socket
import glb
from glb.accept.registry import REGISTRY
from glb.hubs.threads import EXIT_SECONDS
from glb.server import StreamServer

HOW = sys.argv[1]
answers, questions = os.pipe(), os.pipe()
report = {}

def handle(sock, peer):
    sock.sendall(b"%d %d" % (glb.current_clone(), os.getpid()))

def ask(count):
    # The clones that served, and whether each reply is this process's own.
    found = []
    for _ in range(count):
        with socket.create_connection(server.address, 20) as client:
            found.append([int(part) for part in client.makefile().read().split()])
    return [clone for clone, _ in found], all(pid == os.getpid() for _, pid in found)

def read_line(pipe):
    # The hub turns meanwhile; it ends with the other process, too.
    data = b""
    while not data.endswith(b"\\\\n"):
        more = gevent.os.tp_read(pipe[0], 1)
        if not more:
            os._exit(98)
        data += more
    return data.decode().strip()

def write_line(pipe, line):
    os.write(pipe[1], line.encode() + b"\\\\n")

def fork(child):
    # Run child() in one, to its end, and return a function that waits for it.
    # Without monkey patching, gevent asks a child that it didn't fork itself for `reinit`.
    def reinit_first():
        gevent.reinit()
        child()
    if HOW == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=reinit_first)
        process.start()
        return lambda: (process.join(30), process.exitcode)[1]
    forks = {"os.fork": os.fork, "gevent.fork": gevent.fork, "fork_gevent": gevent.os.fork_gevent}
    pid = forks[HOW]()
    if pid == 0:
        (reinit_first if HOW == "os.fork" else child)()
        sys.exit(0)
    # gevent reaps the children that it forked itself.
    waitpid = gevent.os.waitpid if HOW == "gevent.fork" else os.waitpid
    return lambda: os.waitstatus_to_exitcode(waitpid(pid, 0)[1])

def ready():
    return [clone.ready for clone in server.clone_stats()]

def clones_open():
    return [entry.clones for entry in glb.registry.entries()]
""".replace("\\\\", "\\")

FORK_STARTED = (
    FORKS
    + """
def child():
    REGISTRY.check()
    found = {"ready": ready(), "open": clones_open()}
    write_line(questions, "stop")
    assert read_line(answers) == "stopped"
    found["asked"] = ask(6)
    found["hubs"] = sorted({clone.hub for clone in server.clone_stats() if clone.accepted})
    begun = time.monotonic()
    server.stop()
    found["quick"] = time.monotonic() - begun < EXIT_SECONDS
    found["after"] = [clones_open(), ready()]
    write_line(questions, json.dumps(found))

server = StreamServer(("127.0.0.1", 0), handle, clones=6, hubs=3, patience=30)
server.start()
report["before"] = ask(7)
wait = fork(child)
assert read_line(questions) == "stop"
server.stop_accepting()
write_line(answers, "stopped")
report["child"] = json.loads(read_line(questions))
report["status"] = wait()
server.start_accepting()
report["ready"], report["open"] = ready(), clones_open()
report["asked"] = ask(12)
server.stop()
report["left"] = [clones_open(), threading.active_count()]
print(json.dumps(report))
"""
)

FORKS_BY: Final = ["os.fork", "gevent.fork", "multiprocessing"]


@pytest.mark.parametrize("how", FORKS_BY)
def test_a_forked_child_serves_with_the_clones_of_the_hub_that_forked(how: str) -> None:
    """Exact turns over those alone; the others are gone there. The parent goes on exactly."""
    report = tell(FORK_STARTED, how)
    assert report["before"] == [[0, 1, 2, 3, 4, 5, 0], True]
    child = report["child"]
    assert child["open"] == [2]
    assert child["ready"] == [True, False, False, True, False, False]
    order, is_own = child["asked"]
    assert is_own
    assert order in ([0, 3] * 3, [3, 0] * 3)
    assert child["quick"]
    assert child["after"] == [[], [False] * 6]
    assert report["status"] == 0
    assert (report["ready"], report["open"]) == ([True] * 6, [6])
    order, is_own = report["asked"]
    assert is_own
    assert order == [(order[0] + count) % 6 for count in range(12)]
    assert report["left"] == [[], 1]


FORK_BEFORE_START = (
    FORKS
    + """
def child():
    REGISTRY.check()
    server.start()
    found = {"ready": ready(), "open": clones_open(), "asked": ask(6)}
    server.stop()
    found["left"] = [clones_open(), len(glb.hubs.threads._running)]
    write_line(questions, json.dumps(found))

server = StreamServer(("127.0.0.1", 0), handle, clones=6, hubs=3, patience=30)
server.init_socket()
wait = fork(child)
report["child"] = json.loads(read_line(questions))
report["status"] = wait()
server.start()
report["asked"] = ask(12)
server.stop()
report["left"] = [clones_open(), len(glb.hubs.threads._running)]
print(json.dumps(report))
"""
)


@pytest.mark.parametrize("how", FORKS_BY)
def test_a_server_that_is_forked_before_its_start_has_all_hubs_in_both(how: str) -> None:
    """Between `init_socket` and `start`, as pre-forking programs do it."""
    report = tell(FORK_BEFORE_START, how)
    child = report["child"]
    assert (child["ready"], child["open"]) == ([True] * 6, [6])
    assert child["asked"] == [[0, 1, 2, 3, 4, 5], True]
    assert child["left"] == [[], 0]
    assert report["status"] == 0
    assert report["asked"] == [[0, 1, 2, 3, 4, 5] * 2, True]
    assert report["left"] == [[], 0]


# One handler on hub 1 forks, natively in the middle of that hub's loop.
FORK_IN_HANDLER = (
    FORKS
    + """
def child():
    REGISTRY.check()
    found = {"ready": ready(), "open": clones_open()}
    write_line(questions, "stop")
    assert read_line(answers) == "stopped"
    found["asked"] = ask(6)
    begun = time.monotonic()
    server.stop()
    found["quick"] = time.monotonic() - begun < EXIT_SECONDS
    found["after"] = [clones_open(), ready()]
    write_line(questions, json.dumps(found))

def handle(sock, peer):
    if glb.current_clone() == 1 and not waits:
        waits.append(None)
        def be_child():
            child()
            os._exit(0)
        waits[0] = fork(be_child)
    sock.sendall(b"%d %d" % (glb.current_clone(), os.getpid()))

waits = []
server = StreamServer(("127.0.0.1", 0), handle, clones=6, hubs=3, patience=30)
server.start()
report["before"] = ask(1)
client = socket.create_connection(server.address, 20)
assert read_line(questions) == "stop"
server.stop_accepting()
write_line(answers, "stopped")
report["child"] = json.loads(read_line(questions))
client.recv(100)
report["status"] = waits[0]()
client.close()
server.start_accepting()
report["asked"] = ask(12)
server.stop()
report["left"] = [clones_open(), threading.active_count()]
print(json.dumps(report))
"""
)


# Not gevent.fork, which watches its child: gevent has that on the main thread's loop alone.
@pytest.mark.parametrize("how", ["os.fork", "fork_gevent", "multiprocessing"])
def test_a_handler_of_another_hub_may_fork(how: str) -> None:
    """Its hub is the child's only one; the child serves with that one's clones, and stops."""
    report = tell(FORK_IN_HANDLER, how)
    child = report["child"]
    assert child["open"] == [2]
    assert child["ready"] == [False, True, False, False, True, False]
    order, is_own = child["asked"]
    assert is_own
    assert order in ([1, 4] * 3, [4, 1] * 3)
    assert child["quick"]
    assert child["after"] == [[], [False] * 6]
    assert report["status"] == 0
    order, is_own = report["asked"]
    assert is_own
    assert order == [(order[0] + count) % 6 for count in range(12)]
    assert report["left"] == [[], 1]


# Hub 1 is blocked, with one connection in its inbox and one among the jobs of its handlers.
FORK_UNDER_WAY = (
    FORKS
    + """
def handle(sock, peer):
    what = sock.recv(1)
    if what == b"b":
        started.release()
        os.read(gates.pop(0), 1)
    sock.sendall(b"%d %d" % (glb.current_clone(), os.getpid()))

def connect(what):
    client = socket.create_connection(server.address, 5)
    client.sendall(what)
    return client

def replies(clients):
    # Up to the end of the connection, which doesn't come while any process has a descriptor of it.
    found = []
    for client in clients:
        data = b""
        try:
            while more := client.recv(100):
                data += more
            clone, pid = data.split()
            found.append([int(clone), int(pid) == os.getpid(), "end"])
        except TimeoutError:
            found.append([data.decode().split()[:1], "no end"])
    return found

def wait_for_one():
    while not started.acquire(False):
        gevent.sleep(0.001)

started = threading.Semaphore(0)
first, second = os.pipe(), os.pipe()
gates = [first[0], second[0]]
server = StreamServer(("127.0.0.1", 0), handle, clones=2, hubs=2, patience=30)
server.start()
asked = []
def ask_in_turn(what):
    # clone 0, then clone 1, on hub 1
    with connect(b"s") as client:
        assert client.recv(100)
    asked.append(connect(what))
ask_in_turn(b"b")
wait_for_one()
ask_in_turn(b"b")
ask_in_turn(b"s")
# Hub 1 has both in its inbox; it takes up both, and blocks in the first of them.
handed = server.glb_engine.workers[1].dispatcher
while len(handed.inbox) < 2:
    gevent.sleep(0.001)
os.write(first[1], b"x")
wait_for_one()
in_jobs = len(server.glb_engine.workers[1].handlers.jobs)
ask_in_turn(b"s")
while not handed.inbox:
    gevent.sleep(0.001)
def child():
    write_line(questions, "there")
    assert read_line(answers) == "end"
wait = fork(child)
assert read_line(questions) == "there"
os.write(second[1], b"x")
# What waited in a job, and in the inbox; the first two have been in a handler's hands.
report["served"] = replies(asked[2:])
report["in_jobs"] = in_jobs
write_line(answers, "end")
report["status"] = wait()
server.stop()
print(json.dumps(report))
"""
)


@pytest.mark.parametrize("how", FORKS_BY)
def test_what_is_under_way_is_the_parents(how: str) -> None:
    """It serves that once, and the client sees its end though the child goes on."""
    report = tell(FORK_UNDER_WAY, how)
    assert report["in_jobs"] == 1
    assert report["served"] == [[1, True, "end"]] * 2
    assert report["status"] == 0


# -- monkey patching -----------------------------------------------------------------------------

MONKEY = """
import sys
if sys.argv[1] == "before":
    from gevent import monkey
    monkey.patch_all()
import json, glb.server
from glb.server import StreamServer
if sys.argv[1] == "after":
    from gevent import monkey
    monkey.patch_all()
import logging, queue, threading, time
from concurrent.futures import ThreadPoolExecutor
import gevent
from gevent import socket
from gevent.monkey import get_original

native_ident = get_original("_thread", "get_ident")
lock, total = threading.Lock(), [0]
logging.basicConfig(stream=open("/dev/null", "w"))

def work(box):
    time.sleep(0.001)
    box.put(native_ident())

def handle(sock, peer):
    # All of a handler's own: what is shared between hubs is a lock of all threads.
    box = queue.Queue()
    thread = threading.Thread(target=work, args=(box,))
    thread.start()
    box.get()
    thread.join()
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(abs, [-1, 2])] == [1, 2]
    logging.getLogger("x").warning("from %s", threading.current_thread().name)
    with lock:
        total[0] += 1
    sock.sendall(b"%d %d" % (glb.current_clone(), native_ident()))

def ask(_):
    with socket.create_connection(server.address, 20) as client:
        return [int(part) for part in client.makefile().read().split()]

before = threading.enumerate()
server = StreamServer(("127.0.0.1", 0), handle, clones=3, hubs=3, patience=30)
server.start()
one_by_one = [ask(_) for _ in range(12)]
# Patched locks that several hubs contend for may hang in gevent alone (26.9, also without glb:
# three threads with 20 greenlets each that do what a handler does here). So then it is one by one.
greenlets = [gevent.spawn(ask, _) for _ in range(60 if sys.argv[1] == "never" else 0)]
gevent.joinall(greenlets)
many = [each.value for each in greenlets]
server.stop()
print(json.dumps({
    "order": [clone for clone, _ in one_by_one],
    "threads": len({thread for _, thread in one_by_one}),
    "many": sorted(clone for clone, _ in many),
    "pairs": len({(clone, thread) for clone, thread in one_by_one + many}),
    "total": total[0],
    "left": [each.name for each in threading.enumerate() if each not in before],
}))
"""


@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_handlers_have_threads_locks_and_queues(when: str) -> None:
    """Under monkey patching, too: each hub is one native thread, and none is left."""
    report = tell(MONKEY, when)
    assert report["order"] == [0, 1, 2] * 4
    assert report["threads"] == 3
    many = 60 if when == "never" else 0
    assert report["many"] == sorted([0, 1, 2] * (many // 3))
    assert report["pairs"] == 3
    assert report["total"] == 12 + many
    assert report["left"] == []
