"""asyncio, on its own loop and on uvloop.

A `Protocol`, not streams: a task and two buffers a connection less, and as honest.
"""

from __future__ import annotations

import asyncio
from typing import cast

from .job import BACKLOG, REPLY, Job, announce


class Reply(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        stream.write(REPLY)
        stream.close()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Reply, "127.0.0.1", 0, backlog=BACKLOG)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def on_asyncio(_job: Job, _number: int) -> None:
    asyncio.run(_serve())


def on_uvloop(_job: Job, _number: int) -> None:
    import uvloop  # noqa: PLC0415  # only needed here

    uvloop.run(_serve())
