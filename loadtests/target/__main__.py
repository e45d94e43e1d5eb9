"""Serve, until standard input ends; do what is asked for there, and answer on standard output.

    python -m loadtests.target --server glb --protocol stream --clones 4

The first line that it writes is its address. Then each line asked, ``{"do": "stats"}`` or
``"roll"``, has an answer, all in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from typing import Any

from gevent.fileobject import FileObjectPosix

from .servers import PROTOCOLS, SERVERS, Plan, Served, serve


def main() -> None:
    # Ctrl-C in a terminal is locust's, which still asks for the counts then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="python -m loadtests.target")
    parser.add_argument("--server", choices=SERVERS, default="glb")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="stream")
    parser.add_argument("--name")
    parser.add_argument("--clones", type=int, default=4)
    parser.add_argument("--hubs", type=int, default=1)
    parser.add_argument("--patience", type=float)
    options = vars(parser.parse_args())
    served = serve(options.pop("server"), Plan(**options))
    tell({"address": served.address})
    # A descriptor of its own: gevent makes it non-blocking, and closes it.
    with FileObjectPosix(os.dup(0), "rb") as orders:
        for order in orders:
            tell(answer(served, json.loads(order)["do"]))
    # Clients that are left are of no interest, and neither are handlers that wait for them.
    os._exit(0)


def answer(served: Served, ask: str) -> Any:
    try:
        return {"stats": served.stats, "roll": served.roll}[ask]()
    except NotImplementedError as error:
        return {"error": str(error)}


def tell(what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
