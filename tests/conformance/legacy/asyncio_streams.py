"""`asyncio.start_server` four times in one event loop."""

import asyncio
import socket
import threading

from common import COPIES, HOST, Copy, main


class Servers:
    def __init__(self, port: int) -> None:
        self.ready = threading.Event()
        self.listeners = [socket.create_server((HOST, port), reuse_port=True)]
        self.port = self.listeners[0].getsockname()[1]
        for _ in range(COPIES - 1):
            self.listeners.append(socket.create_server((HOST, self.port), reuse_port=True))

    def run(self) -> None:
        asyncio.run(self.serve())

    async def serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.slow_callback_duration = 60  # a warning of `python -X dev`
        self.stopped = asyncio.Event()
        servers = [
            await asyncio.start_server(Server(copy).reply, sock=listener)
            for copy, listener in enumerate(self.listeners)
        ]
        self.ready.set()
        await self.stopped.wait()
        for each in servers:
            each.close()
            await each.wait_closed()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.stopped.set)


class Server:
    def __init__(self, copy: int) -> None:
        self.copy = copy

    async def reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if line := await reader.readline():
            writer.write(b"%d %s" % (self.copy, line))
            await writer.drain()
        writer.close()
        await writer.wait_closed()


def open_copy(_index: int, port: int) -> Copy:
    servers = Servers(port)
    return Copy(servers.port, servers.run, servers.stop, servers.ready.wait)


if __name__ == "__main__":
    main(open_copy, copies=1)
