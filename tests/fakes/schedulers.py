"""Real schedulers, in this process or in one of their own."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from fakes.waiting import PATIENCE_S, eventually
from hekaton.config import SchedulerSettings
from hekaton.facts import RequestState
from hekaton.policy.admission import Admission
from hekaton.rpc.channel import open_channel
from hekaton.store.keys import Kind
from hekaton.store.records import RequestSummary
from hekaton.store.requests import Requests
from hekaton.store.workers import Registry
from hekaton.v1 import scheduler_pb2, scheduler_pb2_grpc
from hekaton_scheduler.service import main

LEADER_LEASE_S = 1.5
"""Longer than a busy machine lets this process wait."""


@dataclass(frozen=True)
class RunningScheduler:
    address: str
    stop: asyncio.Event
    pid: int = 0

    async def status(self) -> scheduler_pb2.GetSchedulerStatusResponse:
        async with open_channel(self.address) as channel:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            return await stub.GetSchedulerStatus(scheduler_pb2.GetSchedulerStatusRequest(), timeout=PATIENCE_S)

    async def leads(self) -> bool:
        return (await self.status()).leader

    async def connected(self, *worker_ids: str) -> None:
        """Returns when it commands exactly these workers."""

        async def commands() -> bool:
            return (await self.status()).connected_worker_ids == sorted(worker_ids)

        await eventually(commands)


@asynccontextmanager
async def running_scheduler(
    url: str,
    redis: Redis,
    scheduler_id: str = "s1",
    *,
    max_attempts: int = 3,
    policy: str = "slack",
    admission: Admission = Admission.QUEUE,
    leader_lease_s: float = LEADER_LEASE_S,
    policy_option: Mapping[str, float] | None = None,
) -> AsyncIterator[RunningScheduler]:
    """The scheduler's whole service in this process. Stopped at the end."""
    settings = SchedulerSettings(
        redis_url=url,
        scheduler_id=scheduler_id,
        heartbeat_s=0.1,
        lease_s=0.6,
        leader_lease_s=leader_lease_s,
        max_attempts=max_attempts,
        policy=policy,
        policy_option=dict(policy_option or {}),
        admission=admission,
        drain_timeout_s=0.2,
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(main(settings, stop))
        try:
            yield RunningScheduler(await _address_of(redis, scheduler_id), stop)
        finally:
            stop.set()


@asynccontextmanager
async def scheduler_process(url: str, redis: Redis, scheduler_id: str, *more: str) -> AsyncIterator[RunningScheduler]:
    """`python -m hekaton_scheduler`. Killed at the end if it still runs."""
    flags = [f"--redis-url={url}", f"--scheduler-id={scheduler_id}", f"--leader-lease-s={LEADER_LEASE_S}"]
    command = [sys.executable, "-m", "hekaton_scheduler", *flags, *more, "--heartbeat-s=0.1", "--lease-s=0.6"]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        yield RunningScheduler(await _address_of(redis, scheduler_id), asyncio.Event(), process.pid)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def summary(redis: Redis, request_id: str) -> RequestSummary:
    return (await Requests(redis).peek([request_id]))[request_id]


async def reaches(redis: Redis, request_id: str, state: RequestState, timeout_s: float = PATIENCE_S) -> RequestSummary:
    """The request, once it is in this state."""

    async def there() -> bool:
        return (await summary(redis, request_id)).state is state

    await eventually(there, timeout_s)
    return await summary(redis, request_id)


async def _address_of(redis: Redis, scheduler_id: str) -> str:
    registry = Registry(redis, Kind.SCHEDULER)

    async def listed() -> bool:
        return scheduler_id in await registry.list()

    await eventually(listed)
    return (await registry.list())[scheduler_id].decode()
