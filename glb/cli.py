"""The command line: ``glb demo`` shows the turns, ``glb serve`` and ``glb run`` take programs.

Wrong input gets one line on stderr, which starts with ``glb:``, and status 2.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn

import click
import gevent

from . import console
from ._version import VERSION
from .address import parse
from .demo import run_gevent, run_glb
from .handlers import HandlerPool
from .program import Program, ProgramNotFoundError
from .server import StreamServer
from .sockets import bound_address
from .stats import CloneStats

__all__ = ["cli", "main"]

# As gevent's own servers; a browser's idle connection holds the end up for so long.
STOP_TIMEOUT_SECONDS: Final = 1

#: Tried in turn when a target is a module alone: WSGI's name, and Flask's.
DEFAULT_ATTRIBUTES: Final = ("application", "app")

POSITIVE: Final = click.IntRange(min=1)
FILE: Final = click.Path(exists=True, dir_okay=False, readable=True)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, *args* or the process's, and exit with its status."""
    try:
        status = cli.main(args, prog_name="glb", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"glb: {_one_line(error.format_message())}", err=True)
        status = 2
    except click.Abort:
        status = 128 + signal.SIGINT
    if isinstance(status, Program):
        # Not in the command: click would meet what it raises, and take some for its own.
        try:
            status.run()
        except ProgramNotFoundError as error:
            click.echo(f"glb: {_one_line(error)}", err=True)
            status = error.status
        else:
            status = 0
    sys.exit(status)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


@contextlib.contextmanager
def _refusing(what: str = "") -> Iterator[None]:
    """Turn what glb and the kernel say of wrong input into a usage error."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
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
    """Count who serves whom, with glb and with gevent servers that race.

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
    from . import monkey  # noqa: PLC0415  # it would import what the other commands don't need

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
    "--wsgi/--stream", "is_wsgi", default=None, help="What TARGET is, if it can't be told."
)
@click.option("--certfile", type=FILE, help="Serve TLS with this certificate.")
@click.option("--keyfile", type=FILE, help="The certificate's key.")
@click.option(
    "--max-connections", type=POSITIVE, help="Handlers at once; further clients wait in the kernel."
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
) -> None:
    """Serve TARGET until SIGINT or SIGTERM.

    TARGET is module:callable, found from the current directory on: a WSGI application, or a
    handler of (socket, address). Without it, a page tells which clone answers.
    """
    with _refusing():
        address = parse(where)
    if target is not None:
        # Before ssl and what needs it: a program that patches modules is to come first.
        handle = _load(target)
        if is_wsgi is None:
            is_wsgi = _is_wsgi(handle, target)
    elif is_wsgi is False:
        raise click.UsageError("--stream needs a TARGET")
    else:
        handle, is_wsgi, target = _page, True, "the built-in page"
    tls = _tls(certfile, keyfile)
    # A pool even if it has no bound: `stop` waits for the handlers in it. It does so anyhow
    # with several hubs.
    spawn = HandlerPool(max_connections) if hubs == 1 else max_connections or "default"
    with _refusing():
        options = {"backlog": backlog, "spawn": spawn, "clones": clones, "hubs": hubs, **tls}
        server = _make_server(is_wsgi, address, handle, **options)
        server.start()
    some = _count(server.clones, "clone")
    if hubs > 1:
        some += f" on {_count(hubs, 'hub')}"
    _run(server, f"serving {target} on {_url(server, is_wsgi, bool(tls))} with {some}")


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _make_server(is_wsgi: bool, *args: Any, **options: Any) -> StreamServer:
    if not is_wsgi:
        return StreamServer(*args, **options)
    from .pywsgi import WSGIServer  # noqa: PLC0415  # it imports ssl: see `serve`

    # A live table leaves no room for the lines of an access log.
    options["log"] = None if console.is_live(console.make_console()) else console.STDERR
    options["error_log"] = console.STDERR
    return WSGIServer(*args, **options)


