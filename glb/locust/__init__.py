r"""Load tests with locust: TCP and WebSocket users, and the balance as a measure.

Importing this in a locustfile is all it takes: it adds the options, the listeners and the tab, as
locust's plugins do::

    from locust import task
    from glb.locust import TcpUser

    class Client(TcpUser):
        host = "tcp://127.0.0.1:8000"

        def clone_of(self, reply):
            return reply.split(b" ", 1)[0]  # b"3/4 hello": clone 3 of 4

        @task
        def ask(self):
            self.client.connect()
            self.client.send(b"hello\n")
            self.client.receive_line()

A request tells which clone served it in one of these ways, the first that does:

* ``context={"glb_clone": 3}`` of the request, which `TcpUser.clone_of` gives;
* a header ``X-Glb-Clone: 3`` of the reply;
* a function of yours: `clone_of`.

``"3/4"`` says that there are four, so that the report also shows a clone that serves no client.

locust patches the process when it is imported (`gevent.monkey.patch_all`), so this does; `import
glb` doesn't import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from locust import events

from . import collect, gates, interrupt
from .collect import Collector, Reader
from .measure import CloneFigures, Figures, Measure, Sample
from .users import EchoUser, PatientUser, TcpUser

if TYPE_CHECKING:
    from .websocket import WebSocketUser

__all__ = [
    "MEASURE",
    "CloneFigures",
    "EchoUser",
    "Figures",
    "Measure",
    "PatientUser",
    "Sample",
    "TcpUser",
    "WebSocketUser",
    "clone_of",
]

#: What this process has counted; on a master, what all workers have.
MEASURE: Final = Measure()

_READERS: Final[list[Reader]] = []
_COLLECTORS: Final[list[Collector]] = []


def clone_of(reader: Reader) -> Reader:
    """Have *reader* tell which clone gave a reply, where neither context nor header does.

    Args:
        reader: Called with what locust's `request` event has, as keyword arguments; returns a
            number, or text as ``"3/4"``, or ``None`` if it can't tell.

    Returns:
        *reader*: use it as a decorator.
    """
    _READERS.append(reader)
    return reader


def _add_options(parser: Any, **_: Any) -> None:
    gates.add_options(parser)
    collect.add_options(parser)


def _init(environment: Any, **_: Any) -> None:
    # There is one measure. It belongs to the latest environment, if a program makes several.
    for each in _COLLECTORS:
        each.detach()
    collector = Collector(environment, MEASURE, _READERS)
    _COLLECTORS[:] = [collector]
    if not collector.is_worker:  # whose users the master stops
        interrupt.raise_in_main_greenlet()
    if environment.web_ui is not None:
        from .web import extend  # noqa: PLC0415  # a headless run has no use for it

        extend(environment, MEASURE, collector.outstanding)


def _quitting(environment: Any, **_: Any) -> None:
    for each in _COLLECTORS:
        if each.environment is environment and not each.is_worker:
            each.judge()


def __getattr__(name: str) -> Any:
    if name == "WebSocketUser":
        from .websocket import WebSocketUser  # noqa: PLC0415  # not all have websocket-client

        return WebSocketUser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


events.init_command_line_parser.add_listener(_add_options)  # type: ignore[no-untyped-call]  # locust's
events.init.add_listener(_init)  # type: ignore[no-untyped-call]  # locust's
# This event's first listener is the last to be called: a locustfile's may set the status before.
events.quitting.add_listener(_quitting)  # type: ignore[no-untyped-call]  # locust's
