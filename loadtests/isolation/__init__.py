"""Does a handler ever meet anything of another's? `loadtests.isolation` tells.

    python -m loadtests.isolation --connections 100000 --hubs 4 --seed 1

Handlers leave whatever a handler can leave with its greenlet: references, links, timeouts,
attributes, locals, context variables, kills on their way. Each looks on entry whether its greenlet
is as fresh as one of gevent's. Then one program keeps every greenlet, and another keeps none: the
first is to have as many as there were connections, the second is to use a few again and again, or
the log says that it doesn't.

Clients are a process of their own. Each module owns one noun::

    __main__  the command
    trial     servers, their handlers, and what was found
    traces    what handlers leave behind, and how one tells that it is fresh (the tests use it too)
    clients   the clients' process
"""
