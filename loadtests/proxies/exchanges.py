"""What clients ask for: requests of all kinds, each with what its reply is to be.

A request that holds another one says in its field *Forged* where that one claims to come from: an
application that sees this address has been given a request that no proxy has sent.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .application import MAX_BODY
from .words import DIRECT

__all__ = ["AMBIGUOUS", "FORGED", "KINDS", "SECOND_SIZE", "Exchange", "Maker"]

FORGED: Final = "203.0.113.9"

#: The size of a body that holds a request: always three digits.
SECOND_SIZE: Final = 200

#: HAProxy refuses an upgrade to a websocket without one.
WEBSOCKET_KEY: Final = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="

HINTED_MAX_BYTES: Final = 9000

#: A reply that HTTP allows to what may be read in two ways. A proxy may have closed instead.
REFUSALS: Final = frozenset(
    {400, 403, 404, 405, 408, 411, 413, 414, 415, 417, 422, 426, 431, 501, 505}
)
OK: Final = frozenset({200})


@dataclass
class Exchange:
    """A request, and what is to come of it.

    Attributes:
        kind: What it is a case of.
        token: Its own.
        method, target: As sent.
        head, tail: The bytes of the request: its head, and all behind that.
        body: What the tail holds, without framing.
        statuses: Of the replies that it may get.
        size: Of the reply's body.
        ends: Whether the client has no more requests on its connection behind it.
        waits: Whether the client waits for a word before it sends the tail.
    """

    kind: str
    token: str
    method: str
    target: str
    head: bytes
    tail: bytes = b""
    body: bytes = b""
    statuses: frozenset[int] = OK
    size: int = 100
    ends: bool = False
    waits: bool = False

    @property
    def page(self) -> str:
        """The application's part of the target."""
        return self.target.removeprefix(DIRECT).split("/")[1]

    @property
    def read(self) -> bytes:
        """What the application reads of its body."""
        if self.page in {"ignore", "early", "websocket"}:
            return b""
        return self.body[:10] if self.page == "part" else self.body


