"""Bare grpc.aio relays: bytes in, bytes out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from multiprocessing.connection import Connection

import grpc
import grpc.aio

from bench.control.clients import bytes_stream
from bench.control.processes import until_closed
from hekaton.rpc.interceptors import Context

METHOD = "/bench.Relay/Stream"


def run(connection: Connection, upstream: str, clients: int, fan_out: bool) -> None:
    """Says its address, then relays until the connection closes.

    `fan_out`: what one stream upstream brings goes to every client, once there are all of them, as a router gets and
    sends it. Else each client has an upstream of its own.
    """
    asyncio.run(_run(connection, upstream, clients if fan_out else 0))


async def _run(connection: Connection, upstream: str, fan_out: int) -> None:
    async with grpc.aio.insecure_channel(upstream) as channel, asyncio.TaskGroup() as group:
        source = Source()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handler(source.stream if fan_out else partial(_pass_on, channel)),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        connection.send(f"127.0.0.1:{port}")
        reader = group.create_task(_spread(channel, source, fan_out)) if fan_out else None
        await until_closed(connection)
        if reader:
            reader.cancel()
        await server.stop(0)


async def _pass_on(channel: grpc.aio.Channel, request: bytes, context: Context) -> AsyncIterator[bytes]:
    async for message in bytes_stream(channel, METHOD)(request):
        yield message


async def _spread(channel: grpc.aio.Channel, source: "Source", clients: int) -> None:
    await source.until(clients)
    async for message in bytes_stream(channel, METHOD)(b"?"):
        source.send(message)
    source.send(None)


def handler(stream: Callable[[bytes, Context], AsyncIterator[bytes]]) -> grpc.GenericRpcHandler:
    service, name = METHOD.strip("/").split("/")
    return grpc.method_handlers_generic_handler(service, {name: grpc.unary_stream_rpc_method_handler(stream)})


class Source:
    """The same messages to every stream."""

    def __init__(self) -> None:
        self._streams: list[asyncio.Queue[bytes | None]] = []
        self._opened = asyncio.Condition()

    @property
    def streams(self) -> int:
        return len(self._streams)

    async def until(self, streams: int) -> None:
        """Returns when there are so many."""
        async with self._opened:
            await self._opened.wait_for(lambda: len(self._streams) >= streams)

    def send(self, message: bytes | None) -> None:
        """None ends the streams."""
        for stream in self._streams:
            stream.put_nowait(message)
        if message is None:
            self._streams = []

    async def stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        async with self._opened:
            self._streams.append(queue)
            self._opened.notify_all()
        while message := await queue.get():
            yield message
