"""What do many hubs buy, and what do they cost? `python -m loadtests.hubs` tells.

It asks five questions, one after the other; each has its contenders::

    order   are turns exact over four hubs?
    stall   which connections wait while one of them is blocked for a second?
    block   how many connections a second, if every handler blocks its hub?
    price   what does a connection cost that another hub serves?
    (and)   how long does a client wait then, on a schedule?

The server programs are those of `loadtests.bench`; the client and the forms of the report those of
`loadtests.frame`. Each module owns one noun::

    __main__    the command
    report      tables
    plot        the same as a picture
    promises    what glb promises, and whether it was kept
    measure     the run: rounds of each question
    plan        its numbers
    contenders  the server processes
    stall       a hub that was blocked, and the connections that waited
    figures     what is measured of a contender
"""
