"""How many connections a second, with an echo each, does a server serve?

    locust -f loadtests/locust/tcp.py --headless -u 100 -r 50 -t 20s [--host tcp://ADDRESS]

Any server that answers a line with a line will do.
"""

from scenario import Scenario, Want

from glb.locust import EchoUser

scenario = Scenario(Want("echo"))


class Client(EchoUser):
    """Connects, has a line echoed, and closes."""
