"""The proxies that are installed: how each is configured, started and ended."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from .words import DIRECT

__all__ = ["PROXIES", "Proxy", "version"]

START_SECONDS: Final = 10.0

#: Debian has both there, and a user's PATH may not.
_PATH: Final = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"

# Any client may use a connection to the server between two requests. Nothing is tried again: a
# request that the server has lost must be seen.
_HAPROXY: Final = """
global
    nbthread 1
    maxconn 2000

defaults
    mode http
    option http-keep-alive
    http-reuse always
    retries 0
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s

frontend clients
    bind 127.0.0.1:{port}
    http-request set-header X-Forwarded-For %[src]
    {frontend}
    default_backend servers

backend servers
    {backend}
    server glb 127.0.0.1:{server_port}
"""

# The location is that of nginx's page on websockets, but for an empty Connection where there is no
# Upgrade: with "close" no connection is kept.
_NGINX: Final = """
daemon off;
master_process off;
pid {home}/nginx.pid;
error_log {home}/nginx.log warn;
events {{ worker_connections 2000; }}
http {{
    access_log off;
    client_body_temp_path {home}/client_body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    client_max_body_size 0;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        '' '';
    }}
    upstream servers {{
        server 127.0.0.1:{server_port};
        keepalive 16;
    }}
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_next_upstream off;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://servers; }}
        location {direct}/ {{
            proxy_pass http://servers;
            proxy_request_buffering off;
            proxy_buffering off;
        }}
    }}
}}
"""


class Proxy:
    """A proxy that runs in front of a server.

    Args:
        name: One of `PROXIES`.
        server_port: The server's.
        home: A folder of its own, which is empty.

    Attributes:
        port: Where it listens, on loopback.
    """

    def __init__(self, name: str, server_port: int, home: Path) -> None:
        self.name: Final = name
        self.port: Final = _free_port()
        program = PROXIES[name]
        path = find(program)
        assert path is not None, f"{program} was looked for before"
        if program == "haproxy":
            is_lax = name == "haproxy-lax"
            text = _HAPROXY.format(
                port=self.port,
                server_port=server_port,
                frontend="option accept-invalid-http-request" if is_lax else "",
                backend="option accept-invalid-http-response" if is_lax else "",
            )
            command = [path, "-db", "-f"]
        else:
            text = _NGINX.format(port=self.port, server_port=server_port, home=home, direct=DIRECT)
            command = [path, "-p", str(home), "-c"]
        file = home / f"{name}.conf"
        file.write_text(text)
        self.log: Final = home / f"{name}.log"
        with open(home / f"{name}.said", "wb") as said:
            self._process: Final = subprocess.Popen(
                [*command, str(file)], stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        self._wait_until_it_listens(home / f"{name}.said")

    def _wait_until_it_listens(self, said: Path) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                if self._process.poll() is not None or time.monotonic() > until:
                    self.end()
                    raise RuntimeError(
                        f"{self.name} doesn't start: {said.read_text()[:1000]}"
                    ) from None
                time.sleep(0.02)
            else:
                return

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """End it, and all connections with it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()


#: Their programs, by names. The lax one passes on more of what is malformed.
PROXIES: Final = {"haproxy": "haproxy", "haproxy-lax": "haproxy", "nginx": "nginx"}


def find(program: str) -> str | None:
    """Return where *program* is; ``None`` if it isn't installed."""
    return shutil.which(program) or shutil.which(program, path=_PATH)


def version(name: str) -> str | None:
    """Return the version of a proxy, as it says; ``None`` if it isn't installed."""
    path = find(PROXIES[name])
    if path is None:
        return None
    said = subprocess.run(
        [path, "-v"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    ).stdout
    return said.splitlines()[0].removeprefix("nginx version: ").partition(" - ")[0]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
