"""A real embedded server for tests. Import the fixtures `redis_server` and `redis` into a conftest to use them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from hekaton.store.connect import connect
from hekaton.store.embedded import EmbeddedRedis


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Redis]:
    client = connect(url)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def running_redis(data_dir: Path | None = None) -> AsyncIterator[tuple[EmbeddedRedis, Redis]]:
    """A server of the test's own, which it may kill and start again at the same address; and a client."""
    with EmbeddedRedis(data_dir) as server:
        async with connected(server.url) as client:
            yield server, client


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
async def redis(redis_server: EmbeddedRedis) -> AsyncIterator[Redis]:
    """A client of an empty server."""
    async with connected(redis_server.url) as client:
        await client.flushall()
        yield client
