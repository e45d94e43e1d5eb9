"""The registry: one entry an address, counted exactly, and freed with the last share.

What runs in native threads holds no `gevent.Timeout`, so each join has a bound of its own.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.os
import pytest
from gevent import get_hub
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

import glb
from glb.accept.listener import Listener, bind, bind_direct, bind_load_balanced
from glb.accept.registry import REGISTRY, Entry, Registry, Share
from glb.accept.watchdog import dispatcher_for
from glb.model.address import Address, parse
from glb.model.policy import Policy
from glb.model.stats import EntryStats
from glb.net import sockets

from ..conftest import open_descriptors
from ..net.test_sockets import backlog_of, descriptor_limit
from ..support.examples import examples
from ..support.helpers import close_all, connect, is_refused, wait_until

LOCAL = ("127.0.0.1", 0)

#: How long a native thread may take, in seconds: it takes well under one.
THREAD_SECONDS = 30


# -- tools ------------------------------------------------------------------------------------


def end_empty(registry: Registry) -> None:
    """Fail if an address is open; but the tests that follow are not to blame for that."""
    left = registry.entries()
    for entry in registry:
        entry.pristine.close()
    registry._entries.clear()
    registry._by_key.clear()
    assert left == []


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry beside the process's own, which must be empty again at the end."""
    registry = Registry()
    yield registry
    end_empty(registry)


@pytest.fixture(autouse=True)
def ends_empty() -> Iterator[None]:
    """The same for the process's own; torn down before conftest looks at it again."""
    yield
    end_empty(REGISTRY)


@pytest.fixture
def unix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of a Unix socket that isn't there yet, short enough for sun_path."""
    monkeypatch.chdir(tmp_path)
    return "unix:app.sock"


@pytest.fixture
def free_address() -> tuple[str, int]:
    """An address that is free, and that no other process is given by chance."""
    pid = os.getpid()
    host = f"127.{64 + (pid >> 16) % 64}.{(pid >> 8) % 256}.{pid % 254 + 1}"
    with socket.create_server((host, 0)) as sock:
        address: tuple[str, int] = sock.getsockname()
    return address


class InThread:
    """A native thread that runs *function*, with a hub of its own that is gone at the end."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        finally:
            get_hub().destroy(destroy_loop=True)

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        # Other greenlets of this hub go on meanwhile: a call may be sent to it.
        with gevent.Timeout(THREAD_SECONDS, RuntimeError("the thread hangs")):
            wait_until(lambda: not self.thread.is_alive())
        if self._error is not None:
            raise self._error
        return self._result


def in_thread(function: Callable[[], Any]) -> Any:
    return InThread(function).result()


def open_share(registry: Registry, address: object, backlog: int | None = None) -> Share:
    return registry.open(parse(address), backlog, shared=True)


def bound(share: Share) -> Any:
    return share.entry.address


@contextmanager
def nothing_changes(registry: Registry = REGISTRY) -> Iterator[None]:
    """Fail a block after which the registry or the descriptors differ."""
    entries, descriptors = registry.entries(), open_descriptors()
    yield
    registry.check()
    assert registry.entries() == entries
    assert open_descriptors() == descriptors


def accept_from(listener: Listener) -> None:
    """Take one connection by *listener*, from a client of our own."""
    with connect(listener.address):
        listener.accept()[0].close()


# -- opening and joining ----------------------------------------------------------------------


def test_the_first_share_opens_the_address(registry: Registry) -> None:
    """An entry is there from its first share on, and so is the socket."""
    share = open_share(registry, LOCAL)
    assert registry.entries() == [EntryStats(bound(share), 1, 0, 0, shared=True)]
    assert not is_refused(bound(share))
    registry.release(share)


def test_a_second_share_opens_nothing(registry: Registry) -> None:
    """It joins the entry: the descriptors stay as they are."""
    first = open_share(registry, LOCAL)
    before = open_descriptors()
    second = open_share(registry, bound(first))
    assert second.entry is first.entry
    assert second is not first
    assert open_descriptors() == before
    assert [entry.clones for entry in registry.entries()] == [2]
    close_shares(registry, first, second)


def close_shares(registry: Registry, *shares: Share) -> None:
    for share in shares:
        registry.release(share)


def test_last_release_frees_the_address(registry: Registry) -> None:
    """Not the first, not the second: with the last one it is free, at once."""
    first = open_share(registry, LOCAL)
    address = bound(first)
    shares = [first, open_share(registry, address), registry.acquire(first.entry)]
    while shares:
        assert not is_refused(address)
        registry.release(shares.pop(0))
    assert is_refused(address)
    assert registry.entries() == []
    sockets.open_listening(Address(socket.AF_INET, address), 1, reuse_addr=False).close()


def test_releasing_twice_is_harmless(registry: Registry) -> None:
    """A share is counted out once, so the others keep the address."""
    first = open_share(registry, LOCAL)
    second = open_share(registry, bound(first))
    registry.release(first)
    registry.release(first)
    assert [entry.clones for entry in registry.entries()] == [1]
    assert not is_refused(bound(second))
    close_shares(registry, second, second, first)


@pytest.mark.parametrize("direct", [True, False])
def test_port_0_never_shares(registry: Registry, direct: bool) -> None:
    """Each asks the kernel for a port, and is filed under the one that it got."""
    shares = [registry.open(parse(LOCAL), None, shared=not direct) for _ in range(4)]
    assert len({bound(share)[1] for share in shares}) == 4
    assert all(bound(share)[1] > 0 for share in shares)
    assert len(registry.entries()) == 4
    close_shares(registry, *shares)


@pytest.mark.parametrize(
    "spelling",
    [
        ("127.0.0.1", 0),
        ("localhost", 0),
        ("127.1", 0),
        (b"127.0.0.1", 0),
        ("::ffff:127.0.0.1", 0),
        ("::ffff:7f00:1", 0, 0, 0),
    ],
)
@pytest.mark.parametrize("first", [("127.0.0.1", 0), ("::ffff:127.0.0.1", 0)])
def test_spellings_of_loopback_come_to_one_entry(
    registry: Registry, first: Any, spelling: Any
) -> None:
    """However 127.0.0.1 is written, and whichever came first, it is one socket."""
    share = open_share(registry, first)
    assert bound(share) == ("127.0.0.1", bound(share)[1])
    host, _, *rest = spelling
    joined = open_share(registry, (host, bound(share)[1], *rest))
    assert joined.entry is share.entry
    close_shares(registry, share, joined)


def test_spellings_of_ipv6_loopback_come_to_one_entry(registry: Registry) -> None:
    """And the flow label, which only concerns a connection, makes no other."""
    share = open_share(registry, ("::1", 0))
    port = bound(share)[1]
    shares = [
        open_share(registry, (host, port, *rest))
        for host, *rest in (["::1"], ["0:0:0:0:0:0:0:1"], ["::1", 0, 0], ["::1", 7, 0])
    ]
    assert {joined.entry for joined in shares} == {share.entry}
    close_shares(registry, share, *shares)


def test_ipv4_and_ipv6_are_two_places(registry: Registry) -> None:
    """One port of two families is two entries, each free on its own."""
    while True:
        six = open_share(registry, ("::1", 0))
        try:
            four = open_share(registry, ("127.0.0.1", bound(six)[1]))
            break
        except OSError as error:  # the port is taken there, by another program
            registry.release(six)
            if error.errno != errno.EADDRINUSE:
                raise
    assert len(registry.entries()) == 2
    registry.release(six)
    assert is_refused(bound(six))
    assert not is_refused(bound(four))
    registry.release(four)


def test_a_wildcard_is_not_joined_by_what_it_covers(registry: Registry) -> None:
    """0.0.0.0 and 127.0.0.1 are two keys, and what the kernel says of them stands."""
    wildcard = open_share(registry, ("0.0.0.0", 0))
    port = bound(wildcard)[1]
    with nothing_changes(registry), pytest.raises(OSError, match=r"127\.0\.0\.1") as caught:
        open_share(registry, ("127.0.0.1", port))
    assert caught.value.errno == errno.EADDRINUSE
    assert open_share(registry, f"*:{port}").entry is wildcard.entry
    for share in [*wildcard.entry._shares]:
        registry.release(share)


def test_a_direct_entry_is_joined_by_no_other_bind(registry: Registry) -> None:
    """Neither a shared nor a direct bind of its address joins it."""
    share = registry.open(parse(LOCAL), None, shared=False)
    for shared in (True, False):
        with nothing_changes(registry), pytest.raises(OSError, match=r"127\.0\.0\.1") as caught:
            registry.open(parse(bound(share)), None, shared=shared)
        assert caught.value.errno == errno.EADDRINUSE
    assert [entry.shared for entry in registry.entries()] == [False]
    registry.release(share)


def test_a_direct_bind_does_not_join_a_shared_entry(registry: Registry) -> None:
    """A program that wants a socket alone gets EADDRINUSE, not a part of another's connections."""
    share = open_share(registry, LOCAL)
    with nothing_changes(registry), pytest.raises(OSError, match=r"127\.0\.0\.1") as caught:
        registry.open(parse(bound(share)), None, shared=False)
    assert caught.value.errno == errno.EADDRINUSE
    registry.release(share)


