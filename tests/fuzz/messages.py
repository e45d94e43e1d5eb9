"""HTTP messages: requests of all kinds, made at random; and both sides', read from a record.

Nothing here is of `glb.http`. What is read is well-formed, or the reading of it ends there. A
request that holds another one says in a field where that one comes from: an application that sees
the address `FORGED` has been given a request that no proxy has sent.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Final

from .pages import MAX_BODY

FORGED: Final = "203.0.113.9"

#: The size of a body that holds a request: always three digits.
SECOND_SIZE: Final = 200

#: HAProxy (2.6) loses the end of a larger reply that comes in one with hints or with a 100.
HINTED_MAX_BYTES: Final = 9000

# -- read ----------------------------------------------------------------------------------------


@dataclass
class Message:
    """A request or a reply, or as much of it as there is; its body without framing."""

    line: str
    fields: list[tuple[str, str]]  # names in lower case
    body: bytes = b""
    is_whole: bool = False

    def value(self, name: str) -> str:
        return ",".join(value for each, value in self.fields if each == name)

    @property
    def code(self) -> int:
        """Of a reply, or raise `ValueError`."""
        if not re.match(r"HTTP/1\.[01] \d\d\d( |$)", self.line):
            raise ValueError(f"no reply: {self.line[:100]!r}")
        return int(self.line.split(" ")[1])


def read_message(
    file: IO[bytes], method: str | None = None, on_continue: Callable[[], object] = lambda: None
) -> Message | None:
    """Return the next request or final reply of a *file*; ``None`` if there is no whole head.

    It is a reply to a request with *method*; without one it is a request. *on_continue* is called
    when a server says that it waits for the body.

    Raises:
        ValueError: It is no reply.
    """
    while (message := _read_head(file)) is not None:
        if method is None or message.code >= 200 or message.code == 101:
            break
        if message.code == 100:
            on_continue()
    if message is None:
        return None
    length = message.value("content-length").partition(",")[0]
    if method == "HEAD" or (method is not None and message.code in {101, 204, 304}):
        message.is_whole = True
    elif "chunked" in message.value("transfer-encoding").lower():
        _read_chunks(message, file)
    else:
        size = int(length) if length else 0 if method is None else -1
        message.body = file.read(size)
        message.is_whole = size < 0 or len(message.body) == size
    return message


def _read_head(file: IO[bytes]) -> Message | None:
    lines: list[str] = []
    while (line := file.readline()).endswith(b"\n"):
        text = line.decode("latin-1").rstrip("\r\n")
        if text:
            lines.append(text)
        elif lines:
            parts = [each.partition(":") for each in lines[1:]]
            return Message(lines[0], [(name.lower(), text.strip(" \t")) for name, _, text in parts])
    return None


def _read_chunks(message: Message, file: IO[bytes]) -> None:
    while (line := file.readline()).endswith(b"\n"):
        size = int(line.partition(b";")[0], 16)
        message.body += file.read(size)
        if not size:
            while (line := file.readline()) not in {b"\r\n", b"\n", b""}:
                pass
            message.is_whole = bool(line)
        if not size or len(file.read(2)) < 2:
            break


# -- made ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What requests of a kind are made of; of each tuple, or of words, one is chosen."""

    name: str
    weight: int  # beside the others'
    pages: str = "echo echo ignore part stream writer file close hints"  # of the application
    methods: str = "GET"
    bodies: tuple[int | None, ...] = (None,)  # so large at most; None for a request without
    chunked: float = 0.0  # the share of those that are sent in chunks
    least: int = 0  # so large is a body at least
    fields: tuple[tuple[str, ...], ...] = ((),)  # beside those that every request has
    sizes: tuple[int, ...] = (0, 1, 100, 100, 100, 1500, 9000, 40_000)  # of the reply's body
    statuses: tuple[int, ...] = (200,)  # that the reply may have
    ends: bool = False  # the client has no more requests on its connection behind it
    waits: bool = False  # for a word of the server, before it sends the body


