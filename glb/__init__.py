"""Load-balanced listeners inside one gevent process.

Many listeners on one address share one kernel socket, and connections go round them in
exact turn. Packages, each of which imports only from those above it::

    model    plain data and decisions: addresses, errors, policies, limits, states, statistics
    hubs     hub threads, signals, handler greenlets       net    sockets
    accept   the registry, the turn order, listeners, and the dispatchers that accept
    serve    the engine of a server: acceptors, admission, drain, rolling
    server   gevent's StreamServer                     http   requests and replies
    pywsgi   gevent's WSGIServer
    monkey   exact turns for programs that know nothing of glb
    cli      the command line                          locust   load tests of servers

`glb.originals` has the clocks and locks that no patch reaches, for all but the plain data. Each
package's docstring lists its modules. ``tests/house/test_imports.py`` has the table of imports.

`bind` returns a `Listener`; `glb.server.StreamServer` and `glb.pywsgi.WSGIServer` replace
gevent's; `serve_until_signal` serves until SIGTERM, and drains; `glb.registry.entries` returns the
open addresses.
"""

from typing import TYPE_CHECKING, Any

from . import balance as balance  # public under these names, as it was before the packages
from . import handlers as handlers
from . import registry
from . import states as states
from ._version import VERSION
from .accept.listener import Listener, bind, bind_direct, bind_load_balanced
from .model.clone import Clone, current_clone
from .net.proxied import header_of as proxied
from .serve.idle import idle

if TYPE_CHECKING:
    from .until_signal import serve_until_signal

__all__ = [
    "Clone",
    "Listener",
    "__version__",
    "bind",
    "bind_direct",
    "bind_load_balanced",
    "current_clone",
    "idle",
    "proxied",
    "registry",
    "serve_until_signal",
]

__version__ = VERSION


def __getattr__(name: str) -> Any:
    if name == "serve_until_signal":
        from .until_signal import serve_until_signal  # noqa: PLC0415  # it needs the whole engine

        return serve_until_signal
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
