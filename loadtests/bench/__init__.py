"""What does a connection cost here, and elsewhere? `python -m loadtests.bench` tells.

Each module owns one noun::

    __main__    the command
    report      tables
    plot        the same as a picture
    promises    what glb promises, and whether it was kept
    measure     the run: rounds, and what is measured apart from them
    plan        its numbers
    contenders  the servers
    crowd       connections that stay open, and idle
    serve       what runs *in* a server process; the programs are in `servers`
    figures     what is measured of a contender; plain data

The client, the server processes and the forms of reports are those of `loadtests.frame`.

Load goes over loopback only. Linux only: `epoll`, CPU affinity, `strace`.
"""