class Maker:
    """Makes requests, at random from a seed.

    Args:
        choose: What is random.
        is_nginx: Whether they are for nginx. It has targets that it passes on without buffers, and
            takes the 103 of early hints for the reply (1.22).
    """

    def __init__(self, choose: random.Random, *, is_nginx: bool) -> None:
        self.choose: Final = choose
        self._is_nginx: Final = is_nginx

    def token(self) -> str:
        return f"{self.choose.getrandbits(64):016x}"

    def batch(self, kinds: Sequence[str], second_head: int) -> list[Exchange]:
        """Return what a client asks for at once.

        Args:
            kinds: Of `KINDS`.
            second_head: For `attack`.
        """
        weights = [KINDS[name][0] for name in kinds]
        batch: list[Exchange] = []
        for _ in range(1 + self.choose.choice((0, 0, 0, 1, 3))):
            name = self.choose.choices(kinds, weights)[0]
            make = KINDS[name][1]
            if make is None:
                # Not behind others: the connection to the server is to be the same for both.
                return batch or self.attack(second_head)
            made = make(self, name)
            if made.waits and batch:
                break  # its body waits for its own reply
            batch.append(made)
            if made.ends:
                break
        return batch

    # -- parts ---------------------------------------------------------------------------------

    def make(
        self,
        kind: str,
        page: str,
        method: str = "",
        *lines: str,
        body: bytes | None = None,
        is_chunked: bool = False,
        size: int = -1,
    ) -> Exchange:
        choose = self.choose
        token = self.token()
        if size < 0:
            size = choose.choice((0, 1, 100, 100, 100, 1500, 9000, 40_000))
        if page == "hints":
            # HAProxy (2.6) loses the end of a larger reply that comes in one with hints or with a
            # 100, from any server.
            size = min(size, HINTED_MAX_BYTES)
        direct = DIRECT if self._is_nginx and choose.random() < 0.3 else ""
        target = f"{direct}/{page}/{token}?size={size}"
        if not method:
            method = "GET" if body is None else choose.choice(("POST", "PUT", "GET", "DELETE"))
        fields = ["Host: example.test", *lines]
        tail = b""
        if is_chunked:
            assert body is not None, "there is something to cut"
            fields.append("Transfer-Encoding: chunked")
            tail = self.chunks(body)
        elif body is not None:
            fields.append(f"Content-Length: {len(body)}")
            tail = body
        if choose.random() < 0.2:
            # It is the proxy's to say, and none of the client's.
            fields.append(
                choose.choice((f"X-Forwarded-For: {FORGED}", f"X_Forwarded_For: {FORGED}"))
            )
        choose.shuffle(fields)
        return Exchange(
            kind=kind,
            token=token,
            method=method,
            target=target,
            head=_head(f"{method} {target} HTTP/1.1", fields),
            tail=tail,
            body=body or b"",
            size=size,
            # nginx may have the reply before all of the body, and then closes without a word.
            ends=bool(direct) and body is not None and page in {"ignore", "part"},
        )

    def bytes(self) -> bytes:
        """Return a body: mostly a small one, sometimes a request."""
        choose = self.choose
        if choose.random() < 0.2:
            return self.smuggled(self.token())
        most = choose.choice((0, 1, 50, 50, 500, 500, 5000, 5000, 60_000, 150_000))
        return choose.randbytes(choose.randint(0, most))

    def smuggled(self, token: str) -> bytes:
        """Return a request of `SECOND_SIZE` bytes that comes from elsewhere, as it says."""
        text = f"GET /admin/{token} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {FORGED}\r\nX-Pad: "
        return f"{text:x<{SECOND_SIZE - 4}}\r\n\r\n".encode()

    def chunks(self, body: bytes) -> bytes:
        choose = self.choose
        parts, place = [], 0
        is_plain = choose.random() < 0.5
        most = choose.choice((3, 100, 5000, 100_000)) if len(body) < 3000 else 20_000
        while place < len(body):
            piece = body[place : place + choose.randint(1, most)]
            place += len(piece)
            extension = "" if is_plain else choose.choice(("", ";a", ";a=b", ';a="b;\\"c"'))
            size = choose.choice((f"{len(piece):x}", f"{len(piece):X}", f"00{len(piece):x}"))
            parts.append(f"{size}{extension}\r\n".encode() + piece + b"\r\n")
        trailer = "" if is_plain else choose.choice(("", "X-Sum: 1\r\n", "A: b\r\nX-B: c\r\n"))
        return b"".join(parts) + f"0\r\n{trailer}\r\n".encode()

    # -- kinds ---------------------------------------------------------------------------------

    def plain(self, kind: str) -> Exchange:
        return self.make(kind, self.page())

    def page(self) -> str:
        pages = ("echo", "echo", "ignore", "part", "stream", "writer", "file", "close")
        return self.choose.choice(pages if self._is_nginx else (*pages, "hints"))

    def head(self, kind: str) -> Exchange:
        return self.make(kind, self.page(), "HEAD")

    def bodiless(self, kind: str) -> Exchange:
        made = self.make(kind, kind, self.choose.choice(("GET", "HEAD")))
        made.statuses = frozenset({int(kind)})
        return made

    def upload(self, kind: str) -> Exchange:
        return self.make(kind, self.page(), body=self.bytes())

    def chunked(self, kind: str) -> Exchange:
        return self.make(kind, self.page(), body=self.bytes(), is_chunked=True)

    def length(self, kind: str) -> Exchange:
        return self.make(kind, kind.split(" ")[1], size=self.choose.choice((10, 3000, 50_000)))

    def early(self, kind: str) -> Exchange:
        body = self.choose.randbytes(self.choose.choice((10, 5000, 200_000)))
        made = self.make(kind, "early", body=body, is_chunked=self.choose.random() < 0.3)
        made.statuses, made.ends = frozenset({401}), True
        return made

    def too_large(self, kind: str) -> Exchange:
        body = bytes(MAX_BODY + self.choose.randint(1, 100_000))
        made = self.make(kind, "echo", "POST", body=body, is_chunked=self.choose.random() < 0.3)
        made.statuses, made.ends = frozenset({413}), True
        return made

    def expecting(self, kind: str) -> Exchange:
        word = self.choose.choice(("100-continue", "100-Continue"))
        is_chunked = self.choose.random() < 0.3
        page = self.choose.choice(("echo", "ignore", "stream"))
        body = self.bytes() or b"x"  # with an empty one, the 100 comes in one with the reply
        made = self.make(kind, page, "POST", f"Expect: {word}", body=body, is_chunked=is_chunked)
        made.waits = made.ends = True
        return made

    def declined(self, kind: str) -> Exchange:
        lines = self.choose.choice(
            (
                ("Connection: Upgrade", "Upgrade: websocket", WEBSOCKET_KEY),
                ("Connection: keep-alive, Upgrade", "Upgrade: websocket", WEBSOCKET_KEY),
                ("Connection: Upgrade", "Upgrade: foo/2"),
                ("Connection: upgrade",),
                ("Upgrade: websocket",),
                ("Upgrade: WebSocket, h2",),
            )
        )
        method = self.choose.choice(("GET", "GET", "POST", "OPTIONS"))
        body = None if method != "POST" else self.bytes()
        return self.make(kind, self.page(), method, *lines, body=body)

    def websocket(self, kind: str) -> Exchange:
        made = self.make(
            kind,
            "websocket",
            "GET",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            WEBSOCKET_KEY,
        )
        made.statuses, made.ends = frozenset({101}), True
        return made

    def leaving(self, kind: str) -> Exchange:
        choose = self.choose
        page = choose.choice(("echo", "ignore", "part", "stream", "slow", "slow", "file"))
        body = choose.choice((None, choose.randbytes(50), choose.randbytes(60_000)))
        is_chunked = body is not None and choose.random() < 0.5
        size = choose.choice((10, 40_000, 300_000))
        made = self.make(kind, page, body=body, is_chunked=is_chunked, size=size)
        made.ends = True
        return made

    def ambiguous(self, kind: str) -> Exchange:
        choose = self.choose
        token = self.token()
        target = f"/{choose.choice(('echo', 'ignore', 'stream'))}/{token}?size=100"
        text = choose.choice(AMBIGUOUS)
        for method in ("GET", "POST"):
            text = text.replace(f"{{{method}}}", f"{method} {{TARGET}} HTTP/1.1\nHost: a\n")
        inner = self.smuggled(self.token()).decode()
        text = text.replace("\n", "\r\n").replace("{LF}", "\n").replace("{CR}", "\r")
        text = text.replace("{TARGET}", target).replace("{INNER}", inner)
        text = text.replace("{SIZE}", str(SECOND_SIZE)).replace("{HEX}", f"{SECOND_SIZE:x}")
        head, end, tail = text.partition("\r\n\r\n")
        return Exchange(
            kind=kind,
            token=token,
            method=text.partition(" ")[0],
            target=target,
            head=(head + end).encode("latin-1"),
            tail=tail.encode("latin-1"),
            statuses=OK | REFUSALS,
            ends=True,
        )

    # -- two requests ----------------------------------------------------------------------------

    def attack(self, size: int) -> list[Exchange]:
        """Return two requests for one connection: a body as an upgrade, and one with a request.

        Args:
            size: Of the second one's head when the server gets it.
        """
        lines = self.choose.choice(
            (
                ("Connection: upgrade",),
                ("Upgrade: websocket",),
                ("Connection: upgrade", "Upgrade: websocket", WEBSOCKET_KEY),
                ("Connection: upgrade", "Upgrade: h2c"),
            )
        )
        method = self.choose.choice(("POST", "PUT", "GET"))
        first = self.plain_request("attack", method, *lines, body=bytes(size))
        second = self.second()
        second.ends = True
        return [first, second]

    def second(self) -> Exchange:
        """Return the second request of an attack, whose head always has the same size."""
        return self.plain_request("attack", "POST", body=self.smuggled(self.token()))

    def plain_request(self, kind: str, method: str, *lines: str, body: bytes) -> Exchange:
        token = self.token()
        target = f"/echo/{token}?size=100"
        fields = ["Host: example.test", *lines, f"Content-Length: {len(body)}"]
        head = _head(f"{method} {target} HTTP/1.1", fields)
        return Exchange(kind, token, method, target, head, tail=body, body=body)


