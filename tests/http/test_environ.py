"""What is in the environ beside the head."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.ssl
import gevent.tests
import pytest
from gevent import socket

from glb.http.environ import _name_of, as_fields, tls_variables
from glb.http.head import Limits, parse
from glb.pywsgi import WSGIHandler, WSGIServer

from ..support.helpers import connect, receive_all

HERE = Path(gevent.tests.__file__).parent
CERTIFICATE = HERE / "server.crt"
KEY = HERE / "server.key"

needs_certificates = pytest.mark.skipif(not CERTIFICATE.exists(), reason="gevent has no tests here")


def server_context(verify: ssl.VerifyMode = ssl.CERT_NONE) -> Any:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    context.load_verify_locations(CERTIFICATE)
    context.verify_mode = verify
    return context


def client_context(*, has_certificate: bool = False) -> Any:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(CERTIFICATE)
    if has_certificate:
        context.load_cert_chain(CERTIFICATE, KEY)
    return context


@contextmanager
def tls_pair(verify: ssl.VerifyMode, *, has_certificate: bool) -> Iterator[tuple[Any, Any]]:
    """Yield both ends of a TLS connection, the server's first."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wrapping = gevent.spawn(client_context(has_certificate=has_certificate).wrap_socket, theirs)
        with (
            server_context(verify).wrap_socket(ours, server_side=True) as server,
            wrapping.get() as client,
        ):
            # With TLS 1.3 a client's certificate comes after its handshake.
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            yield server, client


# -- TLS ----------------------------------------------------------------------------------------


@needs_certificates
@pytest.mark.parametrize("verify", [ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED])
def test_a_clients_certificate_is_in_the_environ(verify: ssl.VerifyMode) -> None:
    """By the names of mod_ssl, and as it was sent."""
    with tls_pair(verify, has_certificate=True) as (server, client):
        found = tls_variables(server)
        assert found == {
            "HTTPS": "on",
            "SSL_PROTOCOL": client.version(),
            "SSL_CIPHER": client.cipher()[0],
            "SSL_CLIENT_VERIFY": "SUCCESS",
            "SSL_CLIENT_S_DN": "CN=localhost",
            "SSL_CLIENT_I_DN": "CN=localhost",
            "SSL_CLIENT_M_SERIAL": server.getpeercert()["serialNumber"],
            "SSL_CLIENT_V_START": "Jul  8 11:34:35 2021 GMT",
            "SSL_CLIENT_V_END": "Jun 14 11:34:35 2121 GMT",
            "SSL_CLIENT_CERT": found["SSL_CLIENT_CERT"],
        }
        # RFC 7468: 64 characters a line, as OpenSSL has written it.
        assert found["SSL_CLIENT_CERT"] == CERTIFICATE.read_text()


@needs_certificates
@pytest.mark.parametrize(
    ("verify", "has_certificate"),
    [(ssl.CERT_NONE, False), (ssl.CERT_NONE, True), (ssl.CERT_OPTIONAL, False)],
)
def test_without_a_certificate_that_is_so(verify: ssl.VerifyMode, has_certificate: bool) -> None:
    """One that is not asked for is none."""
    with tls_pair(verify, has_certificate=has_certificate) as (server, client):
        assert tls_variables(server) == {
            "HTTPS": "on",
            "SSL_PROTOCOL": client.version(),
            "SSL_CIPHER": client.cipher()[0],
            "SSL_CLIENT_VERIFY": "NONE",
        }


@needs_certificates
def test_an_application_sees_the_certificate() -> None:
    """Of each request on a connection, on both of the handler's paths."""

    class ByHooks(WSGIHandler):
        def get_environ(self) -> Any:
            return super().get_environ()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        names = ("wsgi.url_scheme", "HTTPS", "SSL_CLIENT_VERIFY", "SSL_CLIENT_S_DN")
        return [" ".join(environ[name] for name in names).encode()]

    for handler_class in (WSGIHandler, ByHooks):
        with WSGIServer(
            ("127.0.0.1", 0),
            application,
            log=None,
            handler_class=handler_class,
            ssl_context=server_context(ssl.CERT_REQUIRED),
        ) as server:
            server.start()
            with (
                connect((server.server_host, server.server_port)) as client,
                client_context(has_certificate=True).wrap_socket(client) as secured,
            ):
                secured.sendall(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n")
                replies = receive_all(secured)
        assert replies.count(b"\r\n\r\nhttps on SUCCESS CN=localhost") == 2


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ((), ""),
        (((("commonName", "a"),),), "CN=a"),
        (((("countryName", "C"),), (("commonName", "a"),)), "CN=a,C=C"),
        (((("commonName", "a"), ("userId", "b")), (("domainComponent", "c"),)), "DC=c,CN=a+UID=b"),
        (((("emailAddress", "a@b"),),), "emailAddress=a@b"),
        (((("organizationName", "A, Inc."),),), "O=A\\, Inc."),
        (((("commonName", "a,CN=root"),),), "CN=a\\,CN=root"),
        (((("commonName", "a+UID=0"),),), "CN=a\\+UID=0"),
        (((("commonName", 'a"b\\c<d>e;f'),),), 'CN=a\\"b\\\\c\\<d\\>e\\;f'),
        (((("commonName", " a "),),), "CN=\\ a\\ "),
        (((("commonName", "#a#"),),), "CN=\\#a#"),
        (((("commonName", " "),),), "CN=\\ "),
        (((("commonName", "a\nb\x00\x7f"),),), "CN=a\\0Ab\\00\\7F"),
        (((("commonName", "\u017d\xe9"),),), "CN=\xc5\xbd\xc3\xa9"),
    ],
)
def test_a_name_can_be_read_in_one_way(parts: Any, name: str) -> None:
    """RFC 4514, which escapes what has a meaning; text is as WSGI has it."""
    assert _name_of(parts) == name


# -- the fields that gevent's handler gets --------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fields", "expected"),
    [
        ("GET / HTTP/1.1", ["host: a", "X_Y: z"], ["host: a", "X_Y: z"]),
        ("GET / HTTP/1.1", [], []),
        ("GET http://b/ HTTP/1.1", ["X: y", "host:a", "Hosts: c"], ["Host: b", "X: y", "Hosts: c"]),
        ("GET http://b/ HTTP/1.1", [], ["Host: b"]),
        ("OPTIONS * HTTP/1.1", ["Host: a"], ["Host: a"]),
        ("OPTIONS * HTTP/1.1", [], []),
        (
            "POST / HTTP/1.1",
            ["Content-Length: 5", "Transfer-Encoding: chunked", "X-Content-Length: 5"],
            ["Transfer-Encoding: chunked", "X-Content-Length: 5"],
        ),
        ("POST / HTTP/1.1", ["Content-Length: 5"], ["Content-Length: 5"]),
    ],
)
def test_fields_say_what_the_head_does(line: str, fields: list[str], expected: list[str]) -> None:
    """Of two answers to one question there is the one that counts."""
    data = "".join(f"{each}\r\n" for each in [line, *fields]).encode()
    assert as_fields(parse(data, Limits())).decode().split("\r\n") == [*expected, "", ""]
