"""The kernel's side: opening listening sockets, duplicating them, and their options.

Everything here works on plain ``_socket.socket`` objects, which know no hub, are never
inherited by a child program, and stay what they are under monkey patching. Nothing here
waits, except that the C library looks up a host *name*, as for Python's ``bind``, and the whole
process waits for it. Give numeric addresses where that matters.

Where platforms differ, the differences are the fields of `Platform`, which comes in as an
argument.

Source: socket(7), ip(7), unix(7), listen(2), dup(2).
"""

from __future__ import annotations

import _socket
import array
import contextlib
import errno
import ipaddress
import operator
import os
import select
import stat
import struct
import sys
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from .. import originals
from ..model import address as addresses
from ..model.address import AF_INET6, AF_UNIX, Address, Key
from .unix_files import is_abstract, remove_stale, unlink

__all__ = ["DEFAULT_BACKLOG", "Platform", "duplicate", "open_listening", "resolve", "unlink"]

# More than any system's limit, so that each gives what it allows (Linux: net.core.somaxconn,
# 4096 today), and still fits the 16 bits that some keep the backlog in. trio asks for the
# same; gevent asks for 128.
DEFAULT_BACKLOG: Final = 65535

MAX_BACKLOG: Final = 2**31 - 1

# Linux's numbers, which the socket module doesn't have: see socket(7).
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27

# A filter in the classic instructions of the kernel's packet filter, over a TCP header: drop
# what has SYN and not ACK, let the rest pass.
_NO_NEWCOMERS: Final = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of the flags
        (0x54, 0, 0, 0x12),  # and SYN | ACK
        (0x15, 0, 1, 0x02),  # SYN alone: go on, else skip one
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # pass
    )
)

# The state of a socket that neither listens nor is connected: see <netinet/tcp.h>.
TCP_CLOSE: Final = 7

# The protocol of netlink by which the kernel tells of sockets: see <linux/netlink.h>.
_NETLINK_SOCK_DIAG: Final = 4


@dataclass(frozen=True)
class Platform:
    """The facts of an operating system that change how a socket is opened.

    Attributes:
        reuse_addr: Whether SO_REUSEADDR means "bind again although old connections
            linger". On Windows it means "steal the port" (gevent issue 217).
        reuse_port_balances: Whether the kernel spreads connections over sockets with
            SO_REUSEPORT. Elsewhere the last socket, or the first, gets them all.
        unix_sockets: Whether there are Unix stream sockets at all.
    """

    reuse_addr: bool
    reuse_port_balances: bool
    unix_sockets: bool

    @classmethod
    def of(cls, name: str, *, has_unix: bool, has_reuse_port: bool) -> Platform:
        """Return the facts of the platform that calls itself *name* in ``sys.platform``."""
        return cls(
            reuse_addr=name != "win32",
            reuse_port_balances=has_reuse_port and name in ("linux", "android"),
            unix_sockets=has_unix and name != "win32",
        )


#: The facts of the system this process runs on.
PLATFORM: Final = Platform.of(
    sys.platform,
    has_unix=hasattr(_socket, "AF_UNIX"),
    has_reuse_port=hasattr(_socket, "SO_REUSEPORT"),
)


def check_backlog(backlog: object) -> int:
    """Return *backlog* in connections; ``None`` means as many as the kernel allows.

    Raises:
        TypeError, ValueError: It isn't a whole number, or not 0 to 2147483647.
    """
    if backlog is None:
        return DEFAULT_BACKLOG
    if not isinstance(backlog, int) or isinstance(backlog, bool):
        raise TypeError(f"backlog must be a whole number or None, got {backlog!r}")
    if not 0 <= backlog <= MAX_BACKLOG:
        raise ValueError(f"backlog must be 0 to {MAX_BACKLOG}, got {backlog!r}")
    return backlog


