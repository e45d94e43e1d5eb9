"""The clients: how each is run, and what it saw.

Each makes the same requests, as far as it can: a GET with a query, an upload in chunks, and a HEAD
with a GET behind it on one connection. Those that make load send many at once.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, Final

__all__ = ["CLIENTS", "HOW_OFTEN_IS_CHANCE", "version"]

TIMEOUT_SECONDS: Final = 20.0
CHUNKS: Final = [b"0123456789abcdef" * 256] * 20
AT_ONCE: Final = "4"

#: These send as much as they can in a time.
HOW_OFTEN_IS_CHANCE: Final = frozenset({"wrk"})

#: Of a reply: what is each server's own.
LEFT_OUT: Final = frozenset({"date", "server", "connection"})

#: (method, path, is an upload)
SEQUENCE: Final = (
    ("GET", "get?a=%20b&c", False),
    ("POST", "upload", True),
    ("HEAD", "twice", False),
    ("GET", "twice", False),
)


def reply(status: int, fields: Iterable[tuple[str, str]], body: bytes) -> Any:
    """Return what is compared of a reply."""
    kept = sorted((name.lower(), value) for name, value in fields)
    return status, [each for each in kept if each[0] not in LEFT_OUT], body


def standard_library(url: str, _count: str) -> Iterator[Any]:
    _, _, host, path = url.split("/", 3)
    with closing(http.client.HTTPConnection(host, timeout=TIMEOUT_SECONDS)) as client:
        for method, name, is_upload in SEQUENCE:
            body = iter(CHUNKS) if is_upload else None
            client.request(method, f"/{path}{name}", body, encode_chunked=is_upload)
            got = client.getresponse()
            yield reply(got.status, got.getheaders(), got.read())


def requests(url: str, _count: str) -> Iterator[Any]:
    import requests  # noqa: PLC0415  # may not be installed

    with requests.Session() as client:
        for method, name, is_upload in SEQUENCE:
            body = iter(CHUNKS) if is_upload else None
            got = client.request(method, url + name, data=body, timeout=TIMEOUT_SECONDS)
            yield reply(got.status_code, got.headers.items(), got.content)


def httpx(url: str, _count: str) -> Iterator[Any]:
    import httpx  # noqa: PLC0415  # may not be installed

    with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
        for method, name, is_upload in SEQUENCE:
            got = client.request(method, url + name, content=iter(CHUNKS) if is_upload else None)
            yield reply(got.status_code, got.headers.multi_items(), got.content)


def aiohttp(url: str, _count: str) -> Iterator[Any]:
    import asyncio  # noqa: PLC0415  # for this client alone

    import aiohttp  # noqa: PLC0415  # may not be installed

    async def body() -> Any:
        for chunk in CHUNKS:
            yield chunk

    async def ask() -> list[Any]:
        timeout, replies = aiohttp.ClientTimeout(TIMEOUT_SECONDS), []
        async with aiohttp.ClientSession(timeout=timeout) as client:
            for method, name, is_upload in SEQUENCE:
                data = body() if is_upload else None
                async with client.request(method, url + name, data=data) as got:
                    replies.append(reply(got.status, got.headers.items(), await got.read()))
        return replies

    yield from asyncio.run(ask())


def run(*command: str, data: bytes = b"") -> str:
    """Return what a program printed, or raise `subprocess.SubprocessError` if it fails or hangs."""
    done = subprocess.run(
        command, input=data, stdout=subprocess.PIPE, timeout=TIMEOUT_SECONDS, check=True
    )
    return done.stdout.decode("latin-1")


def curl(url: str, _count: str) -> Iterator[Any]:
    ask = ("-sS", "--include", "--write-out", "%{num_connects} connects\n")
    upload = ("--header", "Transfer-Encoding: chunked", "--request", "POST", "--upload-file", "-")
    printed = run(
        *("curl", *ask, url + "get?a=%20b&c", "--next", *ask, *upload, url + "upload"),
        *("--next", *ask, "--head", url + "twice", "--next", *ask, url + "twice"),
        data=b"".join(CHUNKS),
    )
    for line in printed.splitlines():
        if line.partition(":")[0].lower() not in LEFT_OUT:
            yield line


def ab(url: str, count: str) -> Iterator[Any]:
    for ask in ((url + "get?a=%20b",), ("-i", url + "twice")):
        told = run("ab", "-q", "-k", "-n", count, "-c", AT_ONCE, *ask)
        wanted = r"^(?:Complete|Failed|Non-2xx|Keep-Alive|Document Length|HTML).*"
        yield from re.findall(wanted, told, re.MULTILINE)


def h2load(url: str, count: str) -> Iterator[Any]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(CHUNKS[0])
        file.flush()
        for ask in ((url + "get?a=%20b",), ("-d", file.name, url + "upload")):
            told = run("h2load", "--h1", "-n", count, "-c", AT_ONCE, *ask)
            yield from re.findall(r"^(?:requests|status codes): .*|\(\d+\) data", told, re.M)


# A GET and an upload in turn, on each connection. wrk knows no HEAD: it would wait for a body.
WRK: Final = r"""
local count = 0
local get = "GET %s HTTP/1.1\r\nHost: a\r\n\r\n"
local upload = "POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" ..
    string.rep("a\r\n0123456789\r\n", 100) .. "0\r\n\r\n"
request = function()
    count = count + 1
    return count %% 2 == 1 and get or upload
end
done = function(summary)
    local bad = summary.errors
    print("errors", bad.connect + bad.read + bad.write + bad.status + bad.timeout)
    print("none", summary.requests == 0)
end
"""


def wrk(url: str, _count: str) -> Iterator[Any]:
    path = "/" + url.split("/", 3)[3]
    with tempfile.NamedTemporaryFile("w") as script:
        script.write(WRK % (path + "get?a=%20b", path + "upload"))
        script.flush()
        told = run("wrk", "-t", "1", "-c", AT_ONCE, "-d", "1s", "-s", script.name, url)
    yield from re.findall(r"^(?:errors|none)\s.*|Non-2xx.*", told, re.MULTILINE)


#: Each gets a URL's beginning and a number of requests, and yields what it saw.
CLIENTS: Final[dict[str, Callable[[str, str], Iterator[Any]]]] = {
    each.__name__.replace("standard_library", "http.client"): each
    for each in (curl, ab, h2load, wrk, requests, httpx, aiohttp, standard_library)
}

# How a program tells its version.
_PROGRAMS: Final = {"curl": "--version", "ab": "-V", "h2load": "--version", "wrk": "-v"}


def version(name: str) -> str | None:
    """Return the version of a program or a package; ``None`` if it isn't installed."""
    if name in {"http.client", "plain"}:
        return platform.python_version()
    if name in _PROGRAMS:
        if shutil.which(name) is None:
            return None
        told = subprocess.run([name, _PROGRAMS[name]], stdout=subprocess.PIPE, check=False).stdout
        found: list[str] = re.findall(r"\d+\.\d[\d.]*|$", told.decode("latin-1"))
        return found[0]
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
