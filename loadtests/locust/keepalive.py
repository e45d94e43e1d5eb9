"""How many requests a second does a server answer on connections that are kept?

    locust -f loadtests/locust/keepalive.py --headless -u 100 -r 50 -t 20s [TcpClient | HttpClient]

Half of the clients speak TCP and half HTTP, each with a server of its own, or as ``--host`` says
(``tcp://`` or ``http://``). A connection has one turn, however many requests it makes.
"""

from locust import FastHttpUser, task
from scenario import Scenario, Want

from glb.locust import EchoUser, PatientUser

scenario = Scenario(
    Want("echo", name="tcp"), Want("http", name="http"), gates={"max_fail_ratio": 0}
)


class TcpClient(EchoUser):
    """Connects once, and has line after line echoed."""

    target = "tcp"
    keep_alive = True


class HttpClient(PatientUser, FastHttpUser):
    """Connects once, and makes request after request."""

    target = "http"
    is_first = True

    @task
    def get(self) -> None:
        context = {"glb_turn": self.is_first}
        # A failure closes the connection, and the next request has another.
        reply = self.client.get("/", context=context)
        self.is_first = getattr(reply, "error", None) is not None
