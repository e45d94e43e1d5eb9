"""Does an application see through HAProxy and nginx what the proxy sent? `loadtests.proxies` tells.

    python -m loadtests.proxies --requests 5000 --handler hooks --hubs 2 --seed 1

Clients send requests of all kinds to a proxy: pipelined, cut into pieces, ambiguous, with bodies
that hold a request of their own. The proxy sends what it makes of them to the server, over
connections that all clients share. A relay between the two records both directions. What the
application saw on a connection is compared with what the proxy has sent there, request by request.

The server, HAProxy and nginx are processes of their own. Each module owns one noun::

    __main__     the command
    installed    the proxies: their configuration, start and end
    relay        the recorded connections between a proxy and the server
    application  the server's process, which tells what its application saw
    clients      the clients, and the kinds of exchanges that they have
    checks       the comparison
    messages     HTTP as it is read from a record: plain, and slow
    websockets   as much of a websocket as both sides need
    words        what a reply says
"""