def resolve(address: Address) -> Address:
    """Return *address* with a numeric host.

    Raises:
        OSError: ``socket.gaierror``, when the host is not known; the text has the address.
        ValueError: The host can't even be asked for (a label of over 63 letters).
    """
    if address.family == AF_UNIX:
        return address
    host, port, *rest = address.sockaddr
    try:
        found = _socket.getaddrinfo(
            host or None, port, address.family, _socket.SOCK_STREAM, 0, _socket.AI_PASSIVE
        )
    except _socket.gaierror as error:
        raise _socket.gaierror(error.errno, _cannot_bind(address, error)) from error
    except ValueError as error:  # UnicodeError, from the idna codec
        raise ValueError(_cannot_bind(address, error)) from error
    sockaddr: Any = found[0][4]
    if address.family == AF_INET6 and rest:
        flowinfo, scope = (*rest, sockaddr[3])[:2]
        sockaddr = (*sockaddr[:2], flowinfo, scope)
    return Address(address.family, sockaddr)


def open_listening(
    address: Address,
    backlog: int,
    *,
    reuse_port: bool = False,
    reuse_addr: bool = True,
    platform: Platform = PLATFORM,
) -> _socket.socket:
    """Return a new non-blocking socket that listens on the numeric *address*.

    Args:
        backlog: Length of the accept queue, in connections. The kernel lowers it to what
            it allows without a word.
        reuse_port: Set SO_REUSEPORT, where the kernel balances by it.
        reuse_addr: Set SO_REUSEADDR, but not on Windows: see `Platform.reuse_addr`.

    Returns:
        The socket; the caller closes it.

    Raises:
        OSError: The kernel said no. ``errno`` is the kernel's and the text has the
            address, and for a Unix socket what is in the way. Nothing stays open, and no
            socket file is left behind.

    Switches:
        Never. A Unix bind where a file is in the way may wait a second for the folder's lock.
    """
    is_unix = address.family == AF_UNIX
    if is_unix and not platform.unix_sockets:
        raise OSError(errno.EAFNOSUPPORT, f"can't bind {address}: no Unix sockets here")
    bound = False
    sock = None
    try:
        sock = _socket.socket(address.family, _socket.SOCK_STREAM)
        if not is_unix:
            if reuse_addr and platform.reuse_addr:
                sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            if reuse_port and platform.reuse_port_balances:
                sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
        _bind(sock, address)
        bound = True
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException as error:
        if sock is not None:
            if is_unix and bound:
                unlink(bound_address(sock))
            sock.close()
        if isinstance(error, OSError):
            # The errno chooses the class, PermissionError say. Errors of Python's own have
            # none, as that of a path that is too long.
            number = error.errno or errno.EINVAL
            raise OSError(number, _cannot_bind(address, error)) from error
        raise
    return sock


def _bind(sock: _socket.socket, address: Address) -> None:
    path = address.sockaddr
    try:
        sock.bind(path)
    except OSError as error:
        if address.family != AF_UNIX or error.errno != errno.EADDRINUSE or is_abstract(path):
            raise
        remove_stale(path)
        # If this fails, another server has bound the path since: the address is that one's.
        sock.bind(path)


def _cannot_bind(address: Address, error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"can't bind {address.sockaddr!r}: {reason}"


def duplicate(sock: _socket.socket) -> int:
    """Return a new descriptor of *sock*'s kernel socket; the caller closes it.

    The two share one open file description: O_NONBLOCK, the backlog and shutdown(2) are
    common to both, and closing one leaves the other as it is.

    Raises:
        OSError: EMFILE, ENFILE or EBADF.
    """
    return _socket.dup(sock.fileno())


def adopt(descriptor: int) -> _socket.socket:
    """Return a non-blocking socket on a duplicate of a foreign listening *descriptor*.

    Raises:
        OSError: It isn't open, or isn't a socket.
        TypeError: It isn't a stream socket, so nothing can be accepted from it.
    """
    copy = _socket.dup(descriptor)
    try:
        sock = _socket.socket(fileno=copy)
    except BaseException:
        _socket.close(copy)
        raise
    try:
        if _kind(sock) != _socket.SOCK_STREAM:
            raise TypeError(f"listener must be a stream socket, got {sock!r}")
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _kind(sock: _socket.socket) -> int:
    return sock.type & ~getattr(_socket, "SOCK_NONBLOCK", 0)


def set_nodelay(sock: _socket.socket) -> None:
    """Have connections of the listening *sock* send small replies at once, if it is TCP.

    Accepted connections inherit TCP_NODELAY from the listener, so it takes one call and not
    one a connection.
    """
    if sock.family in (_socket.AF_INET, AF_INET6):
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)


