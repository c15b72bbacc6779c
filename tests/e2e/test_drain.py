"""Every service ends on SIGTERM although its Redis and all that it talks to vanish at the same moment."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis

from fakes.redis import running_redis
from fakes.waiting import eventually
from fakes.worker import FakeWorker, fake_worker
from hekaton.rpc.channel import open_channel
from hekaton.store.keys import Kind
from hekaton.store.workers import Registry
from hekaton.v1 import pool_pb2, pool_pb2_grpc, worker_pb2_grpc
from hekaton.v1 import worker_pb2 as pb

DRAIN_S = 1.0
CLEANUP_S = 3.0
"""A loaded machine included."""
FLAGS = {"worker": ("--device", "emulated:h800", "--device-memory", "80GiB")}


@asynccontextmanager
async def process(service: str, url: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    flags = [f"--{service}-id", "one", "--redis-url", url, "--drain-timeout-s", str(DRAIN_S), "--heartbeat-s", "0.05"]
    if service == "memory":
        flags += ["--segment-dir", str(folder / "segments")]
    command = [sys.executable, "-m", f"hekaton_{service}", *flags, *FLAGS.get(service, ())]
    child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def address(redis: Redis, service: str) -> str:
    """Where the service announces itself."""
    registry = Registry(redis, Kind(service))

    async def listed() -> bool:
        return "one" in await registry.list()

    await eventually(listed, timeout_s=30)
    info = (await registry.list())["one"]
    return pool_pb2.WorkerStatus.FromString(info).address if service == "worker" else info.decode()


async def talk(service: str, channel: grpc.aio.Channel, worker: FakeWorker) -> object:
    """A stream that stays open as long as it is held; for a router, also waits for those that it opens itself."""
    if service == "worker":
        tokens = worker_pb2_grpc.WorkerServiceStub(channel).StreamTokens()
        await tokens.write(pb.StreamTokensRequest(hello=pb.StreamTokensHello(router_id="router-1")))
        return tokens
    if service != "router":
        return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    watch = pool_pb2_grpc.PoolServiceStub(channel).WatchPool(pool_pb2.WatchPoolRequest())

    async def linked() -> bool:
        return worker.connections["one"] > 0 and worker.watchers > 0

    await watch.read()
    await eventually(linked)
    return watch


@pytest.mark.parametrize("service", ["router", "scheduler", "worker", "memory"])
async def test_sigterm_ends_a_service_whose_peers_vanish(service: str, tmp_path: Path) -> None:
    async with running_redis() as (server, redis), AsyncExitStack() as peers:
        worker = await peers.enter_async_context(fake_worker(redis))
        async with process(service, server.url, tmp_path) as child:
            channel = await peers.enter_async_context(open_channel(await address(redis, service)))
            held = await talk(service, channel, worker)
            server.kill()
            child.terminate()
            await peers.aclose()
            del held
            async with asyncio.timeout(DRAIN_S + CLEANUP_S):
                assert await child.wait() == 0
