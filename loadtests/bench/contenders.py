"""The contenders."""

from __future__ import annotations

from typing import Final

from loadtests.frame.process import Contender

#: What all the others are compared with.
BASE: Final = "gevent"
BASE_HTTP: Final = "wsgi-gevent"
RUST_HTTP: Final = "wsgi-granian"
GUNICORN: Final = "wsgi-gunicorn"
GUNICORN_WORKER: Final = "wsgi-gunicorn-worker"
GUNICORN_FAST: Final = "wsgi-gunicorn-fast"
FLOOR: Final = "c"

CONTENDERS: Final = (
    Contender(FLOOR, "bare C loop", None),
    Contender(BASE, "gevent StreamServer", "plain:one", is_idle_measured=True),
    Contender("racing", "gevent, 4 racing on one socket", "plain:racing", 4, 4),
    Contender("reuseport", "gevent, 4 on SO_REUSEPORT", "plain:reuse_port", 4, 4),
    Contender("threads", "gevent, 4 hubs in 4 threads", "plain:threads", 4, 4),
    Contender("asyncio", "asyncio Protocol", "coroutines:on_asyncio"),
    Contender("uvloop", "uvloop Protocol", "coroutines:on_uvloop", needs="uvloop"),
    Contender("glb-1", "glb, 1 clone", "balanced:clones", 1),
    Contender("glb-4", "glb, 4 clones", "balanced:clones", 4, 4, is_idle_measured=True),
    Contender("glb-256", "glb, 256 clones", "balanced:clones", 256, 256),
    Contender("glb-1024", "glb, 1,024 clones", "balanced:clones", 1024, 1024),
    Contender(
        BASE_HTTP, "gevent WSGIServer", "wsgi:on_gevent", is_http=True, is_kept=True,
        is_idle_measured=True,
    ),
    Contender(
        GUNICORN, "gunicorn, a gevent worker", "wsgi:on_gunicorn", is_http=True,
        is_kept=True, needs="gunicorn",
    ),
    Contender(
        GUNICORN_WORKER, "gunicorn, a glb Worker", "wsgi:on_gunicorn_worker", is_http=True,
        is_kept=True, needs="gunicorn",
    ),
    Contender(
        GUNICORN_FAST, "gunicorn, a glb FastWorker", "wsgi:on_gunicorn_fast", is_http=True,
        is_kept=True, needs="gunicorn",
    ),
    Contender(
        RUST_HTTP, "granian, a worker, a thread", "wsgi:on_granian", is_http=True, is_kept=True,
        is_idle_measured=True, needs="granian",
    ),
    # Under gevent, its --http11-socket answers the first request of a connection and no other.
    Contender(
        "wsgi-uwsgi", "uWSGI with gevent", "wsgi:on_uwsgi", is_http=True, needs="pyuwsgi",
    ),
    Contender(
        "wsgi-glb", "glb WSGIServer, 4 clones", "wsgi:on_glb", 4, is_http=True, is_kept=True,
        is_idle_measured=True,
    ),
)  # fmt: skip
