"""HTTP/1.1: heads, bodies and replies, read and written by our own code.

Each module owns one noun::

    head          the head of a request
    body          the body of a request
    reply         the head of a reply, and how its body is framed
    stream        what a body is read from, and files that are sent
    environ       header fields and TLS in the words of WSGI
    settings      limits and timeouts
    attributes    the attributes of a handler
    reading       how a handler waits for requests, and reads them
    replies       how a handler calls the application, and replies
    durations     how long requests took
    answers       a request's time, its refusal, and its line in the log
    handler       `WSGIHandler`, and the loops over a connection's requests

The package knows no server.

Source: RFC 9110 and RFC 9112. What they leave ambiguous is refused.
"""

from __future__ import annotations
