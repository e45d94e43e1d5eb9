"""Load-balanced listeners inside one gevent process.

Many listeners on one address share one kernel socket, and connections go round them in
exact turn. From the kernel upwards, each floor importing only from those below it::

    doors      locust                            what they load it with (a package of its own)
               cli -> console -> demo, program   what people start
               target                            what they have served, and served anew
               monkey                            what they start it with
    servers    pywsgi -> server                  gevent's own servers, with clones
               draining  rolling  gate           how they end, and change; whether they accept
    http       handler -> replies -> reply       requests and replies (a package of its own)
    handles    branch  acceptor  listener        what a program holds
               ending -> waiting                 how connections end, and which may
               polls -> adopted                  what a program holds that knows nothing of glb
               exclusions                        what a program wants to be left alone
               descriptor -> seats               who wants a clone's connections, and waits or polls
               standby -> dispatcher             what deals turns, and to hubs that turn
               handlers  connection              what an accepted connection costs
    state      registry -> turns -> ring         the only process-wide state
    kernel     sockets  hubs -> signals          the only modules that open sockets, start threads
               reserve  leaks                    a descriptor for when there is none, and why
               guard                             what takes up what an exception left undone
               originals                         clocks, locks and calls that no patch reaches
               crossings                         what of one hub was used on another
    words      errors  address  balance  stats  clones  states  limits

`bind` gives a `Listener`; `glb.server.StreamServer` and `glb.pywsgi.WSGIServer` take the
place of gevent's; `glb.registry.entries` tells what is open.
"""

from . import registry
from ._version import VERSION
from .clones import Clone, current_clone
from .listener import Listener, bind, bind_direct, bind_load_balanced
from .waiting import idle

__all__ = [
    "Clone",
    "Listener",
    "__version__",
    "bind",
    "bind_direct",
    "bind_load_balanced",
    "current_clone",
    "idle",
    "registry",
]

__version__ = VERSION
