"""``glb serve``: its options, and the server that they make."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
import gevent
import gevent.monkey

from ..accept.listener import Listener
from ..model.forwarded import TrustedProxies
from ..model.limits import check_places
from ..net.sockets import bound_address
from ..server import StreamServer
from ..upgrade import Upgrade
from . import console
from .binds import open_listeners
from .http_limits import HTTP_LIMITS, http_limits, set_limits
from .page import page
from .privileges import Account, check_user, gid_of, umask_of
from .reload import Reloads
from .service import Service, Streams
from .settings import (
    ABOVE_ZERO,
    ADDRESS,
    BIND,
    POSITIVE,
    SECONDS,
    Bind,
    Checked,
    Whole,
    argument,
    as_toml,
    blaming,
    config_option,
    option,
    print_config_option,
    refused,
)
from .supervisor import PidFile, check_pid_file
from .target import Target, TargetError

if TYPE_CHECKING:
    from ..admin import Admin
    from .access_log import AccessLog

__all__ = ["serve"]

# A client that sends nothing has either gone or means harm. nginx gives 60 s for a request's head
# and 75 s between two, gunicorn's workers 2 s.
FIRST_BYTE_SECONDS: Final = 60

# Options that a stream has no use for.
ONLY_WSGI: Final = (*HTTP_LIMITS, "access_log", "log_format", "forwarded_allow_ips")

MOST_BACKLOG: Final = 2**31 - 1  # listen(2) takes an int

FILE: Final = click.Path(exists=True, dir_okay=False, readable=True)
UMASK: Final = Checked("umask", umask_of)
NETWORKS: Final = Checked("networks", TrustedProxies)


@click.command(epilog="Example: glb serve myproject.wsgi:application --bind unix:/run/my.sock")
@argument("target", required=False)
@config_option()
@print_config_option()
@option(
    "--bind",
    cls=Bind,
    metavar="ADDRESS",
    type=BIND,
    multiple=True,
    default=["127.0.0.1:8000"],
    show_default=True,
    help="host:port, [v6 host]:port, unix:/path, or :port or a port number, which are every"
    " interface's; fd://3 or fd://NAME is an inherited socket. Port 0 is any. May be given again:"
    " each has clones of its own. Without it, all inherited sockets; else the variable PORT is a"
    " port of every interface.",
)
@option(
    "--clones", type=POSITIVE, help="How many clones. [default: 4, or as many as there are hubs]"
)
@option(
    "--hubs",
    type=POSITIVE,
    default=1,
    show_default=True,
    help="On how many threads, each with a hub.",
)
@option(
    "--backlog",
    type=Whole(0, MOST_BACKLOG),
    help="Length of the accept queue. [default: what the kernel allows]",
)
@option(
    "--wsgi/--stream",
    "is_wsgi",
    default=None,
    help="The kind of TARGET, if its arguments don't show it.",
)
@option(
    "--patch/--no-patch",
    "is_patched",
    default=None,
    help="Have gevent patch the standard library before TARGET is imported, so that what waits in"
    " it lets other clients be served. [default: --patch, with --stream --no-patch]",
)
@option("--certfile", type=FILE, help="Serve TLS with this certificate.")
@option("--keyfile", type=FILE, help="The certificate's key.")
@option(
    "--max-connections",
    type=POSITIVE,
    help="Connections at once, of each address; further clients wait in the accept queue. [default:"
    " three quarters of the descriptors that the process may have, over all addresses]",
)
@option(
    "--max-connections-per-clone",
    type=POSITIVE,
    help="The same of each clone; a full one is passed over.",
)
@option("--accept-rate", type=ABOVE_ZERO, help="Connections a second, at most.")
@option(
    "--handshake-timeout",
    type=SECONDS,
    default=10,
    show_default=True,
    help="Seconds for TLS's handshake; 0 is for ever.",
)
@option(
    "--first-byte-timeout",
    type=SECONDS,
    help="Seconds that a client may be silent, before a request or within its head; 0 is for ever."
    " [default: 60 for WSGI; for a stream, whose server may speak first, 0]",
)
@http_limits
@option(
    "--proxy-protocol",
    type=click.Choice(["v1", "v2", "any"]),
    help="Connections begin with a load balancer's header of the PROXY protocol, which has the"
    " client's address.",
)
@option(
    "--proxy-allow-ips",
    metavar="NETWORKS",
    type=NETWORKS,
    help="Balancers that may send that header, between commas: addresses, 10.0.0.0/8, 'unix', or"
    " '*'. [default: 127.0.0.1,::1,unix]",
)
@option(
    "--forwarded-allow-ips",
    metavar="NETWORKS",
    type=NETWORKS,
    help="Proxies whose X-Forwarded-For, -Proto and -Host, or Forwarded, are believed, as above.",
)
@option(
    "--access-log",
    metavar="FILE",
    help="Append a line for each request to this file, '-' for stdout; SIGUSR1 opens it anew."
    " [default: stderr]",
)
@option(
    "--log-format",
    type=click.Choice(["common", "combined", "json"]),
    help="Format of the access log's lines. [default: common]",
)
@option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False),
    default="info",
    show_default=True,
    help="Level of glb's own lines on stderr; those below it are left out.",
)
@option(
    "--umask",
    metavar="OCTAL",
    type=UMASK,
    help="Permissions that new files don't have: 007 lets a Unix socket's group connect.",
)
@option(
    "--user",
    metavar="NAME",
    type=Checked("user", check_user),
    help="Become this user, a name or a number, once the addresses are bound.",
)
@option(
    "--group",
    metavar="NAME",
    type=Checked("group", gid_of),
    help="Become this group, a name or a number; Unix sockets are its own. [default: the user's]",
)
@option(
    "--drain-timeout",
    type=SECONDS,
    default=30,
    show_default=True,
    help="Seconds that handlers in flight have after SIGINT or SIGTERM; a second one ends them.",
)
@option(
    "--drain-delay",
    type=SECONDS,
    default=0,
    show_default=True,
    help="Seconds between that signal and the end of accepting: /readyz says no, replies say"
    " Connection: close, and a load balancer finds out before clients are refused.",
)
@option(
    "--upgrade-timeout",
    type=ABOVE_ZERO,
    default=60,
    show_default=True,
    help="Seconds that a new process may take to start, after SIGUSR2, until it takes over.",
)
@option(
    "--pid-file",
    metavar="FILE",
    type=Checked("file", check_pid_file),
    help="Have the process's id there, while it serves.",
)
@option(
    "--admin",
    metavar="ADDRESS",
    type=ADDRESS,
    help="Show there over HTTP how the server is: / for a browser, /livez, /readyz, /clones, and"
    " /metrics for Prometheus, which needs 'glb[metrics]'. There is no password: name a host, as a"
    " port alone is every interface's.",
)
@option(
    "--stall-limit",
    type=ABOVE_ZERO,
    default=10,
    show_default=True,
    help="Seconds after which a hub that does not turn is logged, and /livez tells of it. With"
    " --admin, or on a terminal.",
)
@option(
    "--reload",
    "is_watched",
    is_flag=True,
    help="Import TARGET afresh, and roll it in, when its source changes; SIGHUP does so at any"
    " time.",
)
@click.pass_context
def serve(context: click.Context, /, print_config: bool, **params: Any) -> None:
    """Serve TARGET until SIGINT or SIGTERM, and finish what is in flight.

    TARGET is module:callable or module:factory(), found from the current directory on: a WSGI
    application, or a handler of (socket, address). Without it, a page tells which clone answers.

    Each option has a variable, and a key in a file; TARGET has GLB_TARGET and the key "target". The
    command line comes before the environment, and that before the file.
    """
    if print_config:
        click.echo(as_toml(context), nl=False)
        return
    given = SimpleNamespace(**params)
    with blaming("clones"):
        check_places(given.clones, given.hubs)
    if given.umask is not None:
        os.umask(umask_of(given.umask))
    with blaming("bind"):
        upgrade = Upgrade(given.upgrade_timeout)
    account = _account(context, given)
    app = _load(context, given)
    with contextlib.ExitStack() as stack:
        service, shown, log = _open(context, given, app, account, upgrade, stack)
        reloads = None
        if app.target is not None:
            reloads = Reloads(service.servers, app.target, given.is_watched, service.supervisor)
        status = service.run(shown, reloads, log)
    context.exit(status)


def _account(context: click.Context, given: SimpleNamespace) -> Account | None:
    if given.user is None and given.group is None:
        return None
    with blaming("user"):
        account = Account.of(given.user, given.group)
    if os.geteuid() == 0:
        return account
    if not account.is_current:
        name = "group" if given.user is None else "user"
        value = getattr(given, name)
        raise refused(context, name, f"only root may become another {name}, got {value!r}")
    return None


class _App(NamedTuple):
    """What is served."""

    name: str
    handle: Callable[..., Any]
    is_wsgi: bool
    target: Target | None = None


def _load(context: click.Context, given: SimpleNamespace) -> _App:
    """Patch, if it is asked for, and import the target."""
    if given.is_patched is None:
        given.is_patched = given.target is not None and given.is_wsgi is not False
    if given.is_patched:
        # As ``gunicorn -k gevent``. What was imported before and holds what is patched now would
        # go on with it: so this module, and each that it imports, does without ssl and its like.
        gevent.monkey.patch_all()
    if given.target is None:
        for name, flag in (("is_watched", "--reload"), ("is_wsgi", "--stream")):
            if getattr(given, name) is (name == "is_watched"):
                raise refused(context, name, f"{flag} needs a TARGET")
        return _App("the built-in page", page, is_wsgi=True)
    # Before ssl and what needs it, too: a program that patches modules is to come first.
    with blaming("target"):
        target = Target(given.target, given.is_wsgi)
        try:
            handle = target.load()
        except gevent.GreenletExit as error:  # not KeyboardInterrupt: it may be a Ctrl-C
            module, reason = given.target.partition(":")[0], target.reason(error)
            raise TargetError(f"can't import {module!r}: {reason}") from error
    if given.is_watched:
        with blaming("is_watched", f"can't reload {target.name!r}: "):
            target.check_reload()
    if not target.is_wsgi:
        hint = "" if given.is_wsgi is False else ", by its arguments: give --wsgi if it isn't"
        for name in ONLY_WSGI:
            if getattr(given, name) is not None:
                raise refused(context, name, f"it is for WSGI, and {target.name!r} a stream{hint}")
    return _App(target.name, handle, target.is_wsgi, target)


def _open(
    context: click.Context,
    given: SimpleNamespace,
    app: _App,
    account: Account | None,
    upgrade: Upgrade,
    stack: contextlib.ExitStack,
) -> tuple[Service, contextlib.AbstractContextManager[None], AccessLog | None]:
    """Return the service, started, what shows it, and its access log; *stack* closes them."""
    tls = _tls(context, given.certfile, given.keyfile)
    log = None
    if given.access_log is not None:
        with blaming("access_log", f"can't open {given.access_log!r}: "):
            log = stack.enter_context(contextlib.closing(_open_log(given.access_log)))
    out = console.make_console()
    is_live = console.is_live(out) and not (log is not None and log.is_stdout)
    make = _wsgi_server if app.is_wsgi else _stream_server
    lines = log or console.STDERR
    with blaming("bind"):
        given.listeners = open_listeners(upgrade, given.bind, given.backlog)
        for each in given.listeners:
            stack.callback(each.close)
        servers = [make(each, app.handle, given, tls, lines) for each in given.listeners]
    pid_file = PidFile(given.pid_file)
    service = Service(servers, given.drain_timeout, given.drain_delay, upgrade, pid_file)
    with blaming("bind"):
        service.bind()
    stack.callback(service.close)
    seen = None
    if given.admin is not None:
        with blaming("admin"):
            # Before the servers: until those take clients, it says that they are not ready.
            listener = stack.enter_context(contextlib.closing(upgrade.listen(given.admin)))
            seen = stack.enter_context(_admin(servers, listener, given.stall_limit))
        service.admin = seen
    if account is not None:
        with blaming("user" if given.user is not None else "group", "can't become that: "):
            account.become(given.listeners)
    with blaming("bind"):
        service.start()
    urls = {_url(each, app.is_wsgi, bool(tls)): each for each in servers}
    title = f"serving {app.name} on {' and '.join(urls)} with {_places(given, servers)}"
    if given.is_patched:
        title += ", monkey-patched"
    if seen is not None:
        title += f", admin on {seen.url}"
    service.supervisor.status = title
    shown = console.shown(
        urls,
        title,
        out if is_live else None,
        given.log_level,
        given.stall_limit if seen is None else None,
    )
    return service, shown, log


def _places(given: SimpleNamespace, servers: Sequence[StreamServer]) -> str:
    some = console.count(servers[0].clones, "clone")
    if given.hubs > 1:
        some += f" on {console.count(given.hubs, 'hub')}"
    return some if len(servers) == 1 else f"{some} each"


def _most_connections(addresses: int) -> int | None:
    """Return how many of each address leave room for what else is opened; ``None`` is any."""
    try:
        import resource  # noqa: PLC0415  # Windows has none
    except ImportError:
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if most == resource.RLIM_INFINITY else max(1, most * 3 // 4 // addresses)


def _open_log(path: str) -> AccessLog:
    from .access_log import AccessLog  # noqa: PLC0415  # it imports gevent.pywsgi: see `_load`

    return AccessLog(path)


def _stream_server(
    listener: Listener,
    handle: Callable[..., Any],
    given: SimpleNamespace,
    tls: dict[str, Any],
    _lines: object,
) -> StreamServer:
    return Streams(listener, handle, **_options(given, 0), **tls)


def _wsgi_server(
    listener: Listener,
    handle: Callable[..., Any],
    given: SimpleNamespace,
    tls: dict[str, Any],
    lines: Any,
) -> StreamServer:
    from gevent.pywsgi import LoggingLogAdapter  # noqa: PLC0415  # it imports ssl: see `_load`

    from ..pywsgi import WSGIServer  # noqa: PLC0415  # as above
    from .access_log import handler_class  # noqa: PLC0415  # as above

    server = WSGIServer(
        listener,
        handle,
        log=lines,
        error_log=LoggingLogAdapter(console.log, logging.WARNING),
        handler_class=handler_class(given.log_format or "common"),
        forwarded_allow_ips=given.forwarded_allow_ips,
        **_options(given, FIRST_BYTE_SECONDS),
        **tls,
    )
    set_limits(server, given)
    return server


def _options(given: SimpleNamespace, first_byte_seconds: float) -> dict[str, Any]:
    first_byte = given.first_byte_timeout
    return {
        "clones": given.clones,
        "hubs": given.hubs,
        "max_connections": given.max_connections or _most_connections(len(given.listeners)),
        "max_connections_per_clone": given.max_connections_per_clone,
        "accept_rate": given.accept_rate,
        "handshake_timeout": given.handshake_timeout or None,
        "proxy_protocol": given.proxy_protocol,
        "proxy_allow_ips": given.proxy_allow_ips,
        "first_byte_timeout": (first_byte_seconds if first_byte is None else first_byte) or None,
    }


def _admin(servers: Sequence[StreamServer], where: Listener, stall_limit: float) -> Admin:
    from ..admin import Admin  # noqa: PLC0415  # it imports gevent.pywsgi: see `_load`

    return Admin(servers, where, stall_limit=stall_limit)


def _url(server: StreamServer, is_wsgi: bool, is_tls: bool) -> str:
    bound = bound_address(server.socket)
    if bound.port is None:
        return str(bound)
    scheme = ("https" if is_tls else "http") if is_wsgi else ("tls" if is_tls else "tcp")
    return f"{scheme}://{bound}"


def _tls(context: click.Context, certfile: str | None, keyfile: str | None) -> dict[str, Any]:
    """Return the server's arguments for TLS: none without a certificate."""
    if certfile is None and keyfile is None:
        return {}
    if certfile is None or keyfile is None:
        only, name = (keyfile, "keyfile") if certfile is None else (certfile, "certfile")
        raise refused(context, name, f"--certfile and --keyfile go together, got {only!r} alone")
    from gevent import ssl  # noqa: PLC0415  # see `_load`

    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with blaming("certfile", f"can't load the certificate {certfile!r} with the key {keyfile!r}: "):
        secured.load_cert_chain(certfile, keyfile)
    return {"ssl_context": secured}
