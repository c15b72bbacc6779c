"""A leader compares what tenants use, by their weights, and tells the workers who yields."""

import asyncio

from redis.asyncio import Redis

from fakes.schedulers import running_scheduler
from fakes.waiting import PATIENCE_S, eventually
from fakes.worker import FakeWorker, fake_worker
from hekaton.facts import Tenant
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.tenants import Tenants
from hekaton.v1 import worker_pb2 as pb


async def yielding(worker: FakeWorker, tenants: list[str]) -> None:
    """Returns when the worker has been told of these, and no others."""
    async with asyncio.timeout(PATIENCE_S):
        while (command := await worker.commands.get()).WhichOneof("command") != "yielding" or (
            list(command.yielding.tenants) != tenants
        ):
            pass


async def test_who_had_more_than_his_share_yields_until_his_share_is_larger(
    redis: Redis, redis_server: EmbeddedRedis
) -> None:
    async with fake_worker(redis) as worker:
        used = {"loud": 800.0, "quiet": 150.0}
        worker.report = pb.WorkerReport(status=worker.status, used_seconds=used)
        async with running_scheduler(redis_server.url, redis) as scheduler:
            await yielding(worker, [])
            await yielding(worker, ["loud"])

            async def told() -> bool:
                status = await scheduler.status()
                return (set(status.tenant_seconds), list(status.yielding_tenants)) == (set(used), ["loud"])

            await eventually(told)
            await Tenants(redis).put(Tenant("loud", weight=100.0))
            await yielding(worker, ["quiet"])


async def test_who_has_the_pool_to_himself_yields_to_whoever_comes(redis: Redis, redis_server: EmbeddedRedis) -> None:
    async with fake_worker(redis) as worker:
        worker.report = pb.WorkerReport(status=worker.status, used_seconds={"alone": 800.0})
        async with running_scheduler(redis_server.url, redis):
            await yielding(worker, [])
            await yielding(worker, ["alone"])