def test_a_direct_entry_can_have_more_clones(registry: Registry) -> None:
    """A server's clones are made from its entry, not from its address."""
    first = registry.open(parse(LOCAL), None, shared=False)
    second = registry.acquire(first.entry)
    registry.release(first)
    assert not is_refused(bound(second))
    registry.release(second)
    assert is_refused(bound(second))


def test_direct_entries_with_reuse_port_stand_side_by_side(registry: Registry) -> None:
    """The kernel's way: two sockets on one address, each an entry of its own."""
    if not sockets.PLATFORM.reuse_port_balances:
        pytest.skip("this kernel doesn't balance by SO_REUSEPORT")
    first = registry.open(parse(LOCAL), None, shared=False, reuse_port=True)
    second = registry.open(parse(bound(first)), None, shared=False, reuse_port=True)
    assert [entry.address for entry in registry.entries()] == [bound(first)] * 2
    registry.release(first)
    assert not is_refused(bound(second))
    registry.release(second)


def test_two_registries_share_nothing() -> None:
    """The state is the object's, so that tests, and only they, can have another."""
    one, other = Registry(), Registry()
    share = open_share(one, LOCAL)
    with pytest.raises(OSError, match=r"127\.0\.0\.1") as caught:
        open_share(other, bound(share))
    assert caught.value.errno == errno.EADDRINUSE
    assert other.entries() == []
    one.release(share)


def test_entries_come_oldest_first() -> None:
    """What is open, in the order in which it was opened, with its clones."""
    first = bind_load_balanced(LOCAL)
    second = bind_direct(LOCAL)
    third = bind_load_balanced(first.address)
    assert glb.registry.entries() == [
        EntryStats(first.address, clones=2, ready=0, accepted=0, shared=True),
        EntryStats(second.address, clones=1, ready=0, accepted=0, shared=False),
    ]
    assert [entry.address for entry in REGISTRY] == [first.address, second.address]
    close_all([first, second, third])
    assert glb.registry.entries() == []


def test_entries_count_ready_clones_and_accepted_connections() -> None:
    """Ready clones are those in the ring; the accepted stay counted when a clone goes."""
    first = bind_load_balanced(LOCAL)
    second = bind_load_balanced(first.address)
    waiting = gevent.spawn(second.accept)
    gevent.sleep(0)
    assert glb.registry.entries() == [EntryStats(first.address, 2, 1, 0, shared=True)]
    with connect(first.address):
        waiting.get()[0].close()
    accept_from(first)
    assert glb.registry.entries() == [EntryStats(first.address, 2, 0, 2, shared=True)]
    second.close()
    first_only = glb.registry.entries()
    assert first_only == [EntryStats(first.address, 1, 0, 2, shared=True)]
    first.close()


def test_a_descriptor_closed_behind_our_back_still_gives_its_share_back() -> None:
    """Closing is then EBADF, as gevent has it, but the address is free all the same."""
    with closing(bind_load_balanced(LOCAL)) as other:
        listener = bind_load_balanced(other.address)
        os.close(listener.fileno())
        with pytest.raises(OSError, match="descriptor") as caught:
            listener.close()
        assert caught.value.errno == errno.EBADF
        assert [entry.clones for entry in glb.registry.entries()] == [1]
    assert is_refused(other.address)


def test_a_closed_entry_gives_no_more_shares(registry: Registry) -> None:
    """EBADF, with the address: its socket is not there any more."""
    share = open_share(registry, LOCAL)
    registry.release(share)
    with (
        nothing_changes(registry),
        pytest.raises(OSError, match=re.escape(repr(bound(share)))) as caught,
    ):
        registry.acquire(share.entry)
    assert caught.value.errno == errno.EBADF
    assert share.entry.clones == 0


def test_an_address_has_one_policy(registry: Registry) -> None:
    """As long as a share asks for it; another is refused with both names, none never is."""
    share = open_share(registry, LOCAL)
    policies: list[Policy | None] = []
    entry = share.entry
    entry.turns.join_settings(None, None, share.entry.address)
    policies.append(entry.turns.policy)
    entry.turns.join_settings(Policy.LEAST_CONNECTIONS, None, share.entry.address)
    entry.turns.join_settings(Policy.LEAST_CONNECTIONS, None, share.entry.address)
    entry.turns.join_settings(None, None, share.entry.address)
    with pytest.raises(ValueError, match=r"'least_connections'.*'round_robin'"):
        entry.turns.join_settings(Policy.ROUND_ROBIN, None, share.entry.address)
    entry.turns.leave_settings(Policy.LEAST_CONNECTIONS, None)
    entry.turns.leave_settings(None, None)
    policies.append(entry.turns.policy)
    entry.turns.leave_settings(Policy.LEAST_CONNECTIONS, None)
    entry.turns.join_settings(Policy.ROUND_ROBIN, None, share.entry.address)
    policies.append(entry.turns.policy)
    assert policies == [None, Policy.LEAST_CONNECTIONS, Policy.ROUND_ROBIN]
    registry.release(share)


