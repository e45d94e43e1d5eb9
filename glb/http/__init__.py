"""HTTP/1.1: heads, bodies and replies, read and written by our own code.

`head` reads the head of a request, `body` its body, `reply` says how a reply is framed, and
`handler` is the `WSGIHandler` that puts them together. The package knows no server.

Source: RFC 9110 and RFC 9112. What they leave ambiguous is refused.
"""

from __future__ import annotations