def _url(server: StreamServer, is_wsgi: bool, is_tls: bool) -> str:
    bound = bound_address(server.socket)
    if bound.port is None:
        return str(bound)
    scheme = ("https" if is_tls else "http") if is_wsgi else ("tls" if is_tls else "tcp")
    return f"{scheme}://{bound}"


def _run(server: StreamServer, title: str) -> NoReturn:
    """Serve until a signal, status 0, or until the server has closed itself, status 1."""
    signals: list[int] = []

    def end(number: int) -> None:
        signals.append(number)
        # Who asks twice doesn't want to wait.
        server.stop(STOP_TIMEOUT_SECONDS if len(signals) == 1 else 0)

    # Before the first line, whose reader may send a signal, and until the process is gone:
    # a second one must not turn a clean end into a kill.
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, end, number)
    with console.shown(server, title, console.make_console()):
        server.serve_forever(STOP_TIMEOUT_SECONDS)
    click.get_current_context().exit(0 if signals else 1)


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


# -- the target ---------------------------------------------------------------------------------


def _load(target: str) -> Callable[..., Any]:
    """Return the callable that *target* names, ``module:callable`` or ``module``."""
    module_name, colon, path = target.partition(":")
    if not module_name or (colon and not path):
        raise click.UsageError(f"target must be module:callable, got {target!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise click.UsageError(f"can't import {module_name!r}: {_reason(error)}") from error
    if not colon:
        path = next((name for name in DEFAULT_ATTRIBUTES if hasattr(found, name)), "")
        if not path:
            names = " or ".join(DEFAULT_ATTRIBUTES)
            raise click.UsageError(f"target must be module:callable; {target!r} has no {names}")
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise click.UsageError(f"there is no {path!r} in module {module_name!r}") from error
    if not callable(found):
        raise click.UsageError(f"target must be callable, got {target!r}: {found!r}")
    return found  # type: ignore[no-any-return]  # callable() says so


def _reason(error: BaseException) -> str:
    """Return the last line of *error*'s traceback, and where in the program it was raised."""
    text = f"{type(error).__name__}: {error}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    # A module that isn't there is importlib's finding, and a syntax error has its own place.
    is_placed = last.filename.startswith("<") or last.filename == importlib.__file__
    return text if is_placed else f"{text} (at {last.filename}:{last.lineno})"


# What the two arguments are called, or annotated with, in each kind.
WSGI_WORDS: Final = re.compile(r"\benv|environ|start_?resp|wsgi", re.IGNORECASE)
STREAM_WORDS: Final = re.compile(r"sock|conn|client|stream|addr|peer", re.IGNORECASE)


def _is_wsgi(handle: Callable[..., Any], target: str) -> bool:
    """Tell a WSGI application from a stream handler by its first two parameters."""
    try:
        parameters = [*inspect.signature(handle).parameters.values()][:2]
    except (TypeError, ValueError):  # of some builtins nothing is known
        parameters = []
    text = " ".join(f"{each.name}: {each.annotation}" for each in parameters)
    is_wsgi, is_stream = (words.search(text) is not None for words in (WSGI_WORDS, STREAM_WORDS))
    if is_wsgi == is_stream:
        raise click.UsageError(
            f"can't tell what {target!r} is by its arguments: give --wsgi or --stream"
        )
    return is_wsgi


def _page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Tell which clone answers, and what all of them have done."""
    clone = environ["glb.clone"]
    lines = [f"Clone {clone} answers, one of {clone.server.clones}.", ""]
    for row in (CloneStats._fields, *clone.server.clone_stats()):
        lines.append("".join(f"{cell!s:>11}" for cell in (*row[:5], row[-1])))
    body = "\n".join([*lines, ""]).encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        # Turns are taken by connections: so that each reload shows the next one.
        ("Connection", "close"),
    ]
    start_response("200 OK", headers)
    return [body]
