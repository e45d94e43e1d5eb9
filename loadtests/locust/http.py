"""How many HTTP requests a second, each on a connection of its own, does a server answer?

    locust -f loadtests/locust/http.py --headless -u 100 -r 50 -t 20s [--host http://ADDRESS]

Requests on connections that are kept are keepalive.py's.
"""

import pathlib
import sys

if __name__ == "http":  # locust's name for this file, which would hide the standard library's
    sys.modules["http"] = sys.modules["http.client"].http

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # wherever locust is run

from locust import FastHttpUser, task

from glb.locust import PatientUser
from loadtests.target.scenario import Scenario, Want

scenario = Scenario(Want("http"))


class Client(PatientUser, FastHttpUser):
    @task
    def get(self) -> None:
        self.client.get("/", headers={"Connection": "close"})
