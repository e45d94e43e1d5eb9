"""How many HTTP requests a second, each on a connection of its own, does a server answer?

    locust -f loadtests/locust/http.py --headless -u 100 -r 50 -t 20s [--host http://ADDRESS]

Requests on connections that are kept are keepalive.py's.
"""

import sys

if __name__ == "http":  # locust's name for this file, which would hide the standard library's
    sys.modules["http"] = sys.modules["http.client"].http

from locust import FastHttpUser, task
from scenario import Scenario, Want

from glb.locust import PatientUser

scenario = Scenario(Want("http"))


class Client(PatientUser, FastHttpUser):
    @task
    def get(self) -> None:
        self.client.get("/", headers={"Connection": "close"})
