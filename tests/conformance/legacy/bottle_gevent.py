"""Bottle on gevent's server, in the main greenlet until that is interrupted."""

import threading
import time
from typing import Any

import bottle
import gevent
from common import (
    HOST,
    given_port,
    open_descriptors,
    report,
    wait_for_line,
    wait_until_listening,
    warm_up,
)

app = bottle.Bottle()


@app.get("/<path:path>")
def page(path: str) -> str:
    return f"/{path}"


class Interrupter(threading.Thread):
    """Does when there is a line what Ctrl-C would: Bottle knows no other end."""

    def __init__(self, main: Any) -> None:
        super().__init__()
        self.main = main
        self.began = 0.0

    def run(self) -> None:
        wait_until_listening(given_port())
        print("port", given_port(), flush=True)
        wait_for_line()
        self.began = time.perf_counter()
        gevent.kill(self.main, KeyboardInterrupt)


if __name__ == "__main__":
    warm_up()
    descriptors = open_descriptors()
    interrupter = Interrupter(gevent.getcurrent())
    interrupter.start()
    bottle.run(app, server="gevent", host=HOST, port=given_port(), quiet=True)
    interrupter.join()
    report(interrupter.began, descriptors)
