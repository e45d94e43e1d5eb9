"""Load-balanced listeners inside one gevent process.

Many listeners on one address share one kernel socket, and connections go round them in
exact turn. Packages, each of which imports only from those above it::

    model    plain data and decisions: addresses, errors, policies, limits, states, figures
    hubs     hub threads, signals, the greenlets that handlers run in    net    sockets
    accept   the registry, the order of turns, listeners, and what gives them connections
    serve    what stands behind a server: acceptors, admission, draining, rolling
    server   gevent's StreamServer                     http   requests and replies
    pywsgi   gevent's WSGIServer
    monkey   exact turns for programs that know nothing of glb
    cli      the command line                          locust   load tests of servers

`glb.originals` has the clocks and locks that no patch reaches, for all but the plain data. Each
package says what is in it. ``tests/house/test_imports.py`` has the table of what may import what.

`bind` gives a `Listener`; `glb.server.StreamServer` and `glb.pywsgi.WSGIServer` take the
place of gevent's; `glb.registry.entries` tells what is open.
"""

from . import balance as balance  # public under these names, as it was before the packages
from . import handlers as handlers
from . import registry
from . import states as states
from ._version import VERSION
from .accept.listener import Listener, bind, bind_direct, bind_load_balanced
from .model.clone import Clone, current_clone
from .net.proxied import header_of as proxied
from .serve.idle import idle

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
]

__version__ = VERSION
