"""`FastWorker`: gunicorn's settings over glb's HTTP, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gevent.event import Event

pytest.importorskip("gunicorn")

import gunicorn.config

from glb.gunicorn import FastWorker
from glb.gunicorn.fast import limits_of, writes_access_log
from glb.gunicorn.refusals import HONOURED, REFUSED, refused
from glb.http.handler import WSGIHandler

from ..support.helpers import ask, connect
from .workers import GET, OK, Log, config, reply_of, serving, tell_clone

Start = Callable[..., Any]
Environ = dict[str, Any]

#: What isn't the default, for each setting that is refused.
OTHER: dict[str, Any] = {
    "pre_request": lambda _worker, _request: None,
    "post_request": lambda _worker, _request, _environ, _reply: None,
    "protocol": "uwsgi",
    "http_protocols": "h2,h1",
    "http2_cleartext": "upgrade",
    "header_map": "dangerous",
    "forwarder_headers": "SCRIPT_NAME",
    "http_parser": "python",
    "suppress_ragged_eofs": False,
}

KNOWN = [name for name in REFUSED if name in config().settings]


def get(*fields: str) -> bytes:
    lines = ["GET /a/b?c HTTP/1.1", "Host: x", "Connection: close", *fields, "", ""]
    return "\r\n".join(lines).encode()


def show(*keys: str) -> Callable[..., list[bytes]]:
    """Return an application that replies with these of its environ."""

    def application(environ: Environ, start_response: Start) -> list[bytes]:
        body = " ".join(str(environ.get(key)) for key in keys).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    return application


def shown(reply: bytes) -> str:
    assert reply.startswith(OK), reply
    return reply.partition(b"\r\n\r\n")[2].decode()


# -- what is refused --------------------------------------------------------------------------


def test_the_defaults_are_not_refused() -> None:
    """Of whichever version of gunicorn."""
    assert refused(config()) == []
    FastWorker.check_config(config(), None)


@pytest.mark.parametrize("name", KNOWN)
def test_a_setting_that_it_cant_honour_is_refused_by_name(name: str) -> None:
    """With its value, and the reason."""
    settings = config(**{name: OTHER.get(name, True)})
    (line,) = refused(settings)
    assert line.startswith(f"{name} = ")
    assert line.endswith(f"({REFUSED[name]})")
    with pytest.raises(RuntimeError, match=f"^FastWorker can't do {name} = .*glb.gunicorn.Worker"):
        FastWorker.check_config(settings, None)


def test_a_setting_that_glb_doesnt_know_is_refused() -> None:
    """It came with a version of gunicorn that is newer."""
    settings = config()

    class New(gunicorn.config.Setting):  # type: ignore[misc]  # gunicorn has no types
        name = "new"
        validator = staticmethod(gunicorn.config.validate_bool)
        default = False
        desc = "New."

    gunicorn.config.KNOWN_SETTINGS.remove(New)
    settings.settings["new"] = New()
    assert refused(settings) == []
    settings.set("new", True)
    assert refused(settings) == ["new = True (this version of glb doesn't know it)"]


def test_no_setting_is_both_honoured_and_refused() -> None:
    """Nor in neither of the lists by mistake."""
    assert HONOURED.isdisjoint(REFUSED)
    assert {"bind", "keepalive", "max_requests"} <= HONOURED


# -- what is honoured -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ({}, (4094, 8190, 100)),
        ({"limit_request_line": 0}, (1 << 20, 8190, 100)),
        ({"limit_request_line": 8190}, (8190, 8190, 100)),
        ({"limit_request_fields": 7, "limit_request_field_size": 50}, (4094, 50, 7)),
        ({"limit_request_fields": 0, "limit_request_field_size": 0}, (4094, 8190, 32768)),
    ],
)
def test_gunicorns_limits_are_glbs(settings: dict[str, int], limits: tuple[int, int, int]) -> None:
    """0 is what it is with gunicorn."""
    found = limits_of(config(**settings))
    assert (found.line, found.field, found.fields) == limits
    assert found.head >= found.field * found.fields


def test_a_limit_holds() -> None:
    """By the reply to a head that is longer."""
    with serving(FastWorker, tell_clone, limit_request_fields=2) as (_, server):
        assert ask(server.address, get()).startswith(OK)
        assert ask(server.address, get("A: 1")).startswith(b"HTTP/1.1 431 ")


def test_there_is_no_limit_for_bodies() -> None:
    """As gunicorn has none; glb's own server has."""
    with serving(FastWorker, tell_clone) as (_, server):
        assert getattr(server, "max_body", 0) is None


