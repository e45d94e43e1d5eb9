"""``glb serve``: its options, and the server that they make."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
import gevent
import gevent.monkey

from ..model.address import parse
from ..model.stats import CloneStats
from ..net.sockets import bound_address
from ..server import StreamServer
from . import console
from .reload import Reloads
from .settings import (
    ABOVE_ZERO,
    ADDRESS,
    SECONDS,
    Bind,
    argument,
    as_toml,
    blaming,
    config_option,
    option,
    print_config_option,
    refused,
)
from .target import Target, TargetError

if TYPE_CHECKING:
    from ..admin import Admin

__all__ = ["serve"]

# A client that sends nothing has either gone or means harm. nginx gives 60 s for a request's head
# and 75 s between two, gunicorn's workers 2 s.
FIRST_BYTE_SECONDS: Final = 60

# Within a body or a reply, as nginx's client_body_timeout and send_timeout.
CLIENT_SECONDS: Final = 60

MOST_BACKLOG: Final = 2**31 - 1  # listen(2) takes an int

POSITIVE: Final = click.IntRange(min=1)
NOT_NEGATIVE: Final = click.IntRange(min=0)
FILE: Final = click.Path(exists=True, dir_okay=False, readable=True)


@click.command(epilog="Example: glb serve myproject.wsgi:application --bind unix:/run/my.sock")
@argument("target", required=False)
@config_option()
@print_config_option()
@option(
    "--bind",
    cls=Bind,
    metavar="ADDRESS",
    type=ADDRESS,
    default="127.0.0.1:8000",
    show_default=True,
    help="host:port, [v6 host]:port, :port, a port number, or unix:/path. Port 0 is any. Without"
    " it the variable PORT is a port of every host.",
)
@option("--clones", type=POSITIVE, help="How many. [default: 4, or as many as there are hubs]")
@option("--hubs", type=POSITIVE, default=1, show_default=True, help="On how many threads.")
@option(
    "--backlog",
    type=click.IntRange(0, MOST_BACKLOG),
    help="Length of the accept queue. [default: what the kernel allows]",
)
@option("--wsgi/--stream", "is_wsgi", default=None, help="What TARGET is, if it can't be told.")
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
    help="At once; further clients wait in the kernel. [default: three quarters of the descriptors"
    " that the process may have]",
)
@option("--max-connections-per-clone", type=POSITIVE, help="A clone that is full is passed over.")
@option("--accept-rate", type=ABOVE_ZERO, help="Connections a second.")
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
@option(
    "--max-body",
    type=NOT_NEGATIVE,
    help="Bytes of a request's body; a longer one gets a 413; 0 is any. [default: 1 GiB]",
)
@option(
    "--body-timeout",
    type=SECONDS,
    help="Seconds that a client may be silent within the body of a request; 0 is for ever."
    " [default: 60]",
)
@option(
    "--send-timeout",
    type=SECONDS,
    help="Seconds that a client may take nothing of a reply; 0 is for ever. [default: 60]",
)
@option(
    "--drain-timeout",
    type=SECONDS,
    default=30,
    show_default=True,
    help="Seconds that handlers in flight have after SIGINT or SIGTERM; a second one ends them.",
)
@option(
    "--admin",
    metavar="ADDRESS",
    type=ADDRESS,
    help="Tell there over HTTP how the server is: /livez, /readyz, /clones, and /metrics for"
    " Prometheus, which needs 'glb[metrics]'. There is no password.",
)
@option(
    "--stall-limit",
    type=ABOVE_ZERO,
    default=10,
    show_default=True,
    help="Seconds after which a hub that does not turn is logged, and /livez tells of it. With"
    " --admin.",
)
@option(
    "--reload",
    "is_watched",
    is_flag=True,
    help="Import TARGET afresh, and roll it in, when its source changes; SIGHUP does so at any"
    " time.",
)
@click.pass_context
def serve(
    context: click.Context,
    target: str | None,
    print_config: bool,
    bind: str,
    clones: int | None,
    hubs: int,
    backlog: int | None,
    is_wsgi: bool | None,
    is_patched: bool | None,
    certfile: str | None,
    keyfile: str | None,
    max_connections: int | None,
    max_connections_per_clone: int | None,
    accept_rate: float | None,
    handshake_timeout: float,
    first_byte_timeout: float | None,
    max_body: int | None,
    body_timeout: float | None,
    send_timeout: float | None,
    drain_timeout: float,
    admin: str | None,
    stall_limit: float,
    is_watched: bool,
) -> None:
    """Serve TARGET until SIGINT or SIGTERM, and finish what is in flight.

    TARGET is module:callable or module:factory(), found from the current directory on: a WSGI
    application, or a handler of (socket, address). Without it, a page tells which clone answers.

    Each option has a variable, and a key in a file; TARGET has GLB_TARGET and the key "target". The
    command line comes before the environment, and that before the file.
    """
    if print_config:
        click.echo(as_toml(context), nl=False)
        return
    loaded = None
    if is_patched is None:
        is_patched = target is not None and is_wsgi is not False
    if is_patched:
        # As ``gunicorn -k gevent``. What was imported before and holds what is patched now would
        # go on with it: so this module, and each that it imports, does without ssl and its like.
        gevent.monkey.patch_all()
    if target is not None:
        # Before ssl and what needs it, too: a program that patches modules is to come first.
        with blaming("target"):
            loaded = Target(target, is_wsgi)
            try:
                handle, is_wsgi = loaded.load(), loaded.is_wsgi
            except gevent.GreenletExit as error:  # not KeyboardInterrupt: it may be a Ctrl-C
                module, reason = target.partition(":")[0], loaded.reason(error)
                raise TargetError(f"can't import {module!r}: {reason}") from error
    elif is_wsgi is False or is_watched:
        name, flag = ("is_watched", "--reload") if is_watched else ("is_wsgi", "--stream")
        raise refused(context, name, f"{flag} needs a TARGET")
    else:
        handle, is_wsgi, target = _page, True, "the built-in page"
    tls = _tls(context, certfile, keyfile)
    if first_byte_timeout is None:
        first_byte_timeout = FIRST_BYTE_SECONDS if is_wsgi else 0
    http = {"max_body": max_body, "body_timeout": body_timeout, "send_timeout": send_timeout}
    if not is_wsgi:
        for name, value in http.items():
            if value is not None:
                raise refused(context, name, f"it is for WSGI, and {target!r} a stream")
        http = {}
    with blaming("bind"):
        server = _make_server(
            is_wsgi,
            parse(bind),
            handle,
            backlog=backlog,
            clones=clones,
            hubs=hubs,
            max_connections=max_connections or _most_connections(),
            max_connections_per_clone=max_connections_per_clone,
            accept_rate=accept_rate,
            handshake_timeout=handshake_timeout or None,
            first_byte_timeout=first_byte_timeout or None,
            **http,
            **tls,
        )
    with contextlib.ExitStack() as stack:
        with blaming("admin"):
            # Before the server: until that takes clients, it says that it is not ready.
            seen = None if admin is None else _admin(server, admin, stall_limit)
            if seen is not None:
                stack.enter_context(seen)
        with blaming("bind"):
            server.start()
        some = console.count(server.clones, "clone")
        if hubs > 1:
            some += f" on {console.count(hubs, 'hub')}"
        if is_patched:
            some += ", monkey-patched"
        title = f"serving {target} on {_url(server, is_wsgi, bool(tls))} with {some}"
        if seen is not None:
            title += f", seen on {seen.url}"
        reloads = None if loaded is None else Reloads(server, loaded, is_watched)
        _run(server, reloads, title, drain_timeout)


def _most_connections() -> int | None:
    """Return how many connections leave room for what else a program opens; ``None`` is any."""
    try:
        import resource  # noqa: PLC0415  # Windows has none
    except ImportError:
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if most == resource.RLIM_INFINITY else max(1, most * 3 // 4)


def _make_server(is_wsgi: bool, *args: Any, **options: Any) -> StreamServer:
    if not is_wsgi:
        return StreamServer(*args, **options)
    from ..pywsgi import WSGIServer  # noqa: PLC0415  # it imports ssl: see `serve`

    # A live table leaves no room for the lines of an access log.
    options["log"] = None if console.is_live(console.make_console()) else console.STDERR
    options["error_log"] = console.STDERR
    body, *seconds = (options.pop(name) for name in ("max_body", "body_timeout", "send_timeout"))
    server = WSGIServer(*args, **options)
    server.needs_host = True
    server.body_timeout, server.send_timeout = (
        CLIENT_SECONDS if each is None else each or None for each in seconds
    )
    if body is not None:
        server.max_body = body or None
    return server


def _admin(server: StreamServer, where: str, stall_limit: float) -> Admin:
    from ..admin import Admin  # noqa: PLC0415  # it imports gevent.pywsgi: see `serve`

    return Admin(server, parse(where), stall_limit=stall_limit)


def _url(server: StreamServer, is_wsgi: bool, is_tls: bool) -> str:
    bound = bound_address(server.socket)
    if bound.port is None:
        return str(bound)
    scheme = ("https" if is_tls else "http") if is_wsgi else ("tls" if is_tls else "tcp")
    return f"{scheme}://{bound}"


def _run(
    server: StreamServer, reloads: Reloads | None, title: str, drain_timeout: float
) -> NoReturn:
    """Serve until a signal, status 0, or until the server has closed itself, status 1."""
    signals: list[int] = []

    def end(number: int) -> None:
        signals.append(number)
        if len(signals) > 1:
            server.stop(0)  # who asks twice doesn't want to wait
            return
        if server.active:
            some = console.count(server.active, "connection")
            console.tell("draining %s, for %g s at most; again to end at once", some, drain_timeout)
        server.drain(drain_timeout)

    # Before the first line, whose reader may send a signal, and until the process is gone:
    # a second one must not turn a clean end into a kill.
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, end, number)
    if hasattr(signal, "SIGHUP"):
        gevent.signal_handler(signal.SIGHUP, _on_hangup, _terminal(), reloads)
    with console.shown(server, title, console.make_console()), reloads or contextlib.nullcontext():
        server.serve_forever()
    click.get_current_context().exit(0 if signals else 1)


def _terminal() -> int | None:
    """Return the descriptor of the terminal that is written to, if it is one."""
    with contextlib.suppress(OSError, ValueError):  # stdout may be closed, or no file
        descriptor = sys.stdout.fileno()
        if os.isatty(descriptor):
            return descriptor
    return None


def _on_hangup(terminal: int | None, reloads: Reloads | None) -> None:
    if terminal is not None and not os.isatty(terminal):
        # Its window was closed: the signal has its first meaning. A server that is to outlive its
        # terminal doesn't write to it.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGHUP)
    elif reloads is None:
        console.tell("nothing to reload: there is no TARGET")
    else:
        reloads.ask()


def _tls(context: click.Context, certfile: str | None, keyfile: str | None) -> dict[str, Any]:
    """Return the server's arguments for TLS: none without a certificate."""
    if certfile is None and keyfile is None:
        return {}
    if certfile is None or keyfile is None:
        only, name = (keyfile, "keyfile") if certfile is None else (certfile, "certfile")
        raise refused(context, name, f"--certfile and --keyfile go together, got {only!r} alone")
    from gevent import ssl  # noqa: PLC0415  # see `serve`

    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with blaming("certfile", f"can't load the certificate {certfile!r} with the key {keyfile!r}: "):
        secured.load_cert_chain(certfile, keyfile)
    return {"ssl_context": secured}


def _page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Tell which clone answers, and what all of them have done."""
    clone = environ["glb.clone"]
    lines = [f"Clone {clone} answers, one of {clone.server.clones}.", ""]
    for row in (CloneStats._fields, *clone.server.clone_stats()):
        lines.append("".join(f"{cell!s:>11}" for cell in (*row[:5], row[7], row[6])))
    body = "\n".join([*lines, ""]).encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        # Turns are taken by connections: so that each reload shows the next one.
        ("Connection", "close"),
    ]
    start_response("200 OK", headers)
    return [body]