# -- other processes --------------------------------------------------------------------------

OTHER_PROCESS = """
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if sys.argv[2] == "reuse_port":
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
try:
    sock.bind(("127.0.0.1", int(sys.argv[1])))
    sock.listen()
except OSError as error:
    print(error.errno)
else:
    print("listening")
"""


def other_process_says(port: int, how: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(port), how],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("how", ["plain", "reuse_port"])
@pytest.mark.parametrize("shared", [True, False])
def test_another_process_gets_eaddrinuse(shared: bool, how: str) -> None:
    """Even one that asks for SO_REUSEPORT: ours doesn't set it, so nothing is stolen."""
    with closing(bind(LOCAL, reuse_port=shared)) as listener:
        assert other_process_says(listener.address[1], how) == str(errno.EADDRINUSE)
    assert other_process_says(listener.address[1], how) == "listening"


def test_another_process_may_stand_beside_a_direct_reuse_port() -> None:
    """That is the kernel's way, for programs that ask for it."""
    if not sockets.PLATFORM.reuse_port_balances:
        pytest.skip("this kernel doesn't balance by SO_REUSEPORT")
    with closing(bind_direct(LOCAL, reuse_port=True)) as listener:
        assert other_process_says(listener.address[1], "reuse_port") == "listening"
        assert other_process_says(listener.address[1], "plain") == str(errno.EADDRINUSE)


# -- backlogs ---------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the backlog in tcp_info")
def test_a_larger_backlog_raises_the_queue_and_a_smaller_does_not(registry: Registry) -> None:
    """All share the queue: a bind that joins may make it longer, never shorter."""
    shares = [open_share(registry, LOCAL, 5)]
    pristine = shares[0].entry.pristine
    for backlog, length in ((5, 5), (3, 5), (0, 5), (7, 7), (6, 7), (20, 20)):
        shares.append(open_share(registry, bound(shares[0]), backlog))
        assert backlog_of(pristine) == length
        assert shares[0].entry.backlog == length
    registry.raise_backlog(shares[0].entry, 30)
    assert backlog_of(pristine) == 30
    registry.raise_backlog(shares[0].entry, 10)
    assert backlog_of(pristine) == 30
    close_shares(registry, *shares)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the backlog in tcp_info")
def test_no_backlog_is_what_the_kernel_allows(registry: Registry) -> None:
    """Not 128, and a joiner with a number doesn't cut it."""
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    first = open_share(registry, LOCAL)
    second = open_share(registry, bound(first), 1)
    assert backlog_of(first.entry.pristine) == most
    close_shares(registry, first, second)


@pytest.mark.parametrize("backlog", [-1, 2**31, 1.5, "5", True])
def test_a_wrong_backlog_opens_nothing(registry: Registry, backlog: Any) -> None:
    """It is refused with its value before anything is touched, joining or not."""
    share = open_share(registry, LOCAL, 5)
    for address in (LOCAL, bound(share)):
        with (
            nothing_changes(registry),
            pytest.raises((TypeError, ValueError), match=re.escape(repr(backlog))),
        ):
            open_share(registry, address, backlog)
    registry.release(share)


# -- failures ---------------------------------------------------------------------------------


def test_a_failed_bind_leaves_all_as_it_was(registry: Registry) -> None:
    """No entry, no descriptor; and the same address opens when it is free."""
    with socket.create_server(LOCAL) as other:
        address = other.getsockname()
        with (
            nothing_changes(registry),
            pytest.raises(OSError, match=re.escape(repr(address))) as caught,
        ):
            open_share(registry, address)
        assert caught.value.errno == errno.EADDRINUSE
    registry.release(open_share(registry, address))


def test_an_unknown_host_leaves_all_as_it_was() -> None:
    """`socket.gaierror`, with the address, from `bind` itself."""
    address = ("no such host.invalid", 0)
    with nothing_changes(), pytest.raises(socket.gaierror, match=re.escape(repr(address))):
        bind(address)


def test_an_address_of_another_machine_leaves_all_as_it_was() -> None:
    """EADDRNOTAVAIL: 192.0.2.0/24 is for documentation alone."""
    with nothing_changes(), pytest.raises(OSError, match=r"192\.0\.2\.1") as caught:
        bind(("192.0.2.1", 0), reuse_port=True)
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("reuse_port", [True, False])
@pytest.mark.parametrize("spare", [0, 1])
def test_out_of_descriptors_a_bind_leaves_all_as_it_was(spare: int, reuse_port: bool) -> None:
    """EMFILE for the socket, or for the clone's own descriptor: neither stays."""
    with (
        nothing_changes(),
        descriptor_limit(spare),
        pytest.raises(OSError, match="open files") as caught,
    ):
        bind(LOCAL, reuse_port=reuse_port)
    assert caught.value.errno == errno.EMFILE


def test_out_of_descriptors_a_join_leaves_all_as_it_was() -> None:
    """The clones that are there keep the address and go on."""
    with closing(bind_load_balanced(LOCAL)) as listener:
        joins: list[Callable[[], Listener]] = [
            lambda: bind_load_balanced(listener.address),
            listener.dup,
        ]
        for join in joins:
            with (
                nothing_changes(),
                descriptor_limit(0),
                pytest.raises(OSError, match="open files") as caught,
            ):
                join()
            assert caught.value.errno == errno.EMFILE
        accept_from(listener)


def test_out_of_descriptors_a_unix_bind_leaves_no_file(unix: str) -> None:
    """The address is free again for a bind that has descriptors."""
    with (
        nothing_changes(),
        descriptor_limit(1),
        pytest.raises(OSError, match="open files") as caught,
    ):
        bind(unix, reuse_port=True)
    assert caught.value.errno == errno.EMFILE
    assert not os.path.exists("app.sock")
    bind(unix).close()


