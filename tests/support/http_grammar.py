"""Requests read slowly and plainly, by the rules of the RFCs, one after the other.

`glb.http.head` and `glb.http.body` are compared with it. It has nothing of theirs, and their
shortcuts are not here: each rule is a regular expression under the name that RFC 9110, RFC 9112
and RFC 3986 give it.

Where we depart from the grammar on purpose:

- A target may have any visible ASCII character but ``#``: browsers send ``|`` and ``"`` as they
  are.
- An address in brackets may be any digits, colons and dots, and ``%`` needs no two digits behind
  it in a host: there is no doubt where the host ends.
- CONNECT needs no port.
- A field whose name has an underscore is left out.
- Transfer-Encoding may be ``chunked`` once, and nothing else.
- The size of a chunk has 16 digits or less.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Final

# RFC 9110, 5.5, 5.6; RFC 5234, B.1.
OWS: Final = rb"[ \t]*"
BWS: Final = OWS
DIGIT: Final = rb"[0-9]"
TCHAR: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
TOKEN: Final = TCHAR + rb"+"
OBS_TEXT: Final = rb"[\x80-\xff]"
VCHAR: Final = rb"[\x21-\x7e]"
FIELD_VCHAR: Final = rb"(?:" + VCHAR + rb"|" + OBS_TEXT + rb")"
FIELD_CONTENT: Final = FIELD_VCHAR + rb"(?:[ \t]*" + FIELD_VCHAR + rb")*"
FIELD_VALUE: Final = rb"(?:" + FIELD_CONTENT + rb")?"
FIELD_LINE: Final = re.compile(
    rb"(?P<name>" + TOKEN + rb"):" + OWS + rb"(?P<value>" + FIELD_VALUE + rb")" + OWS
)
QDTEXT: Final = rb"[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]"
QUOTED_PAIR: Final = rb"\\[\t \x21-\x7e\x80-\xff]"
QUOTED_STRING: Final = rb'"(?:' + QDTEXT + rb"|" + QUOTED_PAIR + rb')*"'

# RFC 3986, 3.2, as far as said above.
PORT: Final = DIGIT + rb"*"
REG_NAME: Final = rb"[A-Za-z0-9._~!$&'()*+,;=%-]*"
IP_LITERAL: Final = rb"\[[0-9A-Fa-fv:.]+\]"
URI_HOST: Final = rb"(?:" + IP_LITERAL + rb"|" + REG_NAME + rb")"
AUTHORITY: Final = URI_HOST + rb"(?::" + PORT + rb")?"
NAMED_AUTHORITY: Final = rb"(?!:)(?!/)(?!\?)(?!$)" + AUTHORITY

# RFC 9112, 3.
METHOD: Final = re.compile(TOKEN)
VERSION: Final = re.compile(rb"HTTP/1\.[01]")
HOST: Final = re.compile(AUTHORITY)
ORIGIN_FORM: Final = re.compile(rb"(?P<path>/[\x21\x22\x24-\x3e\x40-\x7e]*)(?:\?(?P<query>.*))?")
ABSOLUTE_FORM: Final = re.compile(
    rb"(?i:https?)://(?P<host>" + NAMED_AUTHORITY + rb")(?P<path>/[^?]*)?(?:\?(?P<query>.*))?"
)
AUTHORITY_FORM: Final = re.compile(AUTHORITY)
TARGET: Final = re.compile(rb"[\x21\x22\x24-\x7e]+")

# RFC 9112, 7.1.
CHUNK_SIZE: Final = rb"[0-9A-Fa-f]{1,16}"
CHUNK_EXT: Final = (
    rb"(?:" + BWS + rb";" + BWS + TOKEN
    + rb"(?:" + BWS + rb"=" + BWS + rb"(?:" + TOKEN + rb"|" + QUOTED_STRING + rb"))?)*"
)  # fmt: skip
CHUNK_LINE: Final = re.compile(
    rb"(?P<size>" + CHUNK_SIZE + rb")(?P<extensions>" + CHUNK_EXT + rb")"
)

# RFC 9110, 6.5.1: fields for framing, routing, authentication, and how to read the content.
NOT_IN_TRAILERS: Final = {
    b"authorization",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"host",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}


@dataclass
class Reading:
    """What a head says."""

    method: str
    target: str
    version: str
    path: str
    query: str
    fields: dict[str, str]
    length: int | None
    is_chunked: bool
    is_persistent: bool
    expects: str


class RefusedError(ValueError):
    """It is no request, or one that may be understood in two ways."""


def demand(condition: object, rule: str) -> None:
    if not condition:
        raise RefusedError(rule)


def read_head(data: bytes, *, needs_host: bool = False) -> Reading:
    """Read a head, from its request line to the end of its last field line.

    Raises:
        RefusedError: As it says.
    """
    demand(data.endswith(b"\r\n"), "each line has its end")
    request_line, *field_lines = data[:-2].split(b"\r\n")

    parts = request_line.split(b" ")
    demand(len(parts) == 3, "method SP request-target SP HTTP-version")
    method, target, version = parts
    demand(METHOD.fullmatch(method), "method = token")
    demand(VERSION.fullmatch(version), "HTTP/1.0 or HTTP/1.1")

    sent = [read_field(line) for line in field_lines]
    sent = [(name, value) for name, value in sent if b"_" not in name]

    hosts = all_of(sent, b"host")
    demand(len(hosts) <= 1, "one Host")
    demand(hosts or not needs_host or version != b"HTTP/1.1", "Host in HTTP/1.1")
    demand(all(HOST.fullmatch(host) for host in hosts), 'Host = uri-host [ ":" port ]')
    path, query, host = read_target(method, target)
    if host is not None:
        sent = [(name, value) for name, value in sent if name != b"host"]
        sent.append((b"host", host))

    options = {
        option.strip(b" \t").lower()
        for value in all_of(sent, b"connection")
        for option in value.split(b",")
    } - {b""}
    if version == b"HTTP/1.1":
        is_persistent = b"close" not in options
    else:
        is_persistent = options == {b"keep-alive"}

    length = read_length(all_of(sent, b"content-length"))
    codings = all_of(sent, b"transfer-encoding")
    if codings:
        demand([each.lower() for each in codings] == [b"chunked"], "chunked, once")
        demand(version == b"HTTP/1.1", "Transfer-Encoding is not in HTTP/1.0")
        if length is not None:
            length, is_persistent = None, False
            sent = [(name, value) for name, value in sent if name != b"content-length"]

    expectations = all_of(sent, b"expect") if version == b"HTTP/1.1" else []
    return Reading(
        method=method.decode("ascii"),
        target=target.decode("ascii"),
        version=version.decode("ascii"),
        path=path.decode("ascii"),
        query=query.decode("ascii"),
        fields=as_environ(sent),
        length=length,
        is_chunked=bool(codings),
        is_persistent=is_persistent,
        expects=b",".join(expectations).decode("latin-1").lower(),
    )


def read_field(line: bytes) -> tuple[bytes, bytes]:
    """Return the name, in lower case, and the value of a field line."""
    match = FIELD_LINE.fullmatch(line)
    demand(match, 'field-line = field-name ":" OWS field-value OWS')
    assert match is not None
    return match["name"].lower(), match["value"]


def all_of(sent: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for each, value in sent if each == name]


def read_target(method: bytes, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Return the path, the query and the host of a target."""
    demand(TARGET.fullmatch(target), "visible characters but for #")
    if method == b"CONNECT":
        demand(AUTHORITY_FORM.fullmatch(target), "authority-form is all that CONNECT has")
        return target, b"", None
    if target == b"*":
        demand(method == b"OPTIONS", "asterisk-form is for OPTIONS alone")
        return target, b"", None
    match = ORIGIN_FORM.fullmatch(target)
    if match:
        return match["path"], match["query"] or b"", None
    match = ABSOLUTE_FORM.fullmatch(target)
    demand(match, "origin-form or absolute-form")
    assert match is not None
    return match["path"] or b"/", match["query"] or b"", match["host"]


