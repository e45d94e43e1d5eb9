"""Sockets of a program that knows nothing of glb, and programs in processes of their own."""

from __future__ import annotations

import errno
import os
import pathlib
import select as native_select
import socket as native_socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gevent import socket

import glb.monkey
from glb.monkey import sockets as shared_sockets

from .bounds import ENDLESS_SECONDS

ANY = ("127.0.0.1", 0)
ROOT = pathlib.Path(glb.__file__).parents[1]

has_ipv6 = pathlib.Path("/proc/net/if_inet6").exists() and bool(
    pathlib.Path("/proc/net/if_inet6").read_text()
)


@contextmanager
def sockets_patched() -> Iterator[None]:
    """Patch gevent's sockets and selectors by glb's, and no more: this process stays unpatched."""
    assert not glb.monkey.is_patched()
    glb.monkey.patch._patch_sockets()
    try:
        yield
    finally:
        glb.monkey.restore()
        shared_sockets._detached.clear()


def bound(address: Any = ANY, family: int = socket.AF_INET) -> socket.socket:
    """Return a socket with SO_REUSEPORT, bound to *address*."""
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def opened(address: Any = ANY, *backlog: int, family: int = socket.AF_INET) -> socket.socket:
    """Return a socket with SO_REUSEPORT that listens on *address*."""
    sock = bound(address, family)
    try:
        sock.listen(*backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def wait_for_client(sock: Any) -> None:
    """Wait until a connection is in the accept queue, while the hub stands."""
    assert native_select.select([sock.fileno()], [], [], 10)[0]


def queued(sock: Any) -> native_socket.socket:
    """Return a client that stands in *sock*'s accept queue; the hub has not turned meanwhile."""
    client = native_socket.create_connection(sock.getsockname(), timeout=10)
    wait_for_client(sock)
    return client


def accept_now(sock: Any) -> bool:
    """Accept without waiting; return True if there was a connection."""
    timeout = sock.gettimeout()
    sock.settimeout(0)
    try:
        sock.accept()[0].close()
    except BlockingIOError:
        return False
    finally:
        sock.settimeout(timeout)
    return True


def errno_of(error: BaseException | None) -> str:
    """Return the name of *error*'s errno."""
    assert isinstance(error, OSError), error
    assert error.errno is not None
    return errno.errorcode[error.errno]


def run_python(
    *args: str, cwd: pathlib.Path | None = None, given: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with *args*, and *given* on its stdin; return its status and what it wrote."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *args],
        check=False,
        capture_output=True,
        text=True,
        input=given,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environ},
        timeout=ENDLESS_SECONDS,
    )


def check_child(program: str, *options: str) -> None:
    """Run *program* in a process where any warning is an error; it must end well and silently."""
    done = run_python("-X", "dev", "-W", "error", *options, "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done