def test_an_error_while_raising_the_backlog_counts_the_share_out(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A join that fails half way is not there, and the address stays open."""

    def fail(_registry: Registry, _entry: Entry, _backlog: int | None) -> None:
        raise OSError(errno.EIO, "no listen for this one")

    share = open_share(registry, LOCAL, 5)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "raise_backlog", fail)
        with nothing_changes(registry), pytest.raises(OSError, match="no listen") as caught:
            open_share(registry, bound(share), 10)
    assert caught.value.errno == errno.EIO
    assert not is_refused(bound(share))
    registry.release(share)


@pytest.mark.parametrize("way", ["clone", "pristine"])
@pytest.mark.parametrize("address", ["unix", "tcp"])
def test_a_close_that_fails_frees_the_address(way: str, address: str, unix: str) -> None:
    """Its number was closed by other code: EBADF, and nothing is left."""
    before = open_descriptors()
    listener = bind(unix if address == "unix" else LOCAL)
    listener.entry.keep_reserve()
    bound = listener.address
    sock = listener._sock if way == "clone" else listener.entry.pristine
    os.close(sock.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        listener.close()
    assert glb.registry.entries() == []
    assert open_descriptors().keys() == before.keys()
    assert not REGISTRY.reserve.is_there
    bind(unix if address == "unix" else bound).close()


# -- adopting ---------------------------------------------------------------------------------


def test_an_adopted_socket_stays_its_owners(registry: Registry) -> None:
    """We have a duplicate: closing ours leaves theirs, and the other way round."""
    with socket.create_server(LOCAL) as theirs:
        share = registry.adopt(theirs.fileno())
        assert registry.entries() == [EntryStats(theirs.getsockname(), 1, 0, 0, shared=False)]
        registry.release(share)
        assert not is_refused(theirs.getsockname())
        share = registry.adopt(theirs.fileno())
    assert not is_refused(bound(share))
    registry.release(share)
    assert is_refused(bound(share))


def test_an_adopted_socket_can_be_joined_if_it_is_shared(registry: Registry) -> None:
    """By its address, as one that was opened here."""
    with socket.create_server(LOCAL) as theirs:
        share = registry.adopt(theirs.fileno(), shared=True)
        joined = open_share(registry, theirs.getsockname())
        assert joined.entry is share.entry
        close_shares(registry, share, joined)


def test_an_address_that_is_shared_already_is_not_adopted(registry: Registry) -> None:
    """Two shared entries never have one key: EADDRINUSE, and nothing stays open."""
    share = open_share(registry, LOCAL)
    descriptor = sockets.duplicate(share.entry.pristine)
    with nothing_changes(registry), pytest.raises(OSError, match=r"127\.0\.0\.1") as caught:
        registry.adopt(descriptor, shared=True)
    assert caught.value.errno == errno.EADDRINUSE
    os.close(descriptor)
    registry.release(share)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_unbound_sockets_break_no_rule(registry: Registry, family: int) -> None:
    """What has no address yet can't be joined, nor be in the way of its like."""
    shares = []
    with ExitStack() as stack:
        for _ in range(2):
            theirs = stack.enter_context(socket.socket(family))
            try:
                shares.append(registry.adopt(theirs.fileno(), shared=True))
            except (OSError, ValueError):  # refusing it would be as good
                pass
            registry.check()
        close_shares(registry, *shares)


def test_a_unix_socket_without_its_file_breaks_no_rule(registry: Registry, unix: str) -> None:
    """No bind can join by a path that is gone, whatever the socket was called."""
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(unix.removeprefix("unix:"))
        theirs.listen()
        os.unlink("app.sock")
        try:
            share = registry.adopt(theirs.fileno(), shared=True)
        except (OSError, ValueError):  # refusing it would be as good
            return
        registry.check()
        registry.release(share)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the backlog in tcp_info")
def test_joining_an_adopted_socket_does_not_shorten_its_queue(registry: Registry) -> None:
    """What its owner gave to listen(2) is not known; that is no reason to cut it."""
    with socket.create_server(LOCAL, backlog=64) as theirs:
        share = registry.adopt(theirs.fileno(), shared=True)
        joined = open_share(registry, theirs.getsockname(), 1)
        length = backlog_of(theirs)
        close_shares(registry, share, joined)
    assert length == 64


def test_what_cannot_be_adopted_leaves_all_as_it_was(registry: Registry) -> None:
    """UDP, a pipe, a closed descriptor."""
    reader, writer = os.pipe()
    with socket.socket(type=socket.SOCK_DGRAM) as udp, nothing_changes(registry):
        with pytest.raises(TypeError, match="stream socket"):
            registry.adopt(udp.fileno())
        with pytest.raises(OSError, match="socket") as caught:
            registry.adopt(reader)
        assert caught.value.errno == errno.ENOTSOCK
    os.close(reader)
    os.close(writer)
    with nothing_changes(registry), pytest.raises(OSError, match="descriptor") as caught:
        registry.adopt(reader)
    assert caught.value.errno == errno.EBADF


# -- Unix sockets -----------------------------------------------------------------------------


def test_a_unix_path_is_freed_with_the_last_share(unix: str) -> None:
    """The file goes with the socket, so the path can be bound again."""
    first = bind_load_balanced(unix)
    second = bind_load_balanced("unix:./app.sock")
    third = bind_load_balanced("unix:" + os.path.abspath("app.sock"))
    assert [entry.clones for entry in glb.registry.entries()] == [3]
    close_all([first, second])
    assert os.path.exists("app.sock")
    third.close()
    assert not os.path.exists("app.sock")
    bind_direct(unix).close()
    assert not os.path.exists("app.sock")


def test_a_unix_path_that_is_taken_is_not_touched(unix: str) -> None:
    """The file of a socket that is open stays: EADDRINUSE."""
    with closing(bind_direct(unix)):
        for reuse_port in (True, False):
            with nothing_changes(), pytest.raises(OSError, match=r"app\.sock") as caught:
                bind(unix, reuse_port=reuse_port)
            assert caught.value.errno == errno.EADDRINUSE
        assert not is_refused("app.sock")


@pytest.mark.parametrize("reuse_port", [True, False])
def test_a_unix_path_that_a_killed_process_left_is_bound(unix: str, reuse_port: bool) -> None:
    """Clones join what replaced it, and the file goes with the last."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind("app.sock")
    with closing(bind(unix, reuse_port=reuse_port)) as listener, closing(listener.dup()):
        assert not is_refused("app.sock")
        with pytest.raises(OSError, match="Address already in use: a server has it open"):
            bind(unix)
    assert not os.path.exists("app.sock")


def test_a_unix_listener_leaves_a_link_that_took_its_place(unix: str) -> None:
    """Its file was moved, and is found by a symbolic link: that isn't the listener's to remove."""
    with closing(bind_load_balanced(unix)) as listener, closing(listener.dup()):
        os.rename("app.sock", "moved.sock")
        os.symlink("moved.sock", "app.sock")
        with closing(bind_load_balanced(unix)) as joined:  # by the link it is the same place
            assert joined.entry.clones == 3
    assert os.readlink("app.sock") == "moved.sock"


def test_a_unix_file_that_was_replaced_is_another_address(unix: str) -> None:
    """A bind of the path then gets a new entry, and each removes its own file only."""
    first = bind_load_balanced(unix)
    os.unlink("app.sock")
    second = bind_load_balanced(unix)
    assert [entry.clones for entry in glb.registry.entries()] == [1, 1]
    first.close()
    assert not is_refused("app.sock")
    second.close()
    assert not os.path.exists("app.sock")


@pytest.mark.usefixtures("unix")
def test_an_adopted_unix_socket_keeps_its_file(registry: Registry) -> None:
    """It was bound by other code, which removes it."""
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind("app.sock")
        theirs.listen()
        for shared in (True, False):
            registry.release(registry.adopt(theirs.fileno(), shared=shared))
        assert not is_refused("app.sock")


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
def test_an_abstract_name_is_shared_and_freed() -> None:
    """It has no file, and is one address all the same."""
    name = f"unix:@glb-test-{os.getpid()}"
    with closing(bind_load_balanced(name)) as first, closing(bind_load_balanced(name)) as second:
        assert second.entry is first.entry
    bind_direct(name).close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_address_is_freed_though_a_dispatcher_still_watches_it(unix: str, kind: str) -> None:
    """The last share goes before the dispatcher: the registry closes that as well."""
    share = REGISTRY.open(parse(LOCAL if kind == "tcp" else unix), None, shared=True)
    dispatcher = dispatcher_for(share.entry, get_hub())
    REGISTRY.release(share)
    dispatcher.detach()
    assert is_refused(bound(share))
    assert not os.path.exists("app.sock")
    assert share.entry.turns.dispatchers == {}


# -- threads ----------------------------------------------------------------------------------


class DoorLock:
    """The registry's lock, with a bell that rings when a thread comes to its door."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.at_the_door: dict[int, threading.Event] = {}

    def expect(self, thread: threading.Thread) -> threading.Event:
        assert thread.ident is not None
        return self.at_the_door.setdefault(thread.ident, threading.Event())

    def __enter__(self) -> None:
        bell = self.at_the_door.get(threading.get_ident())
        if bell is not None:
            bell.set()
        self._lock.acquire()

    def __exit__(self, *_exc_info: object) -> None:
        self._lock.release()


def test_two_last_clones_dropped_at_once_free_the_address(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deno's lost race, held open: neither thread may count its share out before both have
    come to do so. Exactly one of them finds that it was last.
    """
    first = open_share(registry, LOCAL)
    second = open_share(registry, bound(first))
    lock = DoorLock(registry.lock)
    monkeypatch.setattr(registry, "lock", lock)
    start = threading.Barrier(3)
    was_last: list[bool] = []
    count_out = Entry.release_locked

    def release(share: Share) -> None:
        start.wait(THREAD_SECONDS)
        registry.release(share)

    threads = [threading.Thread(target=release, args=[share]) for share in (first, second)]
    for thread in threads:
        thread.start()
    bells = [lock.expect(thread) for thread in threads]

    def wait_and_count(entry: Entry, share: Share) -> bool:
        # A thread that is to ask how many there are before it takes the lock has asked by now.
        assert all(bell.wait(THREAD_SECONDS) for bell in bells)
        was_last.append(count_out(entry, share))
        return was_last[-1]

    monkeypatch.setattr(Entry, "release_locked", wait_and_count)
    start.wait(THREAD_SECONDS)
    for thread in threads:
        thread.join(THREAD_SECONDS)
        assert not thread.is_alive()
    assert sorted(was_last) == [False, True]
    assert registry.entries() == []
    assert is_refused(bound(first))


def test_a_join_at_the_door_of_the_last_release_opens_anew(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bind while the last share is counted out gets an open address, not a closed one."""
    first = open_share(registry, LOCAL)
    address = bound(first)
    lock = DoorLock(registry.lock)
    monkeypatch.setattr(registry, "lock", lock)
    start = threading.Barrier(2)
    joined: list[Share] = []

    def join() -> None:
        start.wait(THREAD_SECONDS)
        joined.append(open_share(registry, address))

    thread = threading.Thread(target=join)
    thread.start()
    bell = lock.expect(thread)
    count_out = Entry.release_locked

    def count_and_wait(entry: Entry, share: Share) -> bool:
        last = count_out(entry, share)
        start.wait(THREAD_SECONDS)
        assert bell.wait(THREAD_SECONDS)
        return last

    with monkeypatch.context() as patch:
        patch.setattr(Entry, "release_locked", count_and_wait)
        registry.release(first)
    thread.join(THREAD_SECONDS)
    assert not thread.is_alive()
    (second,) = joined
    assert second.entry is not first.entry
    assert bound(second) == address
    assert not is_refused(address)
    registry.release(second)


def bind_and_close(address: Any, rounds: int) -> None:
    for _ in range(rounds):
        listener = bind_load_balanced(address)
        assert listener.address == address
        listener.close()


def test_threads_that_bind_and_close_leave_the_address_free(free_address: Any) -> None:
    """1,000 rounds of 8 native threads: no bind fails, and no share is lost."""
    start = threading.Barrier(8)

    def run() -> None:
        start.wait(THREAD_SECONDS)
        bind_and_close(free_address, 1000)

    threads = [InThread(run) for _ in range(8)]
    for thread in threads:
        thread.result()
    assert glb.registry.entries() == []
    REGISTRY.check()
    assert is_refused(free_address)


def test_greenlets_that_bind_and_close_leave_the_address_free(free_address: Any) -> None:
    """The same from greenlets of one hub, which switch between bind and close."""

    def run() -> None:
        for _ in range(50):
            listener = bind_load_balanced(free_address)
            gevent.sleep(0)
            listener.close()
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(run) for _ in range(20)], raise_error=True)
    assert glb.registry.entries() == []
    assert is_refused(free_address)


