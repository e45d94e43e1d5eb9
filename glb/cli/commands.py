"""The command line: ``glb demo`` shows the turns, ``glb serve`` and ``glb run`` take programs.

`glb.cli.serve` has ``glb serve``, and `glb.cli.top` ``glb top``.

Wrong input gets one line on stderr, which starts with ``glb:``, and status 2.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

import click

from .._version import VERSION
from . import console
from .demo import run_gevent, run_glb
from .hints import Hints
from .program import Program, ProgramNotFoundError
from .serve import serve
from .settings import POSITIVE
from .top import top

__all__ = ["cli", "main"]

_PROCESSES: Final = "--hubs for blocking calls; for more processes, gunicorn -k glb.gunicorn.Worker"

#: Options of gunicorn and uvicorn, by which people look for ours. What click finds alike, it says.
_OF_OTHERS: Final = {
    "-b": "--bind",
    "-k": "nothing, as handlers run in greenlets",
    "-w": _PROCESSES,
    "--access-logfile": "--access-log",
    "--graceful-timeout": "--drain-timeout",
    "--host": "--bind HOST:PORT",
    "--keep-alive": "--first-byte-timeout",
    "--port": "--bind HOST:PORT",
    "--threads": "--hubs",
    "--timeout": "--request-timeout",
    "--worker-class": "nothing, as handlers run in greenlets",
    "--worker-connections": "--max-connections",
    "--workers": _PROCESSES,
}


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, *args* or the process's, and exit with its status."""
    try:
        status = cli.main(args, prog_name="glb", standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption) and error.ctx and error.ctx.command is serve:
            ours = _OF_OTHERS.get(error.option_name)
            if ours is not None:
                error = click.UsageError(f"No such option {error.option_name!r}: write {ours}")
        click.echo(f"glb: {console.one_line(error.format_message())}", err=True)
        status = 2
    except click.Abort:
        status = 128 + signal.SIGINT
    if isinstance(status, Program):
        # Not in the command: click would meet what it raises, and take some for its own.
        Hints(status.target).start()
        try:
            status.run()
        except ProgramNotFoundError as error:
            click.echo(f"glb: {console.one_line(error)}", err=True)
            status = error.status
        else:
            status = 0
    sys.exit(status)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn what glb and the kernel say of wrong input into a usage error."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        raise click.UsageError(str(getattr(error, "strerror", None) or error)) from error


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
    """Count the clients of each server, with glb and with gevent servers that race.

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
    from .. import monkey  # noqa: PLC0415  # it would import what the other commands don't need

    with _refusing():
        monkey.patch_all(clones, hubs, exclude=exclude)
    return Program(program, args, is_module)


cli.add_command(serve)
cli.add_command(top)
