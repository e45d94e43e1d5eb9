"""Accepting: from a shared kernel socket to the clone whose turn it is.

Each module owns one noun::

    listener                    what `glb.bind` gives
    inherited                   what `glb.inherited` gives
    descriptor                  a clone's descriptor, and the share that comes and goes with it
    waiters                     greenlets in `accept()`
    readiness                   clones of programs that poll
    readiness_event             what wakes programs that poll
    watchdog -> dispatcher      what deals turns, and to hubs that turn
    reports                     what the log says when accepts fail
    registry                    the only process-wide state: the open addresses
    handover -> turns -> ring   the clone that is next, and connections on their way to it
    protocols                   what the order of turns asks of clones and hubs
    exclusions                  addresses that a program wants to be left alone

It imports `glb.model`, `glb.hubs` and `glb.net`, and knows no server.
"""
