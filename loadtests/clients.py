"""Do clients and applications see of each other what they see under gevent's WSGIServer?

    python -m loadtests.clients --requests 200

Clients (curl, ab, h2load, wrk, requests, httpx, aiohttp, http.client) ask applications (Flask,
Django, Falcon, Bottle), each within wsgiref.validate, under gevent's server and under glb's with 4
clones, by each of its loops. What isn't installed is left out, and named. The exit status is 1 if a
client or an application saw something else than under gevent, a reply was no 2xx, or a server wrote
to its standard error.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import product
from time import monotonic
from typing import Any, Final

import click

from .frame.process import Process
from .http.serve import APPLICATIONS

#: The servers' process in a run.
SERVER = (sys.executable, "-m", "loadtests.http.serve")

#: Server and hubs. The others are compared with the first.
SERVERS: Final = (("gevent", "1"), ("glb", "1"), ("glb", "2"), ("glb by hooks", "2"))

PATIENCE_SECONDS: Final = 30.0

#: Of a difference so much is printed.
SHOWN: Final = 1500

# What a client saw of a reply that is no 2xx, or of an error.
_BAD: Final = re.compile(r"\((?!2)\d+, |HTTP/1\.1 (?!2|100)\d|Non-2xx|[1-9]\d* [345]xx")

# -- the clients: each makes the same requests, as far as it can ---------------------------------

CHUNKS: Final = [b"0123456789abcdef" * 256] * 20

#: A GET with a query, an upload in chunks, and a HEAD with a GET behind it on one connection.
SEQUENCE: Final = (
    ("GET", "get?a=%20b&c", False),
    ("POST", "upload", True),
    ("HEAD", "twice", False),
    ("GET", "twice", False),
)

#: Of a reply: what is each server's own.
LEFT_OUT: Final = frozenset({"date", "server", "connection"})

# A GET and an upload in turn, on each connection. wrk knows no HEAD: it would wait for a body.
_WRK: Final = r"""
local count = 0
local get = "GET PATHget?a=%20b HTTP/1.1\r\nHost: a\r\n\r\n"
local upload = "POST PATHupload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" ..
    string.rep("a\r\n0123456789\r\n", 100) .. "0\r\n\r\n"
request = function()
    count = count + 1
    return count % 2 == 1 and get or upload
end
done = function(summary)
    local bad = summary.errors
    print("errors", bad.connect + bad.read + bad.write + bad.status + bad.timeout)
    print("none", summary.requests == 0)
end
"""

_CURL: Final = r"--next -sS --include --write-out %{num_connects}\n"
_MAKE: Final = f"{_CURL} -HTransfer-Encoding:chunked -XPOST -T FILE"
_AB, _LOAD = "ab -q -k -n COUNT -c 4", "h2load --h1 -n COUNT -c 4"

#: Programs: what of the output is compared, and how each is run; *FILE* is wrk's, or a body.
PROGRAMS: Final = {
    "curl": (
        rf"^(?!(?i:{'|'.join(LEFT_OUT)}):).*",
        f"curl {_CURL} URL{SEQUENCE[0][1]} {_MAKE} URLupload {_CURL} -I URLtwice {_CURL} URLtwice",
    ),
    "ab": (
        r"^(?:Complete|Failed|Non-2xx|Keep-Alive|Document Length|HTML).*",
        *(f"{_AB} URLget?a=%20b", f"{_AB} -i URLtwice"),
    ),
    "h2load": (
        r"^(?:requests|status codes): .*|\(\d+\) data",
        *(f"{_LOAD} URLget?a=%20b", f"{_LOAD} -d FILE URLupload"),
    ),
    "wrk": (r"^(?:errors|none)\s.*|Non-2xx.*", "wrk -t 1 -c 4 -d 1s -s FILE URL"),
}


def by_program(name: str, url: str, count: int) -> Iterator[Any]:
    kept, *commands = PROGRAMS[name]
    with tempfile.NamedTemporaryFile() as file:
        script = _WRK.replace("PATH", "/" + url.split("/", 3)[3])
        file.write(script.encode() if name == "wrk" else b"".join(CHUNKS))
        file.flush()
        for command in commands:
            words = command.replace("URL", url).replace("COUNT", str(count)).split()
            words = [file.name if word == "FILE" else word for word in words]
            done = subprocess.run(words, capture_output=True, timeout=PATIENCE_SECONDS, check=True)
            yield from re.findall(kept, done.stdout.decode("latin-1"), re.MULTILINE)


def reply(status: int, fields: Iterable[tuple[str, str]], body: bytes) -> Any:
    """Return what is compared of a reply."""
    kept = sorted((name.lower(), value) for name, value in fields)
    return status, [each for each in kept if each[0] not in LEFT_OUT], body


def by_library(url: str) -> Iterator[Any]:
    """Ask by `http.client`."""
    _, _, host, path = url.split("/", 3)
    with closing(http.client.HTTPConnection(host, timeout=PATIENCE_SECONDS)) as client:
        for method, name, is_upload in SEQUENCE:
            body = iter(CHUNKS) if is_upload else None
            client.request(method, f"/{path}{name}", body, encode_chunked=is_upload)
            got = client.getresponse()
            yield reply(got.status, got.getheaders(), got.read())


def by_session(package: Any, url: str) -> Iterator[Any]:
    """Ask by requests, or by httpx."""
    is_httpx = package.__name__ == "httpx"
    with package.Client() if is_httpx else package.Session() as client:
        for method, name, is_upload in SEQUENCE:
            body = {"content" if is_httpx else "data": iter(CHUNKS) if is_upload else None}
            got = client.request(method, url + name, timeout=PATIENCE_SECONDS, **body)
            yield reply(got.status_code, got.headers.items(), got.content)


async def by_aiohttp(url: str) -> list[Any]:
    import aiohttp  # noqa: PLC0415  # may not be installed

    async def body() -> Any:
        for chunk in CHUNKS:
            yield chunk

    timeout, replies = aiohttp.ClientTimeout(PATIENCE_SECONDS), []
    async with aiohttp.ClientSession(timeout=timeout) as client:
        for method, name, is_upload in SEQUENCE:
            data = body() if is_upload else None
            async with client.request(method, url + name, data=data) as got:
                replies.append(reply(got.status, got.headers.items(), await got.read()))
    return replies


CLIENTS: Final = (*PROGRAMS, "requests", "httpx", "aiohttp", "http.client")


def ask(client: str, url: str, count: int) -> list[Any]:
    """Return what a *client* saw. A *count* of requests is for those that make load."""
    try:
        if client in PROGRAMS:
            return [*by_program(client, url, count)]
        if client == "aiohttp":
            return asyncio.run(by_aiohttp(url))
        if client == "http.client":
            return [*by_library(url)]
        return [*by_session(importlib.import_module(client), url)]
    except Exception as error:  # a client that fails has seen that
        return [(0, repr(error))]


# -- the comparison ------------------------------------------------------------------------------


def version(name: str) -> str | None:
    """Return the version of a program or a package; ``None`` if it isn't installed."""
    if name in {"http.client", "plain"}:
        return platform.python_version()
    try:
        if name not in PROGRAMS:
            return importlib.metadata.version(name)
        words = [name, {"ab": "-V", "wrk": "-v"}.get(name, "--version")]
        told = subprocess.run(words, capture_output=True, check=False).stdout
        return str(re.findall(r"\d+\.\d[\d.]*|$", told.decode("latin-1"))[0])
    except (FileNotFoundError, importlib.metadata.PackageNotFoundError):
        return None


