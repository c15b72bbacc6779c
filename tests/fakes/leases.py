"""A real in-process MemoryService that leases what the test says."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fakes.parcels import NoParcels
from hekaton.config import MemorySettings
from hekaton.errors import HekatonError
from hekaton.rpc.channel import open_channel
from hekaton.rpc.convert import duration
from hekaton.rpc.server import Servicer, serving
from hekaton.v1 import memory_pb2 as pb
from hekaton.v1 import memory_pb2_grpc


class LeasingMemory(NoParcels):
    """Each lease is refused by the next of `refusals`, if there is one."""

    def __init__(self) -> None:
        self.refusals: deque[HekatonError] = deque()
        self.renewed: asyncio.Queue[list[str]] = asyncio.Queue()
        self.released: asyncio.Queue[str] = asyncio.Queue()
        self.acquired: list[pb.AcquireWeightsRequest] = []

    async def AcquireWeights(
        self, request: pb.AcquireWeightsRequest, context: object
    ) -> AsyncIterator[pb.AcquireWeightsResponse]:
        self.acquired.append(request)
        if self.refusals:
            raise self.refusals.popleft()
        yield pb.AcquireWeightsResponse(progress=pb.Progress(done_bytes=1, total_bytes=2))
        lease = pb.WeightsLease(lease_id=f"lease-{len(self.acquired)}", duration=duration(0.3), segment_path="/image")
        yield pb.AcquireWeightsResponse(lease=lease)

    async def RenewLeases(self, request: pb.RenewLeasesRequest, context: object) -> pb.RenewLeasesResponse:
        self.renewed.put_nowait(list(request.lease_ids))
        return pb.RenewLeasesResponse()

    async def ReleaseWeights(self, request: pb.ReleaseWeightsRequest, context: object) -> pb.ReleaseWeightsResponse:
        self.released.put_nowait(request.lease_id)
        return pb.ReleaseWeightsResponse()

    async def PrepareModel(
        self, request: pb.PrepareModelRequest, context: object
    ) -> AsyncIterator[pb.PrepareModelResponse]:
        raise AssertionError("no test asks for this")
        yield pb.PrepareModelResponse()

    async def GetTokenizer(self, request: pb.GetTokenizerRequest, context: object) -> pb.GetTokenizerResponse:
        raise AssertionError("no test asks for this")

    async def GetMemoryStatus(self, request: pb.GetMemoryStatusRequest, context: object) -> pb.GetMemoryStatusResponse:
        raise AssertionError("no test asks for this")


@asynccontextmanager
async def leasing_memory() -> AsyncIterator[tuple[LeasingMemory, memory_pb2_grpc.MemoryServiceStub]]:
    """The service and a stub that reaches it."""
    memory = LeasingMemory()
    add = Servicer(
        "hekaton.v1.MemoryService",
        lambda server: memory_pb2_grpc.add_MemoryServiceServicer_to_server(memory, server),
    )
    settings = MemorySettings(redis_url="redis://unused", drain_timeout_s=0.2)
    async with serving(settings, [add]) as server, open_channel(server.address) as channel:
        yield memory, memory_pb2_grpc.MemoryServiceStub(channel)
