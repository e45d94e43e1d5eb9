"""What does a connection cost here, and elsewhere? `python -m loadtests.bench` tells.

Each module owns one noun::

    __main__    the command
    progress    what people see meanwhile
    report      tables
    sheet       the forms of a report: as text, in Markdown and JSON
    plot        the same as a picture
    promises    what glb promises, and whether it was kept
    measure     the run: rounds, and what is measured apart from them
    contenders  the server processes
    client      the load: `client.c`, compiled and run
    crowd       connections that stay open, and idle
    serve       what runs *in* a server process; the programs are in `servers`
    figures     what is measured of a contender, and its ratios; plain data

`loadtests.hubs` asks other questions with the same client, contenders and forms.

Load goes over loopback only. Linux only: `epoll`, CPU affinity, `strace`.
"""
