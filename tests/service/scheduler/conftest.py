from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from fakes.redis import redis, redis_server
from fakes.schedulers import RunningScheduler, running_scheduler
from fakes.workers import add_model
from hekaton.store.embedded import EmbeddedRedis

__all__ = ["redis", "redis_server", "scheduler"]


@pytest.fixture
async def scheduler(redis_server: EmbeddedRedis, redis: Redis) -> AsyncIterator[RunningScheduler]:
    await add_model(redis)
    """One that moves nothing: on a busy machine steps measure long, and a worker would seem to be full."""
    async with running_scheduler(redis_server.url, redis, policy_option={"hysteresis": 1000.0}) as running:
        yield running
