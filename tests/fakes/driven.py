"""A worker with an emulated device, and a test in the place of its scheduler and its router."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from fakes.peers import Commander, Listener, commander, listener
from fakes.workers import RunningWorker, add_model, running_worker
from hekaton.facts import RequestState
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests

Driven = tuple[RunningWorker, Commander, Listener]
LONG = 4000
"""More tokens than any test waits for."""


@pytest.fixture
async def driven(redis_server: EmbeddedRedis, redis: Redis) -> AsyncIterator[Driven]:
    await add_model(redis)
    async with (
        running_worker(redis_server.url, redis, "w1") as worker,
        commander(worker.address) as scheduler,
        listener(worker.address) as router,
    ):
        await scheduler.hello()
        yield worker, scheduler, router


async def state_of(redis: Redis, request_id: str) -> RequestState:
    return (await Requests(redis).peek([request_id]))[request_id].state
