"""A real in-process MemoryService that prepares nothing: it answers as the test says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from fakes.parcels import NoParcels
from hekaton.config import SchedulerSettings
from hekaton.errors import HekatonError
from hekaton.facts import ModelSpec
from hekaton.rpc import convert
from hekaton.rpc.interceptors import Context
from hekaton.rpc.server import Servicer, serving
from hekaton.store.keys import Kind
from hekaton.store.workers import Registry
from hekaton.v1 import memory_pb2 as pb
from hekaton.v1 import memory_pb2_grpc
from hekaton_router.tokenization import byte_codec

SPEC = ModelSpec("digest", "llama", "float32", 1000, 10, 100, 256)


class FakeMemory(NoParcels):
    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        """Preparations wait for it."""
        self.error: HekatonError | None = None
        self.asked: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.tokenizers = 0

    async def PrepareModel(
        self, request: pb.PrepareModelRequest, context: Context
    ) -> AsyncIterator[pb.PrepareModelResponse]:
        self.asked.put_nowait((request.source, request.dtype))
        yield pb.PrepareModelResponse(progress=pb.Progress(done_bytes=1, total_bytes=2))
        await self.go_on.wait()
        if self.error:
            raise self.error
        yield pb.PrepareModelResponse(spec=convert.spec_to_pb(SPEC))

    async def GetTokenizer(self, request: pb.GetTokenizerRequest, context: Context) -> pb.GetTokenizerResponse:
        self.tokenizers += 1
        assert request.digest == SPEC.digest
        return pb.GetTokenizerResponse(
            tokenizer_json=byte_codec().tokenizer.to_str().encode(),
            chat_template="{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}",
            special_tokens={"bos_token": "^"},
        )

    async def AcquireWeights(
        self, request: pb.AcquireWeightsRequest, context: Context
    ) -> AsyncIterator[pb.AcquireWeightsResponse]:
        raise AssertionError("no test asks for this")
        yield

    async def RenewLeases(self, request: pb.RenewLeasesRequest, context: Context) -> pb.RenewLeasesResponse:
        raise AssertionError("no test asks for this")

    async def ReleaseWeights(self, request: pb.ReleaseWeightsRequest, context: Context) -> pb.ReleaseWeightsResponse:
        raise AssertionError("no test asks for this")

    async def GetMemoryStatus(self, request: pb.GetMemoryStatusRequest, context: Context) -> pb.GetMemoryStatusResponse:
        raise AssertionError("no test asks for this")


@asynccontextmanager
async def fake_memory(redis: Redis) -> AsyncIterator[FakeMemory]:
    """Serves and is registered until the end of the block."""
    memory = FakeMemory()
    add = Servicer(
        "hekaton.v1.MemoryService",
        lambda server: memory_pb2_grpc.add_MemoryServiceServicer_to_server(memory, server),
    )
    settings = SchedulerSettings(redis_url="redis://unused", drain_timeout_s=0)
    async with serving(settings, [add]) as server:
        registry = Registry(redis, Kind.MEMORY)
        await registry.heartbeat("memory-1", server.address.encode(), 60, 1)
        yield memory
        await registry.remove("memory-1", 1)
