"""Is anything lost? `python -m loadtests.lossless` tells.

Eight scenarios, each a question and the promise beside the answer::

    rolls       is a connection lost while handlers are replaced?
    resize      is one lost while clones come and go?
    takeover    is one lost while a server takes over from another?
    drain       what becomes of requests in flight, and of idle connections, when a server stops?
    resets      what is left of clients that reset their connections?
    silent      do silent clients keep the others waiting, and are they gone in time?
    exhaustion  does a server that is out of descriptors come back by itself?
    memory      does a server grow with the connections that it has served?

Servers and clients are processes of their own, which do what the command asks them for, one
line of JSON at a time. Each module owns one noun::

    __main__    the command
    report      tables, JSON
    run         scenarios, from start to end
    scenarios   all of them, by name
    rolls, resize, takeover, drain, resets, silent, exhaustion, memory
                one each
    kinds       what those have in common that ask the same of each kind of server
    load        a load in the meantime, and what became of it
    answers     what was asked, promised and measured
    process     a process that does what it is asked for, seen from outside
    worker      the same, from inside
    servers     what server processes do
    clients     what client processes do
    words       what servers and clients say to each other
"""
