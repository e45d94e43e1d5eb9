"""Run a program whose gevent servers tell which clone they serve with: ``tell_clone.py PROGRAM``.

A stream server sends its clone's index and a space before all else, a WSGI server has a header
"Clone". The program itself knows nothing of that, nor of clones.
"""

from __future__ import annotations

import pathlib
import runpy
import sys
from typing import Any

import gevent.pywsgi
import gevent.server

import glb


class StreamServer(gevent.server.StreamServer):
    def set_handle(self, handle: Any) -> None:
        def tell(sock: Any, peer: Any) -> None:
            clone = glb.current_clone()
            assert clone is not None
            sock.sendall(b"%d " % clone)
            handle(sock, peer)

        super().set_handle(tell)


class WSGIServer(gevent.pywsgi.WSGIServer):
    def __init__(self, listener: Any, application: Any, **options: Any) -> None:
        def tell(environ: Any, start_response: Any) -> Any:
            def start(status: str, headers: Any, *exc_info: Any) -> Any:
                clone = ("Clone", str(int(environ["glb.clone"])))
                return start_response(status, [*headers, clone], *exc_info)

            return application(environ, start)

        super().__init__(listener, tell, **options)


if __name__ == "__main__":
    gevent.server.StreamServer = StreamServer  # type: ignore[misc]  # that is the purpose
    gevent.pywsgi.WSGIServer = WSGIServer  # type: ignore[assignment,misc]  # as well
    del sys.argv[0]
    sys.path[0] = str(pathlib.Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
