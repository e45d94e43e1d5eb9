"""A load test of line_protocol.py: are the turns of its clones exact?

    glb serve line_protocol:handle --clones 4
    locust -f locustfile.py --headless -u 20 -r 20 -t 10s --balance-max-spread 1

Each turn is a connection of its own. The exit status is 0 if no clone had more than one turn more
than another. It needs glb[locust].
"""

from locust import task

from glb.locust import TcpUser


class Client(TcpUser):
    host = "tcp://127.0.0.1:8000"

    def clone_of(self, reply: bytes) -> bytes:
        return reply.split(b" ", 1)[0]  # b"3/4 ok\n": clone 3 of 4

    @task
    def set_and_get(self) -> None:
        self.client.connect()
        self.client.request(b"set colour blue\n")
        self.client.request(b"get colour\n")