def is_readable(sock: _socket.socket) -> bool:
    """Return True if *sock* has data to read, or a connection to accept."""
    if originals.poll is None:
        return bool(originals.select([sock], [], [], 0)[0])
    poll = originals.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def bound_address(sock: _socket.socket) -> Address:
    """Return the address that *sock* is really bound to."""
    return Address(sock.family, sock.getsockname())


def is_loopback(sock: _socket.socket) -> bool:
    """Return True if *sock* is bound to an address that only this machine reaches."""
    if sock.family == AF_UNIX:
        return True
    host = str(sock.getsockname()[0]).partition("%")[0]
    return ipaddress.ip_address(host).is_loopback


def address_of(number: int) -> Address | None:
    """Return the address that descriptor *number* is bound to, if it is a TCP socket."""
    try:
        sock = _socket.socket(fileno=number)
    except OSError:
        return None
    try:
        return bound_address(sock) if sock.family in (_socket.AF_INET, AF_INET6) else None
    finally:
        sock.detach()


def find_key(address: Address) -> Key | None:
    """Return the key of a numeric *address*, or ``None`` if nothing can be bound there.

    A Unix socket's key is its file and not its path: all spellings of the path have one key, and
    another file at the same path has another one.
    """
    if address.family != AF_UNIX:
        return addresses.key_of(address)
    path = address.sockaddr
    if is_abstract(path):
        return (AF_UNIX, os.fsencode(path))
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (AF_UNIX, found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


def park(sock: _socket.socket) -> None:
    """Release *sock*'s kernel socket at once, but keep its descriptor number taken.

    For a socket that another thread's event loop still watches: the address is free as
    soon as this returns, and no new file can get the number before that loop has stopped its
    watcher and closed it. If no descriptor is left for the stand-in, *sock* is closed.
    """
    number = sock.fileno()
    try:
        with contextlib.closing(_socket.socket()) as stand_in:
            os.dup2(stand_in.fileno(), number, inheritable=False)
    except OSError:
        sock.close()


def kind_of(sock: _socket.socket) -> tuple[object, ...]:
    """Return what two sockets must have alike for one to stand in for the other.

    Family, type and protocol, IPV6_V6ONLY, and the interface they are bound to. The address
    isn't among it: see `find_key`.
    """
    facts: list[object] = [sock.family, _kind(sock), sock.proto or _socket.IPPROTO_TCP]
    if sock.family == AF_INET6:
        facts.append(bool(sock.getsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY)))
    if hasattr(_socket, "SO_BINDTODEVICE"):
        facts.append(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_BINDTODEVICE, 64))
    return tuple(facts)


def has_reuse_port(sock: _socket.socket) -> bool:
    """Return True if *sock* is a TCP socket with SO_REUSEPORT."""
    if sock.family not in (_socket.AF_INET, AF_INET6) or _kind(sock) != _socket.SOCK_STREAM:
        return False
    option = getattr(_socket, "SO_REUSEPORT", None)
    return option is not None and bool(sock.getsockopt(_socket.SOL_SOCKET, option))


def is_idle(sock: _socket.socket) -> bool:
    """Return True if *sock* neither listens nor is connected, or about to be."""
    if sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
        return False
    if hasattr(_socket, "TCP_INFO"):
        return sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_INFO, 1)[0] == TCP_CLOSE
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