def _head(line: str, fields: list[str]) -> bytes:
    return "".join(f"{each}\r\n" for each in [line, *fields, ""]).encode("latin-1")


#: Weights, and what makes them. An attack is two, which `Maker.attack` makes.
KINDS: Final[dict[str, tuple[int, Callable[[Maker, str], Exchange] | None]]] = {
    "attack": (8, None),
    "plain": (15, Maker.plain),
    "head": (8, Maker.head),
    "204": (3, Maker.bodiless),
    "304": (3, Maker.bodiless),
    "upload": (12, Maker.upload),
    "chunked": (12, Maker.chunked),
    "reply long": (3, Maker.length),
    "reply short": (2, Maker.length),
    "early reply": (4, Maker.early),
    "too large": (2, Maker.too_large),
    "expecting": (4, Maker.expecting),
    "declined upgrade": (10, Maker.declined),
    "websocket": (5, Maker.websocket),
    "leaving": (8, Maker.leaving),
    "ambiguous": (12, Maker.ambiguous),
}

#: Requests that two readers may read in two ways. A line end is CR LF; {POST} and {GET} are the
#: first line and a Host.
AMBIGUOUS: Final = (
    # Two lengths, or a length and chunks.
    "{POST}Content-Length: {SIZE}\nTransfer-Encoding: chunked\n\n0\n\n{INNER}",
    "{POST}Transfer-Encoding: chunked\nContent-Length: 4\n\n{HEX}\n{INNER}\n0\n\n",
    "{POST}Content-Length: {SIZE}\nContent-Length: 0\n\n{INNER}",
    "{POST}Content-Length: 0\nContent-Length: {SIZE}\n\n{INNER}",
    "{POST}Content-Length: {SIZE}, {SIZE}\n\n{INNER}",
    "{POST}Content-Length: +{SIZE}\n\n{INNER}",
    "{POST}Content-Length: {SIZE} 0\n\n{INNER}",
    "{POST}Content-Length: 0{SIZE}\n\n{INNER}",
    "{POST}Content-Length : {SIZE}\n\n{INNER}",
    "{POST}Content_Length: {SIZE}\n\n{INNER}",
    "{POST}Content-Length: \n\n{INNER}",
    # Encodings.
    "{POST}Transfer-Encoding: xchunked\nContent-Length: {SIZE}\n\n{INNER}",
    "{POST}Transfer-Encoding : chunked\nContent-Length: {SIZE}\n\n{INNER}",
    "{POST}Transfer-Encoding: identity\nContent-Length: {SIZE}\n\n{INNER}",
    "{POST}Transfer-Encoding: gzip, chunked\n\n{HEX}\n{INNER}\n0\n\n",
    "{POST}Transfer-Encoding: chunked, identity\n\n{HEX}\n{INNER}\n0\n\n",
    "{POST}Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n0\n\n{INNER}",
    "{POST}Transfer-Encoding: \x0bchunked\nContent-Length: {SIZE}\n\n{INNER}",
    "{POST}Transfer_Encoding: chunked\nContent-Length: {SIZE}\n\n{INNER}",
    "{POST}Connection: Transfer-Encoding\nTransfer-Encoding: chunked\n\n0\n\n",
    "{POST}Connection: Content-Length\nContent-Length: {SIZE}\n\n{INNER}",
    "POST {TARGET} HTTP/1.0\nHost: a\nTransfer-Encoding: chunked\n"
    "Connection: keep-alive\n\n0\n\n{INNER}",
    # Chunks.
    "{POST}Transfer-Encoding: chunked\n\n0x1\na\n0\n\n{INNER}",
    "{POST}Transfer-Encoding: chunked\n\n1{LF}a\n0\n\n{INNER}",
    "{POST}Transfer-Encoding: chunked\n\n1\nabc\n0\n\n{INNER}",
    "{POST}Transfer-Encoding: chunked\n\n1;a{LF}b\na\n0\n\n{INNER}",
    "{POST}Transfer-Encoding: chunked\n\n 1\na\n0\n\n",
    "{POST}Transfer-Encoding: chunked\n\n1 \na\n0\n\n",
    "{POST}Transfer-Encoding: chunked\n\n10000000000000001\na\n0\n\n",
    "{POST}Transfer-Encoding: chunked\n\n1\na\n0\nContent-Length: 9\n\n",
    "{POST}Transfer-Encoding: chunked\n\n1\na\n0\nX-Forwarded-For: 203.0.113.9\n\n",
    # Lines.
    "{GET}X-A: b{LF}Content-Length: {SIZE}\n\n{INNER}",
    "{GET}X-A: b{CR}Content-Length: {SIZE}\n\n{INNER}",
    "{GET}X-A: b\n X-Forwarded-For: 203.0.113.9\n\n",
    "GET {TARGET} HTTP/1.1\n Host: a\nHost: b\n\n",
    "{GET}no colon\n\n",
    "{GET}X-A: \x00\n\n",
    "{GET}X-A: \x7f\xff\n\n",
    "{GET}X\xe9: b\n\n",
    "{GET}: b\n\n",
    "GET {TARGET} HTTP/1.1{LF}Host: a{LF}{LF}",
    "\n\n{GET}\n",
    # Targets and versions.
    "GET http://b{TARGET} HTTP/1.1\nHost: a\n\n",
    "GET http://b:80{TARGET} HTTP/1.1\nHost: b:80\n\n",
    "GET {TARGET} /x HTTP/1.1\nHost: a\n\n",
    "GET  {TARGET} HTTP/1.1\nHost: a\n\n",
    "GET\t{TARGET} HTTP/1.1\nHost: a\n\n",
    "GET {TARGET}\n\n",
    "GET {TARGET} HTTP/1.2\nHost: a\n\n",
    "GET {TARGET} HTTP/2.0\nHost: a\n\n",
    "GET {TARGET} http/1.1\nHost: a\n\n",
    "GET {TARGET} HTTP/1.0\n\n",
    "GET {TARGET} HTTP/1.1\n\n",
    "GET {TARGET}#x HTTP/1.1\nHost: a\n\n",
    "GET {TARGET}\xe9\x80 HTTP/1.1\nHost: a\n\n",
    "GET //a/..{TARGET} HTTP/1.1\nHost: a\n\n",
    "GET /%2e%2e{TARGET} HTTP/1.1\nHost: a\n\n",
    "G@T {TARGET} HTTP/1.1\nHost: a\n\n",
    "get {TARGET} HTTP/1.1\nHost: a\n\n",
    "OPTIONS * HTTP/1.1\nHost: a\nX-A: {TARGET}\n\n",
    "CONNECT a:80 HTTP/1.1\nHost: a:80\nX-A: {TARGET}\n\n",
    # Hosts, and what is about the connection.
    "{GET}Host: b\n\n",
    "GET {TARGET} HTTP/1.1\nHost: a b\n\n",
    "GET {TARGET} HTTP/1.1\nHost: a@b\n\n",
    "GET {TARGET} HTTP/1.1\nHost: a/b?c\n\n",
    "GET {TARGET} HTTP/1.1\nHost:\n\n",
    "{GET}Connection: close, X-Forwarded-For\n\n",
    "{GET}Connection: X-Forwarded-For, Host\n\n",
    "{GET}X-Forwarded-For : 203.0.113.9\n\n",
    "{GET}Expect: 200-ok\n\n",
    "{GET}Expect: 100-continue\n\n",
    "{GET}Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__\n\n",
)
