"""Serving: what stands behind a server, whichever it is.

Each module owns one noun::

    acceptor         a clone of a server
    hub_worker       a server's part on one hub
    bounds           how many handlers there may be
    admission        whether the server accepts, and why not
    rolling          new handlers, and another number of clones
    drain            how a server ends
    drain_worker     how the connections of one hub end
    idle             connections that may be closed at once

It imports `glb.model`, `glb.hubs`, `glb.net` and `glb.accept`, and never a server.
"""