def test_a_clone_may_be_closed_by_another_thread() -> None:
    """Its share comes back and the address is free when close() returns."""
    listener = bind_load_balanced(LOCAL)
    in_thread(listener.close)
    assert glb.registry.entries() == []
    assert is_refused(listener.address)
    listener.close()


def test_an_address_is_free_though_another_threads_loop_watches_it() -> None:
    """The last close returns with the address free; the other loop looks away by itself."""
    addresses: list[Any] = []
    listeners: list[Listener] = []
    accepting = threading.Event()

    def accept() -> int | None:
        listener = bind_load_balanced(LOCAL)
        listeners.append(listener)
        addresses.append(listener.address)
        # A callback runs when accept() has gone to wait, as nothing else is runnable.
        get_hub().loop.run_callback(accepting.set)
        with pytest.raises(OSError, match="closed") as caught:
            listener.accept()
        return caught.value.errno

    thread = InThread(accept)
    assert accepting.wait(THREAD_SECONDS)
    wait_until(lambda: [entry.ready for entry in glb.registry.entries()] == [1])
    listeners.pop().close()
    assert glb.registry.entries() == []
    bind_direct(addresses[0]).close()
    assert thread.result() == errno.EBADF


@pytest.mark.parametrize("has_accepted", [False, True])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_clone_whose_hub_is_gone_frees_its_address(
    unix: str, kind: str, has_accepted: bool
) -> None:
    """A thread that ends without closing leaves the clone to others, which can close it."""

    def open_one() -> Listener:
        listener = bind_load_balanced(LOCAL if kind == "tcp" else unix)
        if has_accepted:
            accept_from(listener)
        return listener

    listener: Listener = in_thread(open_one)
    assert not is_refused(listener.address)
    listener.close()
    assert glb.registry.entries() == []
    assert is_refused(listener.address)


