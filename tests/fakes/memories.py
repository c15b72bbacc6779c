"""Real memory services in this process, and clients of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ByteSize

from hekaton.config import MemorySettings
from hekaton.rpc.channel import open_channel
from hekaton.rpc.errors import from_rpc_error
from hekaton.rpc.server import new_id
from hekaton.v1 import common_pb2, memory_pb2_grpc
from hekaton.v1 import memory_pb2 as pb
from hekaton_memory.__main__ import main

ROOM_BYTES = 600_000


class MemoryClient:
    """A running memory service and a client of it."""

    def __init__(self, settings: MemorySettings, channel: grpc.aio.Channel) -> None:
        self.settings = settings
        self.directory = settings.segment_dir
        self.channel = channel
        self.stub = memory_pb2_grpc.MemoryServiceStub(channel)

    async def prepare(self, source: str, dtype: str = "") -> common_pb2.ModelSpec:
        """Raises the service's typed error."""
        try:
            events = [
                event async for event in self.stub.PrepareModel(pb.PrepareModelRequest(source=source, dtype=dtype))
            ]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        assert [event.WhichOneof("event") for event in events] == ["progress"] * (len(events) - 1) + ["spec"]
        return events[-1].spec

    async def acquire(self, digest: str, source: str, holder_id: str = "worker") -> pb.WeightsLease:
        request = pb.AcquireWeightsRequest(holder_id=holder_id, digest=digest, source=source)
        try:
            events = [event async for event in self.stub.AcquireWeights(request)]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return events[-1].lease

    async def release(self, lease: pb.WeightsLease) -> None:
        await self.stub.ReleaseWeights(pb.ReleaseWeightsRequest(lease_id=lease.lease_id))

    async def status(self) -> pb.GetMemoryStatusResponse:
        return await self.stub.GetMemoryStatus(pb.GetMemoryStatusRequest())


@asynccontextmanager
async def running_memory(
    redis_url: str,
    directory: Path,
    host_memory: int = ROOM_BYTES,
    parcel_memory: int = 1 << 30,
    lifetime_s: float = 30.0,
) -> AsyncIterator[MemoryClient]:
    """A memory service in this process that has said it can serve; stopped at the end, when nothing may be left."""
    settings = MemorySettings(
        redis_url=redis_url,
        listen=f"unix:{directory}.sock",
        memory_id=new_id("memory"),
        segment_dir=directory,
        host_memory=ByteSize(host_memory),
        parcel_memory=ByteSize(parcel_memory),
        parcel_lifetime_s=lifetime_s,
        heartbeat_s=0.1,
        drain_timeout_s=0.2,
    )
    stop = asyncio.Event()
    async with open_channel(settings.listen) as channel, asyncio.TaskGroup() as tasks:
        tasks.create_task(main(settings, stop))
        await until_serving(channel)
        yield MemoryClient(settings, channel)
        stop.set()
    check_gone(directory)


def check_gone(directory: Path) -> None:
    assert not directory.exists()


async def until_serving(channel: grpc.aio.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=20)
    async for response in watch:
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return
