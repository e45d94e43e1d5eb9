"""The commands: ``glb demo`` shows the turns, ``glb serve`` and ``glb run`` start programs.

Wrong input gets one line on stderr, which starts with ``glb:``, and status 2.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
import gevent

from .._version import VERSION
from ..model.address import parse
from ..model.stats import CloneStats
from ..net.sockets import bound_address
from ..server import StreamServer
from . import console
from .demo import run_gevent, run_glb
from .program import Program, ProgramNotFoundError
from .reload import Reloads
from .target import Target, TargetError

if TYPE_CHECKING:
    from ..admin import Admin

__all__ = ["cli", "main"]

# A client that sends nothing is gone, or an attacker. nginx gives 60 s for a request's head and 75
# s between two, gunicorn's workers 2 s.
FIRST_BYTE_SECONDS: Final = 60

# Within a body or a reply, as nginx's client_body_timeout and send_timeout.
CLIENT_SECONDS: Final = 60

POSITIVE: Final = click.IntRange(min=1)
NOT_NEGATIVE: Final = click.IntRange(min=0)
SECONDS: Final = click.FloatRange(min=0)
ABOVE_ZERO: Final = click.FloatRange(min=0, min_open=True)
FILE: Final = click.Path(exists=True, dir_okay=False, readable=True)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, *args* or the process's, and exit with its status."""
    try:
        status = cli.main(args, prog_name="glb", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"glb: {console.one_line(error.format_message())}", err=True)
        status = 2
    except click.Abort:
        status = 128 + signal.SIGINT
    if isinstance(status, Program):
        # Not within the command: click would take some of the program's exceptions for its own.
        try:
            status.run()
        except ProgramNotFoundError as error:
            click.echo(f"glb: {console.one_line(error)}", err=True)
            status = error.status
        else:
            status = 0
    sys.exit(status)