_ANY: Final = Kind("", 0).pages
_TAKEN: Final = "echo ignore stream"
_LEFT: Final = "echo ignore part stream file slow slow"
_UPLOAD: Final = "POST PUT GET DELETE"
_SIZES: Final = (0, 1, 50, 50, 500, 500, 5000, 5000, 60_000, 150_000)
_HUGE: Final = MAX_BODY + 100_000
_EXPECT: Final = (("Expect: 100-continue",), ("Expect: 100-Continue",))
# HAProxy refuses an upgrade to a websocket without a key.
_WEBSOCKET: Final = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
_TALK: Final = ("Connection: Upgrade", "Sec-WebSocket-Version: 13", *_WEBSOCKET)
_UPGRADES: Final = (
    *(("Connection: upgrade",), ("Upgrade: websocket",), ("Connection: Upgrade", *_WEBSOCKET)),
    *(("Connection: keep-alive, Upgrade", *_WEBSOCKET), ("Upgrade: WebSocket, h2",)),
    *(("Connection: Upgrade", "Upgrade: foo/2"), ("Connection: upgrade", "Upgrade: h2c")),
)
# What HTTP allows to what may be read in two ways. A proxy may have closed instead.
_REPLIES: Final = (200, 400, 403, 404, 405, 408, 411, 413, 414, 415, 417, 422, 426, 431, 501, 505)

KINDS: Final = (
    Kind("attack", 8, "echo", "POST PUT GET", fields=_UPGRADES, sizes=(100,)),
    Kind("plain", 15),
    Kind("head", 8, methods="HEAD"),
    Kind("204", 3, "204", "GET HEAD", statuses=(204,)),
    Kind("304", 3, "304", "GET HEAD", statuses=(304,)),
    Kind("upload", 12, _ANY, _UPLOAD, _SIZES),
    Kind("chunked", 12, _ANY, _UPLOAD, _SIZES, 1.0),
    Kind("reply long", 3, "long", sizes=(10, 3000, 50_000)),
    Kind("reply short", 2, "short", sizes=(10, 3000, 50_000)),
    Kind("early reply", 4, "early", _UPLOAD, (5000, 400_000), 0.3, statuses=(401,), ends=True),
    Kind("too large", 2, "echo", "POST", (_HUGE,), 0.3, MAX_BODY + 1, statuses=(413,), ends=True),
    # With an empty body, the 100 comes in one with the reply.
    Kind("expecting", 4, _TAKEN, "POST", _SIZES, 0.3, 1, _EXPECT, ends=True, waits=True),
    Kind("declined upgrade", 7, methods="GET GET OPTIONS", fields=_UPGRADES),
    Kind("declined with a body", 3, _ANY, "POST", _SIZES, fields=_UPGRADES),
    Kind("websocket", 5, "websocket", fields=(_TALK,), statuses=(101,), ends=True),
    Kind("leaving", 8, _LEFT, _UPLOAD, (None, 50, 60_000), 0.5, sizes=(10, 300_000), ends=True),
    Kind("ambiguous", 12, _TAKEN, statuses=_REPLIES, ends=True),
)


@dataclass
class Exchange:
    """A request, and what is to come of it. The tail is all behind the head."""

    kind: Kind
    token: str  # its own
    method: str
    page: str
    head: bytes
    tail: bytes = b""
    body: bytes = b""
    size: int = 100  # of the reply's body
    ends: bool = False  # see `Kind`


