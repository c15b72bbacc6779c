"""A router with one fake worker and one emulated model, for each test."""

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from fakes.http import http_router, openai_client
from fakes.redis import redis, redis_server
from fakes.router import RouterClient, running_router
from fakes.worker import FakeWorker, fake_worker
from hekaton.engine.profiles import emulated_spec
from hekaton.facts import CatalogEntry, ModelState, Slo
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import EmbeddedRedis

__all__ = ["redis", "redis_server"]


@pytest.fixture
async def model(redis: Redis) -> CatalogEntry:
    spec = emulated_spec("qwen2.5-7b")
    entry = CatalogEntry("m", "emulated:qwen2.5-7b", "", Slo(10.0, 0.1), ModelState.READY, spec)
    await Catalog(redis).create(entry)
    return entry


@pytest.fixture
async def worker(redis: Redis) -> AsyncIterator[FakeWorker]:
    async with fake_worker(redis) as worker:
        yield worker


@pytest.fixture
async def router(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry, worker: FakeWorker
) -> AsyncIterator[RouterClient]:
    async with running_router(redis, redis_server.url) as router:
        await router.until_serving()
        yield router


@pytest.fixture
async def served(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry, worker: FakeWorker
) -> AsyncIterator[tuple[RouterClient, str]]:
    async with http_router(redis, redis_server.url) as served:
        yield served


@pytest.fixture
async def client(served: tuple[RouterClient, str]) -> AsyncIterator[AsyncOpenAI]:
    async with openai_client(served[1]) as client:
        yield client
