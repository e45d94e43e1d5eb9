"""Load-balanced listeners inside one gevent process.

Many listeners on one address share one kernel socket, and connections go round them in
exact turn. Packages, each of which imports only from those above it::

    model    plain data and decisions: addresses, errors, policies, limits, states, statistics
    hubs     hub threads, signals, handler greenlets       net    sockets
    accept   the registry, the turn order, listeners, and the dispatchers that accept
    serve    the engine of a server: acceptors, admission, drain, rolling
    server   gevent's StreamServer                     http   requests and replies
    pywsgi   gevent's WSGIServer                       upgrade   a new process on the same sockets
    monkey   exact turns for programs that know nothing of glb
    cli      the command line                          locust   load tests of servers

`glb.originals` has the clocks and locks that no patch reaches, for all but the plain data. Each
package's docstring lists its modules. ``tests/house/test_imports.py`` has the table of imports.

`bind` returns a `Listener`; `glb.server.StreamServer` and `glb.pywsgi.WSGIServer` replace
gevent's; `serve_until_signal` serves until SIGTERM, and drains; `glb.registry.entries` returns the
open addresses.
"""

from typing import TYPE_CHECKING, Any, Final

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
    from .accept.inherited import inherited
    from .until_signal import serve_until_signal
    from .upgrade import Upgrade, UpgradeError

__all__ = [
    "Clone",
    "Listener",
    "Upgrade",
    "UpgradeError",
    "__version__",
    "bind",
    "bind_direct",
    "bind_load_balanced",
    "current_clone",
    "idle",
    "inherited",
    "proxied",
    "registry",
    "serve_until_signal",
]

__version__ = VERSION

#: Imported when they are first used, so that ``import glb`` stays light.
_LATER: Final = {
    "Upgrade": "upgrade",
    "UpgradeError": "upgrade",
    "inherited": "accept.inherited",
    "serve_until_signal": "until_signal",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415  # as above

    value = getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value
