"""How many HTTP requests a second, each on a connection of its own, does a server answer?

    locust -f loadtests/locust/http.py --headless -u 100 -r 50 -t 20s [--host http://ADDRESS]

Or, with ``--keep-alive``, how many on connections that are kept, which have one turn each?
"""

import sys

if __name__ == "http":  # locust's name for this file, which would hide the standard library's
    sys.modules["http"] = sys.modules["http.client"].http

from locust import FastHttpUser, task
from scenario import Scenario

from glb.locust import PatientUser

scenario = Scenario("http")


class Client(PatientUser, FastHttpUser):
    """Makes a request, on a connection that has a turn if it is new."""

    is_new = True

    @task
    def get(self) -> None:
        keeps = self.environment.parsed_options.keep_alive
        headers = {} if keeps else {"Connection": "close"}
        reply = self.client.get("/", headers=headers, context={"glb_turn": self.is_new})
        # A failure closes the connection, and the next request has another.
        self.is_new = not keeps or getattr(reply, "error", None) is not None