def read_length(values: list[bytes]) -> int | None:
    """Return what Content-Length says."""
    if not values:
        return None
    demand(len(values) == 1, "one Content-Length")
    demand(re.fullmatch(DIGIT + rb"+", values[0]), "Content-Length = 1*DIGIT")
    digits = values[0].lstrip(b"0") or b"0"
    demand(len(digits) < 20 and int(digits) <= sys.maxsize, "a length that can be counted")
    return int(digits)


def as_environ(sent: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the fields by the keys of PEP 3333."""
    fields: dict[str, str] = {}
    for name in dict.fromkeys(name for name, _ in sent):
        values = [value.decode("latin-1") for value in all_of(sent, name)]
        key = name.decode("ascii").upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            fields[key] = values[0]
        elif key == "CONTENT_LENGTH":
            # As a number that an application can read.
            fields[key] = values[0] if len(values[0]) <= 18 else values[0].lstrip("0") or "0"
        elif "COOKIE" in key:  # RFC 6265, 5.4
            fields["HTTP_" + key] = "; ".join(values)
        else:  # RFC 9110, 5.3
            fields["HTTP_" + key] = ",".join(values)
    return fields


def read_chunked(data: bytes) -> tuple[bytes, bytes]:
    """Return what a chunked body carries, and what comes behind it.

    Raises:
        RefusedError: *data* doesn't begin with a whole chunked body.
    """
    content = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        match = CHUNK_LINE.fullmatch(line)
        demand(end and match, "chunk-size [ chunk-ext ] CRLF")
        assert match is not None
        size = int(match["size"], 16)
        if not size:
            break
        demand(data[size : size + 2] == b"\r\n", "chunk-data CRLF")
        content, data = content + data[:size], data[size + 2 :]
    while True:
        line, end, data = data.partition(b"\r\n")
        demand(end, "each line has its end")
        if not line:
            return content, data
        demand(read_field(line)[0] not in NOT_IN_TRAILERS, "a field that may be a trailer")
