"""Parcels of any bytes, and memory services that send them badly."""

import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc.aio

from hekaton.engine.kv import BLOCK_TOKENS, BlockShape
from hekaton.engine.parcel import Manifest, ParcelWriter, keys_of
from hekaton.v1 import memory_pb2 as pb
from hekaton.v1 import memory_pb2_grpc

SHAPE = BlockShape(layers=4, kv_heads=8, head_size=128, dtype="float32", itemsize=4)
"""A block of it is half a MiB."""
Reply = Callable[[bytes, grpc.aio.Server], AsyncIterator[pb.FetchKvResponse]]
"""What a server makes of a parcel that it is asked for."""


def writer(directory: Path, request_id: str, epoch: int, blocks: int) -> ParcelWriter:
    ids = range(blocks * BLOCK_TOKENS)
    return ParcelWriter(directory, Manifest(request_id, epoch, "digest", SHAPE, len(ids), keys_of(ids)))


def write_parcel(directory: Path, request_id: str, epoch: int = 1, blocks: int = 3) -> Path:
    """A whole one, as an engine leaves it."""
    with closing(writer(directory, request_id, epoch, blocks)) as parcel:
        for index in range(blocks):
            parcel.write(index, memoryview(bytes([index + 1]) * SHAPE.nbytes))
        parcel.commit([0] * blocks)
        return parcel.path


class NoParcels(memory_pb2_grpc.MemoryServiceServicer):
    """Of a memory service of which no test asks for parcels."""

    async def OfferKv(self, request: pb.OfferKvRequest, context: object) -> pb.OfferKvResponse:
        raise AssertionError("no test asks for this")

    async def ClaimKv(self, request: pb.ClaimKvRequest, context: object) -> pb.ClaimKvResponse:
        raise AssertionError("no test asks for this")

    async def FetchKv(self, request: pb.FetchKvRequest, context: object) -> AsyncIterator[pb.FetchKvResponse]:
        raise AssertionError("no test asks for this")
        yield pb.FetchKvResponse()


def piece(data: bytes, total_bytes: int, damage: int = 0) -> pb.FetchKvResponse:
    return pb.FetchKvResponse(data=data, crc32=zlib.crc32(data) ^ damage, total_bytes=total_bytes)


@asynccontextmanager
async def bad_peer(parcel: bytes, reply: Reply) -> AsyncIterator[str]:
    """The address of a real server whose FetchKv answers with `reply`."""
    server = grpc.aio.server()

    async def fetch(request: pb.FetchKvRequest, context: object) -> AsyncIterator[pb.FetchKvResponse]:
        async for response in reply(parcel, server):
            yield response

    handler = grpc.unary_stream_rpc_method_handler(
        fetch, pb.FetchKvRequest.FromString, pb.FetchKvResponse.SerializeToString
    )
    generic = grpc.method_handlers_generic_handler("hekaton.v1.MemoryService", {"FetchKv": handler})
    server.add_generic_rpc_handlers((generic,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
