"""The header of the PROXY protocol is read, however it comes, and nothing behind it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from glb.model.proxy_header import HeaderError, ProxyHeader
from glb.net.proxied import header_of, read_header, remember_header

from ..support.helpers import let_hub_turn

LINE = b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n"
BINARY = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13" + bytes([1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10])
BINARY += b"\2\0\4host"
ENDS = (("1.2.3.4", 9), ("5.6.7.8", 10))


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    """A connection's two ends: the server's, and the balancer's."""
    ends = socket.socketpair()
    yield ends
    for each in ends:
        each.close()


@pytest.mark.parametrize("header", [LINE, BINARY])
@pytest.mark.parametrize("behind", [b"", b"\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" * 3000])
def test_what_is_behind_it_stays(header: bytes, behind: bytes, pair: tuple[Any, Any]) -> None:
    """All of it, in one packet with the header or not."""
    pair[1].sendall(header + behind)
    assert read_header(pair[0], "any").ends == ENDS
    pair[1].shutdown(socket.SHUT_WR)
    assert b"".join(iter(lambda: pair[0].recv(65536), b"")) == behind


@pytest.mark.parametrize("header", [LINE, BINARY])
def test_it_may_come_one_byte_at_a_time(header: bytes, pair: tuple[Any, Any]) -> None:
    """Between two of them the greenlet waits, and others run."""
    reader = gevent.spawn(read_header, pair[0], "any")
    for place in range(len(header)):
        let_hub_turn()
        assert not reader.ready()
        pair[1].sendall(header[place : place + 1])
    assert reader.get().ends == ENDS
    pair[1].sendall(b"x")
    assert pair[0].recv(10) == b"x"


@pytest.mark.parametrize("data", [b"", LINE[:-1], BINARY[:-1], BINARY[:5]])
def test_a_client_that_leaves_before_the_end_is_refused(data: bytes, pair: tuple[Any, Any]) -> None:
    """A port scan, say."""
    pair[1].sendall(data)
    pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(HeaderError, match="ended early"):
        read_header(pair[0], "any")


def test_another_protocol_is_refused_at_once(pair: tuple[Any, Any]) -> None:
    """With the connection still open."""
    pair[1].sendall(b"G")
    with pytest.raises(HeaderError, match="no header of the PROXY protocol: b'G'"):
        read_header(pair[0], "any")


@pytest.mark.parametrize("data", [b"", LINE[:-1], BINARY[:14]])
def test_one_that_does_not_come_is_not_waited_for(data: bytes, pair: tuple[Any, Any]) -> None:
    """Nor one that begins and doesn't end."""
    pair[1].sendall(data)
    with pytest.raises(HeaderError, match=r"within 0\.01 s"):
        read_header(pair[0], "any", 0.01)


def test_what_was_said_is_kept_with_the_connection(pair: tuple[Any, Any]) -> None:
    """And goes with it."""
    header = ProxyHeader(2, ENDS)
    other = socket.socket()
    remember_header(other, header)
    assert header_of(other) is header
    assert header_of(pair[0]) is None
    other.close()
    del other
    gc.collect()
    from glb.net import proxied

    assert len(proxied._headers) == 0
