"""Many streams of one client process: what came, byte for byte."""

import asyncio
from collections.abc import Sequence
from multiprocessing.connection import Connection

import grpc.aio

TIMEOUT_S = 600.0
GENERATE = "/hekaton.v1.InferenceService/Generate"


def run(connection: Connection, address: str, method: str, requests: Sequence[bytes]) -> None:
    """Opens a stream for each request and says, when the last one has ended, the messages of each."""
    connection.send(asyncio.run(_run(address, method, requests)))


async def _run(address: str, method: str, requests: Sequence[bytes]) -> list[list[bytes]]:
    async with grpc.aio.insecure_channel(address) as channel:
        return await asyncio.gather(*(_read(channel, method, request) for request in requests))


def bytes_stream(channel: grpc.aio.Channel, method: str) -> grpc.aio.UnaryStreamMultiCallable[bytes, bytes]:
    return channel.unary_stream(method, request_serializer=None, response_deserializer=None)


async def _read(channel: grpc.aio.Channel, method: str, request: bytes) -> list[bytes]:
    call = bytes_stream(channel, method)(request, timeout=TIMEOUT_S)
    return [message async for message in call]
