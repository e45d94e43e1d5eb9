"""What do gevent's own server and glb's make of the same load at the same time?

    locust -f loadtests/locust/compare.py --headless -u 100 -r 50 -t 20s

Half of the clients load one, half the other. At the end there is a table, and a picture, in
compare.png or where ``--compare-plot`` says: half of the requests were answered within so many
milliseconds, 99 of 100 within so many. Both servers and locust share the machine, so what they do a
second depends on each other; times are what to compare.
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # wherever locust is run

from locust import events, task
from rich import box
from rich.console import Console
from rich.table import Table

from glb.locust import TcpUser
from loadtests.target.scenario import Scenario, Want

#: Parts of a run's requests, and the names of their percentiles.
PERCENTILES = {0.5: "median", 0.9: "p90", 0.95: "p95", 0.99: "p99"}

#: Servers, by what locust's report calls their users' requests.
NAMES = {"gevent": "gevent's StreamServer", "glb": "glb's, 4 clones"}


@events.init_command_line_parser.add_listener
def add_options(parser: Any, **_: Any) -> None:
    parser.add_argument(
        "--compare-plot",
        metavar="FILE",
        default="compare.png",
        help="draw the picture to this file; none if empty",
        include_in_web_ui=False,
    )


def entries(environment: Any) -> dict[str, Any]:
    """Return locust's statistics of each server's requests."""
    return {name: environment.stats.get(name, "TCP") for name in NAMES}


def answer(environment: Any) -> Iterator[str]:
    found = entries(environment)
    yield from table(found)
    if not environment.parsed_options.compare_plot:
        return
    try:
        yield f"the picture: {draw(found, environment.parsed_options.compare_plot)}"
    except ImportError:
        yield "no picture: matplotlib isn't installed"


def table(found: dict[str, Any]) -> list[str]:
    head = ["", "requests", "failures", "requests/s", *PERCENTILES.values(), "max"]
    sheet = Table(*head, title="The same load at the same time", box=box.SIMPLE)
    for column in sheet.columns[1:]:
        column.justify = "right"
    for name, entry in found.items():
        times = [entry.get_response_time_percentile(part) for part in PERCENTILES]
        counts = (str(entry.num_requests), str(entry.num_failures), f"{entry.total_rps:.0f}")
        sheet.add_row(
            NAMES[name], *counts, *(f"{ms:.0f} ms" for ms in (*times, entry.max_response_time))
        )
    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(sheet)
    return [line.rstrip() for line in captured.get().splitlines()]


def draw(found: dict[str, Any], to: str) -> str:
    from matplotlib.figure import Figure  # noqa: PLC0415  # workers have no use for it

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    times, rates = figure.subplots(1, 2, width_ratios=(3, 1))
    for name, entry in found.items():
        within = [entry.get_response_time_percentile(part) for part in PERCENTILES]
        times.plot([*PERCENTILES.values()], within, "o-", label=NAMES[name])
        rates.bar(name, entry.total_rps)
    times.set(ylabel="answered within, ms", ylim=(0, None), title="Response times")
    times.legend()
    rates.set(ylabel="connections/s", title="Throughput")
    figure.savefig(to, dpi=120)
    return to


scenario = Scenario(
    Want("stream", name="gevent", server="gevent", is_fixed=True),
    Want("stream", name="glb", is_fixed=True),
    gates={"max_fail_ratio": 0},
    answer=answer,
)


class Client(TcpUser):
    """Connects, has a line echoed, and closes."""

    abstract = True
    target: str

    def clone_of(self, reply: bytes) -> bytes:
        return reply.split(b" ", 1)[0]

    @task
    def echo(self) -> None:
        self.client.connect(name=f"{self.target}: connect")
        self.client.request(b"hello\n", name=self.target)


class GeventClient(Client):
    target = "gevent"


class GlbClient(Client):
    target = "glb"