@dataclass
class Maker:
    """Makes requests, at random from a seed. *second_head* is how large `second`'s head arrives."""

    choose: random.Random
    has_hints: bool = True
    most: int = 1_000_000  # no body of a request or a reply is larger
    second_head: int = 0

    def batch(self, kinds: Sequence[Kind]) -> list[Exchange]:
        """Return what a client asks for at once."""
        batch: list[Exchange] = []
        for _ in range(1 + self.choose.choice((0, 0, 0, 1, 3))):
            kind = self.choose.choices(kinds, [each.weight for each in kinds])[0]
            if kind.name == "attack" and not batch:
                # A body as an upgrade, as large as the head behind it; and one with a request.
                return [self.make(kind, bytes(self.second_head)), self.second()]
            if batch and (kind.name == "attack" or kind.waits):
                break  # both are the first of what is sent
            batch.append(self.make(kind))
            if batch[-1].ends:
                break
        return batch

    def make(self, kind: Kind, body: bytes | None = None) -> Exchange:
        """Return a request of a *kind*, with a *body* if it is given."""
        choose = self.choose
        pages = kind.pages if self.has_hints else kind.pages.replace("hints", "")
        page = choose.choice(pages.split())
        if kind.name == "ambiguous":
            return self._ambiguous(kind, page)
        token, method = self._token(), choose.choice(kind.methods.split())
        size = min(choose.choice(kind.sizes), HINTED_MAX_BYTES if page == "hints" else self.most)
        fields = ["Host: example.test", *choose.choice(kind.fields)]
        tail = body = self._body(kind) if body is None else body
        if body is not None and choose.random() < kind.chunked:
            fields.append("Transfer-Encoding: chunked")
            tail = self._chunks(body)
        elif body is not None:
            fields.append(f"Content-Length: {len(body)}")
        if choose.random() < 0.2:
            # It is the proxy's to say, and none of the client's.
            fields.append(choose.choice(("X-Forwarded-For: ", "X_Forwarded_For: ")) + FORGED)
        choose.shuffle(fields)
        head = _head(f"{method} /{page}/{token}?size={size} HTTP/1.1", fields)
        # A proxy may have the reply before all of the body, and then closes without a word.
        ends = kind.ends or (body is not None and page in {"ignore", "part"})
        return Exchange(kind, token, method, page, head, tail or b"", body or b"", size, ends)

    def second(self) -> Exchange:
        """Return the second request of an attack, whose head always has the same size."""
        token, body = self._token(), self._smuggled()
        fields = ["Host: example.test", f"Content-Length: {SECOND_SIZE}"]
        head = _head(f"POST /echo/{token}?size=100 HTTP/1.1", fields)
        return Exchange(KINDS[0], token, "POST", "echo", head, body, body, ends=True)

    def cut(self, data: bytes, most: int) -> list[bytes]:
        """Return *data* in pieces of up to *most* bytes."""
        pieces, place = [], 0
        while place < len(data):
            pieces.append(data[place : place + self.choose.randint(1, most)])
            place += len(pieces[-1])
        return pieces

    def pieces(self, data: bytes) -> list[bytes]:
        """Return *data* as it is sent: mostly at once."""
        most = self.choose.choice((30, 1000)) if len(data) < 5000 else 50_000
        return [data] if self.choose.random() < 0.7 else self.cut(data, most)

    def _token(self) -> str:
        return f"{self.choose.getrandbits(64):016x}"

    def _body(self, kind: Kind) -> bytes | None:
        """Return a body: mostly a small one, sometimes a request."""
        most = self.choose.choice(kind.bodies)
        if most is None:
            return None
        if kind.least < SECOND_SIZE and self.choose.random() < 0.2:
            return self._smuggled()
        most = max(kind.least, min(most, self.most))
        return self.choose.randbytes(self.choose.randint(kind.least, most))

    def _smuggled(self) -> bytes:
        """Return a request of `SECOND_SIZE` bytes that comes from elsewhere, as it says."""
        line = f"GET /admin/{self._token()} HTTP/1.1"
        text = f"{line}\r\nHost: x\r\nX-Forwarded-For: {FORGED}\r\nX-Pad: "
        return f"{text:x<{SECOND_SIZE - 4}}\r\n\r\n".encode()

    def _chunks(self, body: bytes) -> bytes:
        choose = self.choose
        is_plain = choose.random() < 0.5
        most = choose.choice((3, 100, 5000, 100_000)) if len(body) < 3000 else 20_000
        chunks = b""
        for piece in self.cut(body, most):
            extension = "" if is_plain else choose.choice(("", ";a", ";a=b", ';a="b;\\"c"'))
            size = f"{len(piece):{choose.choice(('x', 'X', '05x'))}}"
            chunks += f"{size}{extension}\r\n".encode() + piece + b"\r\n"
        trailer = "" if is_plain else choose.choice(("", "X-Sum: 1\r\n", "A: b\r\nX-B: c\r\n"))
        return chunks + f"0\r\n{trailer}\r\n".encode()

    def _ambiguous(self, kind: Kind, page: str) -> Exchange:
        """Return a request that two readers may read in two ways: a part is odd, or two are."""
        choose, token = self.choose, self._token()
        odd = choose.sample([*ODD], choose.choice((1, 1, 2)))
        parts = {part: choose.choice(ODD[part]) for part in odd}
        fields, tail = parts.get("field", ""), "{INNER}"
        if "chunk" in parts:
            fields += f"\n{_CHUNKED}"
            tail = f"{parts['chunk']}\n0\n{choose.choice(('', '', *_TRAILERS))}\n{{INNER}}"
        elif "framing" in parts:
            fields += parts["framing"] + choose.choice(("", *ODD["framing"]))
            tail = choose.choice((tail, f"0\n\n{tail}", f"{SECOND_SIZE:x}\n{tail}\n0\n\n"))
        elif _SIZE not in fields:
            tail = ""
        line = parts.get("line", "{M} {T} HTTP/1.1")
        if "CONNECT" in line:
            fields = tail = ""  # HAProxy waits for the reply before it sends what is behind
        head = line + parts.get("host", "\nHost: a") + fields
        text = f"{head}\n\n{tail}".replace("{M}", "POST" if tail else "GET")
        text = text.replace("{T}", f"/{page}/{token}?size=100")
        text = text.replace("\n", "\n" if choose.random() < 0.02 else "\r\n")
        text = text.replace("{LF}", "\n").replace("{CR}", "\r")
        text = text.replace("{INNER}", self._smuggled().decode())
        return Exchange(kind, token, text.split()[0], page, text.encode("latin-1"), ends=True)