def test_requests_are_counted_and_the_worker_ends_after_the_last() -> None:
    """With the jitter that gunicorn has drawn. The last reply says that it is the last."""
    with serving(FastWorker, tell_clone, max_requests=2) as (worker, server):
        client = connect(server.address)
        client.sendall(GET)
        assert b"Connection: close" not in reply_of(client)
        assert worker.alive
        client.sendall(GET)
        assert b"Connection: close" in reply_of(client)
        assert not worker.alive
        assert worker.nr == 2
        assert worker.log.lines == ["Autorestarting worker after current request."]
        client.close()


def test_an_upgrade_stays_one_when_the_worker_ends() -> None:
    """Its Connection field is the application's."""

    def application(_environ: Environ, start_response: Start) -> list[bytes]:
        start_response("101 Switching Protocols", [("Connection", "upgrade"), ("Upgrade", "x")])
        return []

    with serving(FastWorker, application, keepalive=0) as (_, server):
        reply = ask(
            server.address,
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        )
        assert reply.lower().count(b"connection:") == 1
        assert b"connection: upgrade" in reply.lower()


@pytest.mark.parametrize(
    ("trusted", "fields", "scheme"),
    [
        ("127.0.0.1", ["X-Forwarded-Proto: https"], "https"),
        ("127.0.0.1", ["X-Forwarded-Ssl: on", "X-Forwarded-Proto: https"], "https"),
        ("127.0.0.1", ["X-Forwarded-Proto: http"], "http"),
        ("127.0.0.1", [], "http"),
        ("10.0.0.0", ["X-Forwarded-Proto: https"], "http"),
        ("*", ["X-Forwarded-Protocol: ssl"], "https"),
    ],
)
def test_a_trusted_proxy_says_the_scheme(trusted: str, fields: list[str], scheme: str) -> None:
    """By secure_scheme_headers; the fields stay in the environ, as with gunicorn."""
    with serving(FastWorker, show("wsgi.url_scheme"), forwarded_allow_ips=trusted) as (_, server):
        assert shown(ask(server.address, get(*fields))) == scheme


def test_contradictory_schemes_are_refused() -> None:
    """As gunicorn refuses them."""
    with serving(FastWorker, tell_clone) as (_, server):
        reply = ask(server.address, get("X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"))
        assert reply.startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_script_name_of_the_environment_is_split_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that doesn't begin with it is an error, as with gunicorn."""
    monkeypatch.setenv("SCRIPT_NAME", "/a")
    with serving(FastWorker, show("SCRIPT_NAME", "PATH_INFO")) as (worker, server):
        assert shown(ask(server.address, get())) == "/a /b"
        other = get().replace(b"/a/b", b"/c")
        assert ask(server.address, other).startswith(b"HTTP/1.1 500 ")
        assert worker.log.lines == ["Error handling request GET /c?c HTTP/1.1"]


def test_the_environ_says_what_gunicorn_says() -> None:
    """Programs look at SERVER_SOFTWARE; there may be several processes, and several greenlets."""
    keys = "wsgi.multithread", "wsgi.multiprocess", "RAW_URI"
    with serving(FastWorker, show(*keys), workers=2) as (_, server):
        assert shown(ask(server.address, get())) == "True True /a/b?c"
        assert server.max_accept == 1
    with serving(FastWorker, show("SERVER_SOFTWARE")) as (_, server):
        software = shown(ask(server.address, get()))
        assert software.startswith("gevent/")
        assert "gunicorn/" in software