def installed(names: Iterable[str]) -> list[str]:
    """Print the versions of those that are installed, and return them."""
    versions = {name: version(name) for name in names}
    print(", ".join(f"{name} {found or 'is not installed'}" for name, found in versions.items()))
    return [name for name, found in versions.items() if found]


def look(server: tuple[str, str], pairs: list[tuple[str, str]], count: int) -> dict[str, Any]:
    """Let each client ask its application; return what both sides and the server saw.

    What an application saw is each call, how often it was made, and how many connections there
    were. (Of wrk, how often is chance: it sends as much as it can in a time.)
    """
    calls: dict[str, list[Any]] = defaultdict(list)
    applications = sorted({application for _, application in pairs})
    with tempfile.NamedTemporaryFile() as file:
        with Process([*SERVER, *server, file.name, *applications]) as process:
            ports = json.loads(process.line(PATIENCE_SECONDS))
            clients = {}
            for client, name in pairs:
                url = f"http://127.0.0.1:{ports[applications.index(name)]}/{client}/"
                clients[f"{client} to {name}"] = ask(client, url, count)
            process.status(PATIENCE_SECONDS)
            said = process.said()
        for name, call in map(json.loads, file):
            call["HTTP_HOST"] = call.get("HTTP_HOST", "").partition(":")[0]
            calls[f"{call['PATH_INFO'].split('/')[1]} to {name}"].append(call)
    seen = {}
    for which, some in calls.items():
        connections = {call.pop("REMOTE_PORT") for call in some}
        times = Counter(json.dumps(call, sort_keys=True) for call in some)
        seen[which] = sorted(times) if which.startswith("wrk ") else times, len(connections)
    return {"clients": clients, "applications": seen, "server": said}


def faults_of(seen: dict[str, Any], gevents: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong: by itself, and beside what was seen under gevent's server."""
    if seen["server"]:
        yield f"the server said {seen['server']}"
    for which, found in seen["clients"].items():
        if not found or _BAD.search(repr(found)):
            yield f"{which}: {found}"
    for side in ("clients", "applications"):
        for which in {**gevents[side], **seen[side]}:
            ours, wanted = seen[side].get(which), gevents[side].get(which)
            if ours != wanted:
                yield f"{which}, {side} saw {ours}\n  not {wanted}"


@click.command(help=__doc__)
@click.option("--requests", type=click.IntRange(10, 10_000), default=200, show_default=True)
@click.option("--client", "clients", type=click.Choice(CLIENTS), multiple=True)
@click.option("--application", "applications", type=click.Choice([*APPLICATIONS]), multiple=True)
def main(requests: int, clients: tuple[str, ...], applications: tuple[str, ...]) -> None:
    began, faults = monotonic(), 0
    print(f"Python {platform.python_version()}, {os.environ.get('GEVENT_LOOP', 'default loop')}")
    asking = installed(clients or CLIENTS)
    pairs = [*product(asking, installed(applications or APPLICATIONS))]
    first = None
    for server in SERVERS:
        seen = look(server, pairs, requests)
        first = first or seen
        found = [*faults_of(seen, first)]
        faults += len(found)
        calls = sum(map(len, seen["clients"].values()))
        print(f"{' '.join(server)} hubs: {calls} things seen by clients, {len(found)} faults")
        for fault in found:
            print(fault if len(fault) < SHOWN else fault[:SHOWN] + " ...", flush=True)
    print(f"{faults} faults, in {monotonic() - began:.0f} s")
    sys.exit(1 if faults or not pairs else 0)


if __name__ == "__main__":
    main()