@contextlib.contextmanager
def _refusing(what: str = "") -> Iterator[None]:
    """Turn errors of glb and the kernel about wrong input into a usage error."""
    try:
        yield
    except (OSError, TypeError, ValueError, TargetError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.UsageError(f"{what}{reason}") from error


@click.group(
    invoke_without_command=True,
    epilog="Example: glb serve myproject.wsgi:application --bind :8000",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(VERSION, message="glb %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Load-balanced listeners inside one gevent process.

    The clones of a server share one socket, and connections go round them in exact turn.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command(epilog="Example: glb demo --clones 8")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--clones", type=POSITIVE, default=4, show_default=True, help="How many servers.")
@click.option(
    "--connections", type=POSITIVE, default=1000, show_default=True, help="How many clients."
)
def demo(as_json: bool, clones: int, connections: int) -> None:
    """Count the clients of each clone, with glb and with gevent servers that race.

    Real clients connect to a free port, one after another. The status is 0 if glb served
    them in exact turn, 1 if not.
    """
    out = console.make_console()
    started = time.perf_counter()
    with _refusing(), console.progress(out, 2 * connections, hide=as_json) as advance:
        fair = run_glb(clones, connections, advance)
        racing = run_gevent(clones, connections, advance)
    if as_json:
        found = {
            "clones": clones,
            "connections": connections,
            "glb": fair.as_json(),
            "gevent": racing.as_json(),
            "seconds": round(time.perf_counter() - started, 3),
        }
        click.echo(json.dumps(found))
    else:
        out.print(console.outcomes({"glb": fair, "racing gevent servers": racing}))
    click.get_current_context().exit(0 if fair.is_exact else 1)


@cli.command(
    epilog="Example: glb run --clones 8 app.py --port 8000",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--clones", type=POSITIVE, help="How many each of gevent's servers has. [default: 4]")
@click.option("--hubs", type=POSITIVE, help="On how many threads they live. [default: 1]")
@click.option(
    "--exclude",
    metavar="ADDRESS",
    multiple=True,
    help="Leave it alone: host:port, or :port of every host. May be given again.",
)
@click.option("-m", "is_module", is_flag=True, help="PROGRAM is a module's name.")
@click.argument("program")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(
    clones: int | None,
    hubs: int | None,
    exclude: tuple[str, ...],
    is_module: bool,
    program: str,
    args: tuple[str, ...],
) -> Program:
    """Run PROGRAM, monkey-patched, as python would.

    The sockets that it opens on one address with SO_REUSEPORT, and the clones of gevent's
    servers, get their connections in exact turn.
    """
    from .. import monkey  # noqa: PLC0415  # the other commands don't need it

    with _refusing():
        monkey.patch_all(clones, hubs, exclude=exclude)
    return Program(program, args, is_module)


@cli.command(epilog="Example: glb serve myproject.wsgi:application --bind unix:/run/my.sock")
@click.argument("target", required=False)
@click.option(
    "--bind",
    "where",
    metavar="ADDRESS",
    default="127.0.0.1:8000",
    show_default=True,
    help="host:port, [v6 host]:port, :port, a port number, or unix:/path. Port 0 is any.",
)
@click.option(
    "--clones", type=POSITIVE, help="How many. [default: 4, or as many as there are hubs]"
)
@click.option("--hubs", type=POSITIVE, default=1, show_default=True, help="On how many threads.")
@click.option(
    "--backlog", type=int, help="Length of the accept queue. [default: what the kernel allows]"
)
@click.option(
    "--wsgi/--stream",
    "is_wsgi",
    default=None,
    help="The kind of TARGET, if its arguments don't show it.",
)
@click.option("--certfile", type=FILE, help="Serve TLS with this certificate.")
@click.option("--keyfile", type=FILE, help="The certificate's key.")
@click.option(
    "--max-connections",
    type=POSITIVE,
    help="At once; further clients wait in the kernel. [default: three quarters of the descriptors"
    " that the process may have]",
)
@click.option(
    "--max-connections-per-clone", type=POSITIVE, help="A clone that is full is passed over."
)
@click.option("--accept-rate", type=ABOVE_ZERO, help="Connections a second.")
@click.option(
    "--handshake-timeout",
    type=SECONDS,
    default=10,
    show_default=True,
    help="Seconds for TLS's handshake; 0 is for ever.",
)
@click.option(
    "--first-byte-timeout",
    type=SECONDS,
    help="Seconds that a client may be silent, before a request or within its head; 0 is for ever."
    " [default: 60 for WSGI; for a stream, whose server may speak first, 0]",
)
@click.option(
    "--max-body",
    type=NOT_NEGATIVE,
    help="Bytes of a request's body; a longer one gets a 413; 0 is any. [default: 1 GiB]",
)
@click.option(
    "--body-timeout",
    type=SECONDS,
    help="Seconds that a client may be silent within the body of a request; 0 is for ever."
    " [default: 60]",
)
@click.option(
    "--send-timeout",
    type=SECONDS,
    help="Seconds that a client may take nothing of a reply; 0 is for ever. [default: 60]",
)
@click.option(
    "--drain-timeout",
    type=SECONDS,
    default=30,
    show_default=True,
    help="Seconds that handlers in flight have after SIGINT or SIGTERM; a second one ends them.",
)
@click.option(
    "--drain-delay",
    type=SECONDS,
    default=0,
    show_default=True,
    help="Seconds between that signal and the end of accepting: /readyz says no, replies say"
    " Connection: close, and a load balancer finds out before clients are refused.",
)
@click.option(
    "--admin",
    metavar="ADDRESS",
    help="Tell there over HTTP how the server is: /livez, /readyz, /clones, and /metrics for"
    " Prometheus, which needs 'glb[metrics]'. There is no password.",
)
@click.option(
    "--stall-limit",
    type=ABOVE_ZERO,
    default=10,
    show_default=True,
    help="Seconds after which a hub that does not turn is logged, and /livez tells of it. With"
    " --admin.",
)
@click.option(
    "--reload",
    "is_watched",
    is_flag=True,
    help="Import TARGET afresh, and roll it in, when its source changes; SIGHUP does so at any"
    " time.",
)
def serve(
    target: str | None,
    where: str,
    clones: int | None,
    hubs: int,
    backlog: int | None,
    is_wsgi: bool | None,
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
    drain_delay: float,
    admin: str | None,
    stall_limit: float,
    is_watched: bool,
) -> None:
    """Serve TARGET until SIGINT or SIGTERM, and finish what is in flight.

    TARGET is module:callable, found from the current directory on: a WSGI application, or a
    handler of (socket, address). Without it, a page shows which clone answers.
    """
    with _refusing():
        address = parse(where)
    loaded = None
    if target is not None:
        # Before ssl is imported: a program that patches modules must come first.
        with _refusing():
            loaded = Target(target, is_wsgi)
            try:
                handle, is_wsgi = loaded.load(), loaded.is_wsgi
            except gevent.GreenletExit as error:  # not KeyboardInterrupt: it may be a Ctrl-C
                module, reason = target.partition(":")[0], loaded.reason(error)
                raise TargetError(f"can't import {module!r}: {reason}") from error
    elif is_wsgi is False or is_watched:
        raise click.UsageError(f"{'--reload' if is_watched else '--stream'} needs a TARGET")
    else:
        handle, is_wsgi, target = _page, True, "the built-in page"
    tls = _tls(certfile, keyfile)
    if first_byte_timeout is None:
        first_byte_timeout = FIRST_BYTE_SECONDS if is_wsgi else 0
    http = {"max_body": max_body, "body_timeout": body_timeout, "send_timeout": send_timeout}
    if not is_wsgi:
        for name, value in http.items():
            if value is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} is for WSGI, and this a stream")
        http = {}
    with _refusing():
        server = _make_server(
            is_wsgi,
            address,
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
        with _refusing("" if admin is None else f"can't tell of it on {admin!r}: "):
            # Before the server: until that takes clients, it says that it is not ready.
            seen = None if admin is None else _admin(server, admin, stall_limit)
            if seen is not None:
                stack.enter_context(seen)
        with _refusing():
            server.start()
        some = console.count(server.clones, "clone")
        if hubs > 1:
            some += f" on {console.count(hubs, 'hub')}"
        title = f"serving {target} on {_url(server, is_wsgi, bool(tls))} with {some}"
        if seen is not None:
            title += f", seen on {seen.url}"
        reloads = None if loaded is None else Reloads(server, loaded, is_watched)
        _run(server, reloads, title, drain_timeout, drain_delay)


def _most_connections() -> int | None:
    """Return a limit of connections that leaves descriptors for other files; ``None`` is any."""
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
    server: StreamServer,
    reloads: Reloads | None,
    title: str,
    drain_timeout: float,
    drain_delay: float,
) -> NoReturn:
    """Serve until a signal, status 0, or until the server has closed itself, status 1."""
    signals: list[int] = []

    def end(number: int) -> None:
        signals.append(number)
        if len(signals) > 1:
            server.stop(0)  # the second signal: no more waiting
            return
        if drain_delay:
            console.tell("not ready any more; new clients are served for %g s still", drain_delay)
        if server.active:
            some = console.count(server.active, "connection")
            console.tell("draining %s, for %g s at most; again to end at once", some, drain_timeout)
        server.drain(drain_timeout, delay=drain_delay)

    # Before the first line, since its reader may send a signal at once, and until the process is
    # gone: a second one must not turn a clean end into a kill.
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, end, number)
    if hasattr(signal, "SIGHUP"):
        gevent.signal_handler(signal.SIGHUP, _on_hangup, _terminal(), reloads)
    with console.shown(server, title, console.make_console()), reloads or contextlib.nullcontext():
        server.serve_forever()
    click.get_current_context().exit(0 if signals else 1)


def _terminal() -> int | None:
    """Return the descriptor of stdout, if it is a terminal."""
    with contextlib.suppress(OSError, ValueError):  # stdout may be closed, or no file
        descriptor = sys.stdout.fileno()
        if os.isatty(descriptor):
            return descriptor
    return None


def _on_hangup(terminal: int | None, reloads: Reloads | None) -> None:
    if terminal is not None and not os.isatty(terminal):
        # Its window was closed: the signal has its first meaning. A server that must outlive its
        # terminal doesn't write to it.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGHUP)
    elif reloads is None:
        console.tell("nothing to reload: there is no TARGET")
    else:
        reloads.ask()


def _tls(certfile: str | None, keyfile: str | None) -> dict[str, Any]:
    """Return the server's arguments for TLS: none without a certificate."""
    if certfile is None and keyfile is None:
        return {}
    if certfile is None or keyfile is None:
        raise click.UsageError("--certfile and --keyfile go together")
    from gevent import ssl  # noqa: PLC0415  # see `serve`

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _refusing(f"can't load the certificate {certfile!r} with the key {keyfile!r}: "):
        context.load_cert_chain(certfile, keyfile)
    return {"ssl_context": context}


def _page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Show which clone answers, and what all of them have done."""
    clone = environ["glb.clone"]
    lines = [f"Clone {clone} answers, one of {clone.server.clones}.", ""]
    for row in (CloneStats._fields, *clone.server.clone_stats()):
        lines.append("".join(f"{cell!s:>11}" for cell in (*row[:5], row[7], row[6])))
    body = "\n".join([*lines, ""]).encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        # Connections take turns, not requests: so each reload shows the next clone.
        ("Connection", "close"),
    ]
    start_response("200 OK", headers)
    return [body]