@pytest.mark.parametrize("sendfile", [None, False])
def test_sendfile_chooses_the_wrapper(sendfile: bool | None) -> None:
    """Without it, gunicorn's reads the file."""
    wrappers = []

    def application(environ: Environ, start_response: Start) -> Any:
        wrapper = environ["wsgi.file_wrapper"]
        wrappers.append(wrapper.__module__)
        start_response("200 OK", [])
        return wrapper(open(__file__, "rb"))  # the server closes it

    with serving(FastWorker, application, sendfile=sendfile) as (_, server):
        reply = ask(server.address, get())
        assert reply.startswith(OK)
        assert b"test_sendfile_chooses_the_wrapper" in reply
    assert wrappers == ["glb.http.stream" if sendfile is None else "gunicorn.http.wsgi"]


def test_the_proxy_protocol_says_the_client() -> None:
    """From the peers that proxy_allow_ips names."""
    version = "v1" if hasattr(gunicorn.config, "validate_proxy_protocol") else True
    with serving(FastWorker, show("REMOTE_ADDR"), proxy_protocol=version) as (_, server):
        header = b"PROXY TCP4 192.0.2.1 127.0.0.1 5000 80\r\n"
        assert shown(ask(server.address, header + get())) == "192.0.2.1"


# -- logs -------------------------------------------------------------------------------------


def test_a_request_is_logged_as_gunicorn_logs_it() -> None:
    """The log's atoms are made of these four."""
    with serving(FastWorker, show("PATH_INFO")) as (worker, server):
        ask(server.address, get("User-Agent: me", "X-Own: 1"))
        ((reply, request, environ, took),) = worker.log.accesses
        assert reply.status == "200 OK"
        assert reply.sent == len("/a/b")
        assert ("Content-Length", "4") in reply.headers
        assert {("HOST", "x"), ("USER-AGENT", "me"), ("X-OWN", "1")} <= set(request.headers)
        assert environ["RAW_URI"] == "/a/b?c"
        assert took.total_seconds() >= 0


@pytest.mark.parametrize(
    ("settings", "is_written"),
    [
        ({}, False),
        ({"accesslog": "-"}, True),
        ({"logconfig_dict": {"version": 1}}, True),
        ({"syslog": True}, True),
        ({"syslog": True, "disable_redirect_access_to_syslog": True}, False),
    ],
)
def test_an_access_log_costs_nothing_where_there_is_none(
    settings: dict[str, Any], is_written: bool
) -> None:
    """Gunicorn's logger drops each line then. Another logger may have a use for it."""
    from gunicorn.glogging import Logger

    quiet = Logger.__new__(Logger)
    assert writes_access_log(config(**settings), quiet) is is_written
    assert writes_access_log(config(**settings), Log())


def test_a_subclass_may_have_its_own_handlers() -> None:
    """As gevent-websocket's worker has."""

    class Mine(WSGIHandler):
        def get_environ(self) -> Environ:
            return {**super().get_environ(), "mine": "yes"}

    class MyWorker(FastWorker):
        wsgi_handler = Mine

    with serving(MyWorker, show("mine")) as (_, server):
        assert shown(ask(server.address, get())) == "yes"


def test_a_late_request_gets_a_503() -> None:
    """By the server's own request_timeout."""

    def application(_environ: Environ, _start_response: Start) -> list[bytes]:
        Event().wait()
        return []

    with serving(FastWorker, application, request_timeout=0.05) as (_, server):
        assert ask(server.address, get()).startswith(b"HTTP/1.1 503 ")


def test_a_refused_request_is_in_the_log() -> None:
    """Not as an access, of which nothing is known, but as gunicorn warns of it."""
    with serving(FastWorker, tell_clone) as (worker, server):
        assert ask(server.address, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert worker.log.accesses == []
        assert any("nonsense" in line for line in worker.log.lines)
