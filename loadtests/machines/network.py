"""Hosts in network namespaces, joined by a bridge. The kernel removes all of it.

`enter` starts the program anew, as the first process of namespaces of its own for processes, mounts
and the network. When that process ends, however it ends, the kernel kills all others in there, and
then nothing holds the namespaces, links and mounts any more. So a run has no names and no addresses
in common with the machine or with another run, and leaves nothing behind, not even if it is killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtests.frame.process import ROOT

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
