"""Serving: what stands behind a server, whichever it is.

Each module owns one noun::

    hooks            what the engine calls on a server
    options          what a constructor sets, and the checks of it
    controls         what our servers offer beyond gevent's
    engine           all of the below, opened and closed in one order
    clone_set        a server's clones
    acceptor         one clone of a server
    accept_loop      a greenlet a clone, where the program wants the loop
    workers          a server's parts, by hub
    hub_worker       its part on one hub
    spawning         how each connection gets its greenlet
    bounds           how many handlers there may be
    admission        whether the server accepts, and why not
    first_byte       what is waited for before a handler begins
    rolling          new handlers, and another number of clones
    drain            how a server ends
    drain_worker     how the connections of one hub end
    idle             connections that may be closed at once

It imports `glb.model`, `glb.hubs`, `glb.net` and `glb.accept`, and never a server.
"""
