"""Does a server keep its invariants when everything goes wrong at once? `loadtests.soak` tells.

    python -m loadtests.soak --seconds 60

A server runs for a given time. Its clients come and go, reset before they are accepted, stay
silent in the middle of a request, read in drips, crash its handlers; meanwhile its clones are
paused, replaced, rolled and resized, its pool fills up, descriptors run out, and other servers
join its address and take over. Once a second every invariant of states, registry, ring and
descriptors is looked at, and in the end everything must be as it was before the start.

Clients and server are processes of their own. Each module owns one noun::

    __main__     the command
    report       tables
    run          both processes, from start to end
    program      the server's process, as the command sees it
    load         clients, well-behaved and not
    server       the server's process: its life
    actions      what is done to servers all the time
    checks       what must hold of them
    descriptors  what the process has open
    service      the servers of an address, one after another
    work         what their handlers do
    tally        what is counted, by any thread
    wire         what is asked and replied
    plan         how much of everything
"""
