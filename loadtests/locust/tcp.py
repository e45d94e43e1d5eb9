"""How many connections a second, with an echo each, does a server serve?

    locust -f loadtests/locust/tcp.py --headless -u 100 -r 50 -t 20s [--host tcp://ADDRESS]

Or, with ``--keep-alive``, how many echoes a second on connections that are kept, which have one
turn each? Any server that answers a line with a line will do.
"""

from typing import Any

from scenario import Scenario

from glb.locust import EchoUser

scenario = Scenario("echo")


class Client(EchoUser):
    """Connects, has a line echoed, and closes, or has line after line echoed."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.keep_alive = environment.parsed_options.keep_alive