class SharingFacts(NamedTuple):
    """What two sockets must have alike to be clones of one.

    Attributes:
        address: The address that it is bound to.
        key: The address's, or ``None`` before the kernel has chosen a port.
        kind: See `kind_of`.
    """

    address: Address
    key: Key | None
    kind: tuple[object, ...]


def sharing_facts(sock: _socket.socket) -> SharingFacts | None:
    """Return the facts of a socket that could share a TCP port, or ``None`` if it can't.

    It can if SO_REUSEPORT is set, and if it neither listens nor is connected.
    """
    if not has_reuse_port(sock) or not is_idle(sock):
        return None
    address = bound_address(sock)
    key = addresses.key_of(address) if address.sockaddr[1] else None
    return SharingFacts(address, key, kind_of(sock))


def numeric(family: int, address: Any) -> Any:
    """Return the numeric host and port that bind(2) would bind *address* to, in any form.

    Raises:
        OSError, TypeError, ValueError: As bind(2) of Python does.
    """
    host, port, *rest = address
    # Python itself reads it, on a free port.
    with contextlib.closing(_socket.socket(family, _socket.SOCK_STREAM)) as scratch:
        scratch.bind((host, 0, *rest))
        bound = scratch.getsockname()
    return (bound[0], operator.index(port), *bound[2:])


def open_bound(like: _socket.socket) -> _socket.socket:
    """Return a new socket with SO_REUSEPORT that is bound to *like*'s address, and doesn't listen.

    Raises:
        OSError: The kernel said no; nothing stays open.
    """
    sock = _socket.socket(like.family, like.type, like.proto)
    try:
        for option in (_socket.SO_REUSEADDR, _socket.SO_REUSEPORT):
            value = like.getsockopt(_socket.SOL_SOCKET, option)
            sock.setsockopt(_socket.SOL_SOCKET, option, value)
        if like.family == AF_INET6:
            only = like.getsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY)
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, only)
        sock.bind(like.getsockname())
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def stand_in(number: int, sock: _socket.socket) -> None:
    """Have descriptor *number* lead to *sock*'s kernel socket, and close what it led to."""
    os.dup2(sock.fileno(), number, inheritable=os.get_inheritable(number))


def file_of(number: int) -> tuple[int, int] | None:
    """Return the identity of the open file behind *number*; ``None`` if it is closed."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


def refuse_newcomers(sock: _socket.socket) -> bool:
    """Let no new handshake reach the accept queue of *sock*; connections in the queue stay.

    A new client tries again a second later, as if its packet had been lost.

    Returns:
        ``False`` if the kernel can't: Linux can, for TCP.
    """
    if not sys.platform.startswith("linux") or sock.family == AF_UNIX:
        return False
    code = array.array("B", _NO_NEWCOMERS)
    program = struct.pack("HP", len(_NO_NEWCOMERS) // 8, code.buffer_info()[0])
    try:
        sock.setsockopt(_socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    except OSError:
        return False
    return True


def admit_newcomers(sock: _socket.socket) -> None:
    """Undo `refuse_newcomers`."""
    with contextlib.suppress(OSError):
        sock.setsockopt(_socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def ask_sock_diag(request: bytes) -> bytes:
    """Return what the kernel replies to *request*, a message of sock_diag(7).

    Raises:
        OSError: It can't be asked: Linux alone has it.
    """
    family = getattr(_socket, "AF_NETLINK", None)
    if family is None:
        raise OSError(errno.EAFNOSUPPORT, "there is no sock_diag(7)")
    sock = _socket.socket(family, _socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    try:
        sock.sendto(request, (0, 0))
        return sock.recv(65536)  # the reply is there when sendto returns
    finally:
        sock.close()


def send_datagram(path: str, data: bytes) -> None:
    """Send *data* to the Unix socket *path*, whose name is abstract if it begins with ``@``.

    Raises:
        OSError: As sendto(2). It doesn't wait.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.sendto(data, "\0" + path[1:] if path.startswith("@") else path)
    finally:
        sock.close()
