"""The header of nginx's stream module is read; it can send version 1 alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from glb.server import StreamServer

from ..support.balancers import ANY, ask_through
from ..support.helpers import connect, receive_all, wait_until
from ..support.ports import free_port

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

#: Debian's libnginx-mod-stream; elsewhere it may be built in.
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(NGINX is None, reason="needs nginx"),
]

CONFIG = """
{module}
daemon off;
master_process off;
pid {home}/nginx.pid;
error_log {home}/nginx.log;
events {{ worker_connections 100; }}
stream {{
  server {{
    listen {front};
    proxy_pass {back};
    proxy_protocol on;
    {options}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, port: int, options: str) -> Iterator[tuple[str, int]]:
    """Run nginx in front of *port*; yield where it listens."""
    front = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        CONFIG.format(
            module=f"load_module {MODULE};" if MODULE.exists() else "",
            home=folder,
            front=f"127.0.0.1:{front}",
            back=f"127.0.0.1:{port}",
            options=options,
        )
    )
    command = [str(NGINX), "-p", str(folder), "-c", str(config)]
    tried = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    if 'unknown directive "stream"' in tried.stderr:
        pytest.skip("needs nginx's stream module (Debian's libnginx-mod-stream)")
    assert tried.returncode == 0, tried.stderr
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield "127.0.0.1", front
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("v1", ""),
        ("any", ""),
        ("v1", "proxy_ssl on;"),
    ],
)
def test_the_handler_meets_nginxs_client(version: Any, options: str, tmp_path: Path) -> None:
    """Each with its own address, in the clear and before the handshake of TLS."""
    headers = ask_through(
        lambda port: nginx(tmp_path, port, options), version, tls="ssl" in options
    )
    assert all(each is not None and not each.is_local for each in headers)


def test_a_server_of_version_2_refuses_nginx(tmp_path: Path) -> None:
    """Its line of text is no header of version 2: the handler isn't called."""
    called: list[Any] = []
    server = StreamServer(ANY, lambda *args: called.append(args), proxy_protocol="v2")
    server.start()
    port: Any = server.address[1]
    with nginx(tmp_path, port, "") as front:

        def ask() -> bytes | None:
            try:
                with connect(front) as client:
                    client.sendall(b"hello")
                    return receive_all(client)
            except ConnectionRefusedError:
                return None  # nginx begins
            except ConnectionResetError:
                return b""

        wait_until(lambda: ask() == b"")
    server.stop()
    assert called == []
