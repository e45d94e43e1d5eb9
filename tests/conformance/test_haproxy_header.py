"""HAProxy's header is read: of both versions, in front of plain servers and of TLS."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..support.balancers import ask_through
from ..support.ports import free_port

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(HAPROXY is None, reason="needs haproxy"),
]

CONFIG = """
global
  log stdout local0
defaults
  mode tcp
  timeout connect 5s
  timeout client 20s
  timeout server 20s
frontend front
  bind {front}
  default_backend back
backend back
  option tcp-check
  server one {back} {options} check inter 50ms
"""


@contextmanager
def haproxy(folder: Path, port: int, options: str) -> Iterator[tuple[str, int]]:
    """Run HAProxy in front of *port*; yield where it listens."""
    front = free_port()
    config = folder / "haproxy.cfg"
    text = CONFIG.format(front=f"127.0.0.1:{front}", back=f"127.0.0.1:{port}", options=options)
    config.write_text(text)
    with subprocess.Popen(
        [str(HAPROXY), "-db", "-f", str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield "127.0.0.1", front
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("v1", "send-proxy check-send-proxy"),
        ("v2", "send-proxy-v2 check-send-proxy"),
        ("any", "send-proxy-v2 set-proxy-v2-tlv-fmt(0xE1) %[fc_pp_authority] check-send-proxy"),
        ("v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id check-send-proxy"),
        ("any", "send-proxy check-send-proxy ssl verify none"),
        ("v2", "send-proxy-v2 check-send-proxy ssl verify none"),
    ],
)
def test_the_handler_meets_haproxys_client(version: Any, options: str, tmp_path: Path) -> None:
    """Each with its own address; HAProxy's checks find a server that is up."""
    if "set-proxy-v2-tlv-fmt" in options:
        out = subprocess.run([str(HAPROXY), "-v"], capture_output=True, text=True, check=True)
        if not any(f"version {each}" in out.stdout for each in ("2.9", "3.")):
            pytest.skip("needs HAProxy 2.9")
    headers = ask_through(
        lambda port: haproxy(tmp_path, port, options),
        version,
        tls=" ssl" in options,
        # The line of version 1 has HAProxy's own for its checks.
        is_over=has_check if "send-proxy-v2" in options else lambda _: True,
    )
    assert None not in headers


def has_check(headers: list[Any]) -> bool:
    return any(each is not None and each.is_local for each in headers)
