"""Does a server go on after signals whose handlers raise? `loadtests.strikes` tells.

    python -m loadtests.strikes --signals 500 --hubs 4 --seed 1

A server of each kind serves clients; meanwhile its process gets signals, at random moments, and
their handler raises. So an exception strikes wherever the main thread is: in handlers, in glb, in
gevent, in the loop itself. After each signal new clients are to be served, and in the end all is
to be as it was. ``--server gevent`` does the same to gevent's servers.

Clients and servers are processes of their own. Each module owns one noun::

    __main__  the command
    clients   clients, which send the signals too
    words     what clients ask, and how they know a reply as theirs
    server    the servers' process: strikes, and what is left in the end
"""
