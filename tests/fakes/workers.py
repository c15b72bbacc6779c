"""Real workers with emulated devices, in this process or in one of their own."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from fakes.waiting import PATIENCE_S, eventually
from hekaton.config import WorkerSettings
from hekaton.engine.emulated import emulated_token
from hekaton.engine.profiles import emulated_spec
from hekaton.facts import CatalogEntry, ModelState, RequestRecord, Sampling, Slo
from hekaton.policy.types import Role
from hekaton.store.catalog import Catalog
from hekaton.store.keys import Kind
from hekaton.store.queue import Entry, Queue
from hekaton.store.requests import Requests
from hekaton.store.workers import Registry
from hekaton.v1 import pool_pb2
from hekaton_worker.worker import main

CLASS = "qwen2.5-7b"
SPEC = emulated_spec(CLASS)
SLO = Slo(ttft_s=10.0, tbt_s=0.1)
PROMPT = (1, 2, 3)
MEMORY_BYTES = 40_000_000_000
LEASE_S = 3.0
"""Longer than a busy machine lets a living process wait."""


@dataclass(frozen=True)
class RunningWorker:
    worker_id: str
    address: str
    stop: asyncio.Event


def worker_settings(
    url: str, worker_id: str, policy: str = "slack", role: Role = Role.ANY, metrics: str = "", **changes: float
) -> WorkerSettings:
    return WorkerSettings(
        redis_url=url,
        worker_id=worker_id,
        device="emulated:h800",
        device_memory=MEMORY_BYTES,
        heartbeat_s=changes.get("heartbeat_s", 0.1),
        lease_s=changes.get("lease_s", LEASE_S),
        time_scale=changes.get("time_scale", 0.1),
        drain_timeout_s=changes.get("drain_timeout_s", 0.3),
        policy=policy,
        policy_option={"min_turn_s": 0.05} if policy == "slack" else {},
        role=role,
        hung_step_s=changes.get("hung_step_s", 60.0),
        metrics_listen=metrics,
    )


@asynccontextmanager
async def running_worker(
    url: str,
    redis: Redis,
    worker_id: str,
    policy: str = "slack",
    role: Role = Role.ANY,
    metrics: str = "",
    **changes: float,
) -> AsyncIterator[RunningWorker]:
    """The worker's whole service in this process, its engine in a process of its own. Stopped at the end."""
    async with serving_worker(worker_settings(url, worker_id, policy, role, metrics, **changes), redis) as worker:
        yield worker


@asynccontextmanager
async def serving_worker(
    settings: WorkerSettings, redis: Redis, start_s: float = PATIENCE_S
) -> AsyncIterator[RunningWorker]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(main(settings, stop))
        try:
            yield RunningWorker(settings.worker_id, await address_of(redis, settings.worker_id, start_s), stop)
        finally:
            stop.set()


@asynccontextmanager
async def worker_process(url: str, redis: Redis, worker_id: str, *more: str, **changes: float) -> AsyncIterator[int]:
    """`python -m hekaton_worker`; its process id. Killed at the end if it still runs."""
    settings = worker_settings(url, worker_id, "slack", Role.ANY, "", **changes)
    names = ("redis_url", "worker_id", "device", "heartbeat_s", "lease_s", "time_scale", "drain_timeout_s")
    flags = [f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in names]
    command = [sys.executable, "-m", "hekaton_worker", *flags, *more, f"--device-memory={MEMORY_BYTES}"]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await address_of(redis, worker_id)
        yield process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def address_of(redis: Redis, worker_id: str, timeout_s: float = PATIENCE_S) -> str:
    """Where a worker says that it can be found, once it does."""
    registry = Registry(redis, Kind.WORKER)

    async def listed() -> bool:
        return worker_id in await registry.list()

    await eventually(listed, timeout_s)
    return pool_pb2.WorkerStatus.FromString((await registry.list())[worker_id]).address


async def add_model(redis: Redis, name: str = "m1") -> None:
    await Catalog(redis).put(CatalogEntry(name, f"emulated:{CLASS}", "bfloat16", SLO, ModelState.READY, SPEC))


def new_record(request_id: str, *, model: str = "m1", max_tokens: int = 20, deadline_s: float = 60.0) -> RequestRecord:
    sampling = Sampling(max_tokens=max_tokens, seed=7)
    return RequestRecord(request_id, "router-1", model, len(PROMPT), sampling, SLO, deadline_s)


async def accept(redis: Redis, record: RequestRecord) -> None:
    assert await Requests(redis).accept(record, PROMPT, 1000)


async def next_queued(queue: Queue, term: int) -> Entry:
    """Takes the next entry, as a leader would, once there is one."""
    async with asyncio.timeout(PATIENCE_S):
        while not (entries := await queue.read(term, 1, 3000)):
            pass
    return entries[0]


async def place(redis: Redis, worker_id: str, term: int = 1) -> tuple[str, int]:
    """Places the next queued request, as a scheduler would; its id and epoch."""
    entry_id, request_id = await next_queued(Queue(redis, "test"), term)
    epoch = await Requests(redis).place(request_id, entry_id, worker_id, term)
    assert epoch is not None
    return request_id, epoch


def expected(count: int, model: str = "m1", first: int = 0) -> list[int]:
    """The tokens that every request of `new_record` must get."""
    return [emulated_token(model, 7, position, SPEC) for position in range(first, count)]