def _head(line: str, fields: list[str]) -> bytes:
    return "".join(f"{each}\r\n" for each in [line, *fields, ""]).encode()


_CHUNKED: Final = "Transfer-Encoding: chunked"
_SIZE: Final = f"Content-Length: {SECOND_SIZE}"
_TRAILERS: Final = ("Content-Length: 9\n", f"X-Forwarded-For: {FORGED}\n")

#: What each part of a request is, if it is odd.
ODD: Final = {
    "line": (
        *("{M} {T}", "\n\n{M} {T} HTTP/1.1", "{M} {T} /x HTTP/1.1", "{M}  {T} HTTP/1.1"),
        *("{M}\t{T} HTTP/1.1", "G@T {T} HTTP/1.1", "get {T} HTTP/1.1", "{M} {T} http/1.1"),
        *("{M} {T} HTTP/1.2", "{M} {T} HTTP/2.0", "{M} {T} HTTP/1.0", "{M} {T}#x HTTP/1.1"),
        *("{M} {T} HTTP/1.0\nConnection: keep-alive", "{M} http://b{T} HTTP/1.1"),
        *("{M} http://b:80{T} HTTP/1.1", "{M} {T}\xe9\x80 HTTP/1.1", "{M} //a/..{T} HTTP/1.1"),
        *("{M} /%2e%2e{T} HTTP/1.1", "OPTIONS * HTTP/1.1\nX-A: {T}"),
        "CONNECT a:80 HTTP/1.1\nX-A: {T}",
    ),
    "host": (
        *("", "\nHost: a\nHost: b", "\nHost: a b", "\nHost: a@b", "\nHost: a/b?c", "\nHost:"),
        *("\n Host: a\nHost: b", "\nHost: a:80", "\nHost: b:80"),
    ),
    "field": (
        *(f"\nX-A: b{{LF}}{_SIZE}", f"\nX-A: b{{CR}}{_SIZE}", "\nno colon", "\n: b", "\nX\xe9: b"),
        *(f"\nX-A: b\n X-Forwarded-For: {FORGED}", f"\nX-Forwarded-For : {FORGED}"),
        *("\nX-A: \x00", "\nX-A: \x7f\xff", "\nExpect: 200-ok", "\nExpect: 100-continue"),
        *("\nConnection: X-Forwarded-For, Host", "\nConnection: close, X-Forwarded-For"),
        "\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__",
    ),
    "framing": (
        *(f"\n{_SIZE}", f"\n{_SIZE} 0", f"\n{_SIZE}, {SECOND_SIZE}", "\nContent-Length: "),
        *(f"\nContent-Length: {each}" for each in ("0", "4", f"+{SECOND_SIZE}", f"0{SECOND_SIZE}")),
        *(f"\nContent-Length : {SECOND_SIZE}", f"\nContent_Length: {SECOND_SIZE}"),
        *(f"\nConnection: Content-Length\n{_SIZE}", f"\nConnection: Transfer-Encoding\n{_CHUNKED}"),
        *(f"\n{_CHUNKED}", f"\n{_CHUNKED}, identity", "\nTransfer-Encoding: gzip, chunked"),
        *(f"\nTransfer-Encoding: {each}" for each in ("xchunked", "identity", "\x0bchunked")),
        *("\nTransfer-Encoding : chunked", "\nTransfer_Encoding: chunked"),
    ),
    "chunk": (
        *("1\na", "0x1\na", "1{LF}a", "1\nabc", "1;a{LF}b\na", " 1\na", "1 \na"),
        "10000000000000001\na",
    ),
}