# -- collected, interrupted -------------------------------------------------------------------


def make_garbage(address: Any) -> Any:
    """Leave an unclosed listener on *address* in a cycle, and return its address."""
    cycle: list[Any] = [bind_load_balanced(address)]
    cycle.append(cycle)
    return cycle[0].address


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Collect only when the test says so."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_an_unclosed_listener_frees_its_address_and_warns() -> None:
    """When the last reference goes, so does the share."""
    listener = bind_load_balanced(LOCAL)
    address = listener.address
    with pytest.warns(ResourceWarning, match="unclosed"):
        del listener
    assert glb.registry.entries() == []
    assert is_refused(address)


@pytest.mark.usefixtures("no_collection")
def test_a_listener_in_a_cycle_frees_its_address_when_collected() -> None:
    """And not before."""
    address = make_garbage(LOCAL)
    assert not is_refused(address)
    with pytest.warns(ResourceWarning, match="unclosed"):
        gc.collect()
    assert glb.registry.entries() == []
    assert is_refused(address)


@pytest.mark.usefixtures("no_collection")
def test_a_collection_inside_the_lock_frees_as_any() -> None:
    """The thread that holds the lock comes back in through it."""
    address = make_garbage(LOCAL)
    with REGISTRY.lock:
        with pytest.warns(ResourceWarning, match="unclosed"):
            gc.collect()
        assert glb.registry.entries() == []
        assert is_refused(address)


@pytest.mark.usefixtures("no_collection")
def test_a_collection_in_another_thread_frees_as_any() -> None:
    """Garbage of one thread's hub may be found by any."""
    address = make_garbage(LOCAL)
    with pytest.warns(ResourceWarning, match="unclosed"):
        in_thread(gc.collect)
    assert glb.registry.entries() == []
    assert is_refused(address)


def collect_before(patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """Have *module*'s *name* collect garbage before it does its work."""
    original = getattr(module, name)

    def strike(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        return original(*args, **kwargs)

    patch.setattr(module, name, strike)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("where", ["glb.net.sockets.find_key", "glb.accept.registry.Share"])
def test_a_collection_that_closes_what_is_being_joined_does_not_fail_the_join(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it strikes: before the entry was found, or before it was counted.

    The joiner gets an open address, whose socket is a new one if need be.
    """
    address = make_garbage(LOCAL)
    module_name, _, name = where.rpartition(".")
    with monkeypatch.context() as patch:
        collect_before(patch, sys.modules[module_name], name)
        with pytest.warns(ResourceWarning, match="unclosed"):
            listener = bind_load_balanced(address)
    with closing(listener):
        REGISTRY.check()
        assert listener.address == address
        assert [entry.clones for entry in glb.registry.entries()] == [1]
        assert not is_refused(address)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_collection_while_the_last_but_one_is_counted_out_closes_once(
    unix: str, kind: str
) -> None:
    """The share that is released inside of a release was the last; the outer wasn't."""

    class Striking(set[Share]):
        def remove(self, share: Share) -> None:
            super().remove(share)
            gc.collect()

    address = make_garbage(LOCAL if kind == "tcp" else unix)
    listener = bind_load_balanced(address if kind == "tcp" else unix)
    entry = listener.entry
    entry._shares = Striking(entry._shares)
    with pytest.warns(ResourceWarning, match="unclosed"):
        listener.close()
    assert glb.registry.entries() == []
    assert is_refused(address)


def test_a_close_while_the_same_thread_has_the_lock_is_done_at_once() -> None:
    """What a signal handler does inside of a critical section: no deadlock."""
    listener = bind_load_balanced(LOCAL)
    with REGISTRY.lock:
        listener.close()
        assert glb.registry.entries() == []
        assert is_refused(listener.address)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="a POSIX signal")
def test_a_signal_handler_may_close_inside_the_lock() -> None:
    """The same, with a real signal."""
    listener = bind_load_balanced(LOCAL)
    other = bind_load_balanced(listener.address)

    def close(_number: int, _frame: object) -> None:
        listener.close()

    before = signal.signal(signal.SIGUSR1, close)
    try:
        with REGISTRY.lock:
            signal.raise_signal(signal.SIGUSR1)
            assert [entry.clones for entry in glb.registry.entries()] == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)
    accept_from(other)
    other.close()


def test_the_registry_keeps_no_listener_alive() -> None:
    """A share knows its holder weakly, and forgets one that is gone."""
    listener = bind_load_balanced(LOCAL)
    share = listener._sock._share
    assert share.holder is listener._sock
    with pytest.warns(ResourceWarning, match="unclosed"):
        del listener
    assert share.holder is None


# -- fork -------------------------------------------------------------------------------------


class Child:
    """A forked child that runs *function* and answers what it returned, as text."""

    def __init__(self, function: Callable[[], object]) -> None:
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            # From 3.12 on: that other threads run is what some of these tests are about.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = gevent.os.fork_gevent()
        if self.pid == 0:
            try:
                os.close(reader)
                told = str(function())
            except BaseException as error:
                told = f"{type(error).__name__}: {error}"
            try:
                os.write(writer, told.encode())
            finally:
                os._exit(0)
        os.close(writer)
        self._reader = reader

    def answer(self) -> str:
        gevent.os.make_nonblocking(self._reader)
        parts = []
        try:
            while data := gevent.os.nb_read(self._reader, 65536):
                parts.append(data)
        finally:
            os.close(self._reader)
            # gevent's loop on libuv reaps whatever ends, once a child was waited for there.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        return b"".join(parts).decode()


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_child_keeps_the_clones_of_the_thread_that_forked() -> None:
    """They are the same kernel socket, on the child's own loop; the entries are there too."""
    with closing(bind_load_balanced(LOCAL)) as first, closing(first.dup()):

        def serve() -> list[EntryStats]:
            connection, _ = first.accept()
            connection.sendall(b"from the child")
            connection.close()
            joined = bind_load_balanced(first.address)
            assert joined.entry is first.entry
            joined.close()
            REGISTRY.check()
            return glb.registry.entries()

        with connect(first.address) as client:
            child = Child(serve)
            assert client.recv(100) == b"from the child"
        assert child.answer() == str([EntryStats(first.address, 2, 0, 1, shared=True)])
        assert glb.registry.entries() == [EntryStats(first.address, 2, 0, 0, shared=True)]
        accept_from(first)


def test_a_child_closes_all_clones_of_other_threads_when_one_was_closed_by_its_number() -> None:
    """What can't be closed stops nothing, and the lock is free there."""
    opened: list[Listener] = []

    def open_some() -> None:
        # The number must not be the next file's, which the child would close in its place.
        lower = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        opened.extend(bind(LOCAL) for _ in range(3))
        os.close(opened[0]._sock.fileno())
        for number in lower:
            os.close(number)
        get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=open_some)
    thread.start()
    thread.join(THREAD_SECONDS)

    def look() -> tuple[object, ...]:
        other = threading.Thread(target=REGISTRY.check, daemon=True)
        other.start()
        other.join(THREAD_SECONDS)
        return [each._sock.fileno() for each in opened], other.is_alive(), glb.registry.entries()

    assert Child(look).answer() == str(([-1, -1, -1], False, []))
    for listener in opened[1:]:
        listener.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        opened[0].close()


def test_what_a_child_closes_stays_open_in_the_parent() -> None:
    """Each process counts for itself."""
    with closing(bind_load_balanced(LOCAL)) as listener:

        def close() -> list[EntryStats]:
            listener.close()
            return glb.registry.entries()

        assert Child(close).answer() == "[]"
        assert [entry.clones for entry in glb.registry.entries()] == [1]
        accept_from(listener)
    assert is_refused(listener.address)


def test_a_unix_path_is_removed_by_the_process_that_bound_it_and_by_no_child(unix: str) -> None:
    """A worker that ends must not take the address from the others."""
    with closing(bind_load_balanced(unix)) as listener:
        assert Child(listener.close).answer() == "None"
        assert not is_refused("app.sock")
        accept_from(listener)
    assert not os.path.exists("app.sock")


def test_a_unix_path_that_a_child_bound_is_removed_by_the_child(unix: str) -> None:
    """It is the child's own."""

    def bind_and_free() -> bool:
        bind_load_balanced(unix).close()
        return os.path.exists("app.sock")

    assert Child(bind_and_free).answer() == "False"


def test_a_child_can_use_the_registry_from_any_thread() -> None:
    """The lock that the fork was made under is free there."""

    def use() -> list[EntryStats]:
        thread = threading.Thread(target=glb.registry.entries)
        thread.start()
        thread.join(THREAD_SECONDS)
        assert not thread.is_alive()
        return glb.registry.entries()

    assert Child(use).answer() == "[]"
    assert Child(use).answer() == "[]"
    assert in_thread(glb.registry.entries) == []


class Serving:
    """A native thread with clones of *addresses*, the last of which it accepts on."""

    def __init__(self, *addresses: Any) -> None:
        self._opened = threading.Event()
        self.listeners: list[Listener] = []
        self._thread = InThread(lambda: self._serve(addresses))
        assert self._opened.wait(THREAD_SECONDS)

    def _serve(self, addresses: tuple[Any, ...]) -> None:
        self.listeners = [bind_load_balanced(address) for address in addresses]
        get_hub().loop.run_callback(self._opened.set)
        connection, _ = self.listeners[-1].accept()
        connection.sendall(b"from the thread")
        connection.close()
        close_all(self.listeners)

    def finish(self) -> bytes:
        """Ask the thread for its one reply, after which it closes and ends."""
        with connect(self.listeners[-1].address) as client:
            reply = client.recv(100)
        self._thread.result()
        return reply


def test_clones_of_other_threads_are_closed_in_a_child() -> None:
    """Their hubs aren't there. Here their descriptors go, and with the last the entry; the
    parent's go on.
    """
    with closing(bind_load_balanced(LOCAL)) as ours:
        other = Serving(ours.address, LOCAL)
        shared, alone = other.listeners
        shared_number, alone_number = shared.fileno(), alone.fileno()
        pristine_number = alone.entry.pristine.fileno()

        def look() -> str:
            REGISTRY.check()
            gone = (shared_number, alone_number, pristine_number)
            assert not any(map(is_open, gone)), [number for number in gone if is_open(number)]
            assert alone.entry.is_closed
            assert is_open(ours.fileno())
            with connect(ours.address):
                ours.accept()[0].close()
            return str(glb.registry.entries())

        told = Child(look).answer()
        assert [entry.clones for entry in glb.registry.entries()] == [2, 1]
        assert other.finish() == b"from the thread"
        assert told == str([EntryStats(ours.address, 1, 0, 1, shared=True)])


def test_a_unix_path_of_another_thread_stays_when_a_child_lets_go_of_it(unix: str) -> None:
    """The entry goes in the child; the file is the parent's."""
    other = Serving(unix)
    assert Child(glb.registry.entries).answer() == "[]"
    assert other.finish() == b"from the thread"
    assert not os.path.exists("app.sock")


def test_a_clone_that_was_closed_by_a_fork_is_an_ordinary_closed_one() -> None:
    """Using it is EBADF, closing it harmless, and collecting it warns of nothing."""
    other = Serving(LOCAL)
    (listener,) = other.listeners

    def use() -> str:
        listener.close()
        try:
            listener.accept()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "no error"

    told = Child(use).answer()
    assert other.finish() == b"from the thread"
    assert told == "EBADF"


def test_a_fork_inside_the_lock_leaves_it_as_it_was() -> None:
    """A signal handler may fork, too: parent and child still hold it once, and let it go."""

    def use() -> list[EntryStats]:
        REGISTRY.lock.release()
        thread = threading.Thread(target=glb.registry.entries)
        thread.start()
        thread.join(THREAD_SECONDS)
        assert not thread.is_alive()
        return glb.registry.entries()

    with REGISTRY.lock:
        child = Child(use)
    assert in_thread(glb.registry.entries) == []
    assert child.answer() == "[]"


# -- a model ----------------------------------------------------------------------------------


class Kernel:
    """The model of one kernel socket: its holders, and whether its path is there."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.holders = 0
        self.has_name = True


class Opened:
    """The model of an entry."""

    def __init__(self, kernel: Kernel, *, shared: bool, owner: bool) -> None:
        self.kernel = kernel
        self.shared = shared
        self.owner = owner
        self.clones = 0
        kernel.holders += 1


#: Two TCP addresses and a Unix path, each with some of its spellings.
PLACES = st.integers(0, 2)
SPELLINGS = st.integers(0, 2)


class RegistryMachine(RuleBasedStateMachine):
    """bind, dup, close, detach and adopt on a few addresses, beside a count of the clones."""

    clones = Bundle("clones")
    descriptors = Bundle("descriptors")

    #: Set for a run: three places, and how each may be written.
    places: list[list[object]]

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Opened] = []
        self.kernels: list[Kernel] = []
        self.open_clones: list[tuple[Listener, Opened]] = []
        self.open_descriptors: list[tuple[int, Kernel]] = []

    def is_taken(self, place: int) -> bool:
        return any(kernel.place == place and self.is_named(kernel) for kernel in self.kernels)

    def is_in_use(self, place: int) -> bool:
        # A path that nothing holds any more is stale, and can be bound again.
        return any(
            kernel.place == place and self.is_named(kernel) and kernel.holders
            for kernel in self.kernels
        )

    def is_named(self, kernel: Kernel) -> bool:
        # A Unix socket lives on without its path; a port is a socket's as long as it lives.
        return kernel.has_name if kernel.place == 2 else kernel.holders > 0

    def count_in(self, listener: Listener, entry: Opened) -> tuple[Listener, Opened]:
        entry.clones += 1
        clone = (listener, entry)
        self.open_clones.append(clone)
        return clone

    def count_out(self, clone: tuple[Listener, Opened]) -> None:
        entry = clone[1]
        self.open_clones.remove(clone)
        entry.clones -= 1
        if entry.clones == 0:
            self.entries.remove(entry)
            entry.kernel.holders -= 1
            if entry.owner:
                entry.kernel.has_name = False

    def open_new(self, place: int, listener: Listener, *, shared: bool) -> Any:
        for stale in self.kernels:
            if stale.place == place:
                stale.has_name = False
        kernel = Kernel(place)
        self.kernels.append(kernel)
        entry = Opened(kernel, shared=shared, owner=True)
        self.entries.append(entry)
        return self.count_in(listener, entry)

    @rule(target=clones, place=PLACES, spelling=SPELLINGS)
    def bind_load_balanced(self, place: int, spelling: int) -> Any:
        address = self.places[place][spelling]
        joined = [
            entry
            for entry in self.entries
            if entry.shared and entry.kernel.place == place and self.is_named(entry.kernel)
        ]
        if joined:
            (entry,) = joined
            return self.count_in(bind_load_balanced(address), entry)
        if self.is_in_use(place):
            self.refuse(lambda: bind_load_balanced(address))
            return multiple()
        return self.open_new(place, bind_load_balanced(address), shared=True)

    @rule(target=clones, place=PLACES, spelling=SPELLINGS)
    def bind_direct(self, place: int, spelling: int) -> Any:
        address = self.places[place][spelling]
        if self.is_in_use(place):
            self.refuse(lambda: bind_direct(address))
            return multiple()
        return self.open_new(place, bind_direct(address), shared=False)

    def refuse(self, function: Callable[[], object]) -> None:
        before = open_descriptors()
        with pytest.raises(OSError, match="in use") as caught:
            function()
        assert caught.value.errno == errno.EADDRINUSE
        assert open_descriptors() == before

    @rule(target=clones, clone=clones)
    def dup(self, clone: tuple[Listener, Opened]) -> Any:
        listener, entry = clone
        if clone not in self.open_clones:
            with pytest.raises(OSError, match="closed") as caught:
                listener.dup()
            assert caught.value.errno == errno.EBADF
            return multiple()
        return self.count_in(listener.dup(), entry)

    @rule(clone=clones, by_a_thread=st.booleans())
    def close(self, clone: tuple[Listener, Opened], by_a_thread: bool) -> None:
        # Closed ones are drawn as well: closing twice is harmless.
        if by_a_thread:
            in_thread(clone[0].close)
        else:
            clone[0].close()
        if clone in self.open_clones:
            self.count_out(clone)

    @rule(target=descriptors, clone=consumes(clones))
    def detach(self, clone: tuple[Listener, Opened]) -> Any:
        if clone not in self.open_clones:
            return multiple()
        kernel = clone[1].kernel
        held = (clone[0].detach(), kernel)
        kernel.holders += 1
        clone[1].owner = False  # the file goes with the descriptor, to its owner
        self.open_descriptors.append(held)
        self.count_out(clone)
        return held

    @rule(held=consumes(descriptors))
    def close_descriptor(self, held: tuple[int, Kernel]) -> None:
        self.open_descriptors.remove(held)
        os.close(held[0])
        held[1].holders -= 1

    @rule(target=clones, held=descriptors, shared=st.booleans())
    def adopt(self, held: tuple[int, Kernel], shared: bool) -> Any:
        descriptor, kernel = held
        if shared and not self.is_named(kernel):
            return multiple()  # no bind could join it: see the tests of adopt
        if shared and any(
            entry.shared and entry.kernel.place == kernel.place and self.is_named(entry.kernel)
            for entry in self.entries
        ):
            self.refuse(lambda: REGISTRY.adopt(descriptor, shared=True))
            return multiple()
        entry = Opened(kernel, shared=shared, owner=False)
        self.entries.append(entry)
        return self.count_in(Listener(REGISTRY.adopt(descriptor, shared=shared)), entry)

    @invariant()
    def the_registry_is_the_model(self) -> None:
        REGISTRY.check()
        assert [(entry.clones, entry.shared) for entry in glb.registry.entries()] == [
            (entry.clones, entry.shared) for entry in self.entries
        ]
        assert [*REGISTRY] == [
            next(clone[0].entry for clone in self.open_clones if clone[1] is entry)
            for entry in self.entries
        ]

    @invariant()
    def every_place_is_as_free_as_the_model_says(self) -> None:
        for place in range(3):
            listening = self.is_in_use(place)
            address: Any = self.places[place][0]
            if place == 2:
                assert os.path.exists(address.removeprefix("unix:")) is self.is_taken(place)
                continue
            with socket.socket() as probe:
                # Without SO_REUSEADDR a connection's end would be in the way; none is made.
                if listening:
                    with pytest.raises(OSError, match="in use") as caught:
                        probe.bind(address)
                    assert caught.value.errno == errno.EADDRINUSE
                else:
                    probe.bind(address)

    def teardown(self) -> None:
        for listener, _ in self.open_clones:
            listener.close()
        for descriptor, _ in self.open_descriptors:
            os.close(descriptor)
        for left in ("app.sock", "other.sock"):
            if os.path.exists(left):
                os.unlink(left)


def test_any_program_counts_as_the_model_does(
    unix: str, free_address: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every step entries, counts and the kernel's own view are the model's."""
    host, port = free_address
    second = f"{host.rpartition('.')[0]}.{(int(host.rpartition('.')[2]) + 100) % 254 + 1}"
    monkeypatch.setattr(
        RegistryMachine,
        "places",
        [
            [(host, port), f"{host}:{port}", (f"::ffff:{host}", port)],
            [(second, port), f"{second}:{port}", (f"::ffff:{second}", port, 0, 0)],
            [unix, "unix:./app.sock", "unix:" + os.path.abspath("app.sock")],
        ],
        raising=False,
    )
    run_state_machine_as_test(
        RegistryMachine,
        settings=settings(
            deadline=None,
            database=None,
            print_blob=True,
            max_examples=examples(60),
            stateful_step_count=30,
        ),
    )
