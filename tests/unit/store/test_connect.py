import asyncio
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)

from fakes.records import record
from fakes.redis import connected
from hekaton.errors import InvalidArgument, StoreUnavailable
from hekaton.store.catalog import Catalog
from hekaton.store.connect import connect, translated
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import Kind
from hekaton.store.leadership import Leadership
from hekaton.store.queue import Queue
from hekaton.store.requests import Requests
from hekaton.store.workers import Registry


@pytest.mark.parametrize("error", [ReadOnlyError, OutOfMemoryError, MasterDownError, ClusterDownError, TryAgainError])
def test_a_server_that_cannot_serve_now_is_away(error: type[RedisError]) -> None:
    with pytest.raises(StoreUnavailable), translated():
        raise error("You can't write against a read only replica.")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "unix:///nowhere/s.sock"])
async def test_an_absent_redis_is_said_at_once_by_every_class(url: str) -> None:
    async with connected(url) as redis:
        started = time.monotonic()
        for call in (
            Requests(redis).accept(record(), (1,), 1),
            Requests(redis).load("r1"),
            Requests(redis).peek(["r1"]),
            Requests(redis).held_by("w1"),
            Requests(redis).queued(),
            Queue(redis, "s1").read(1, 1, 1000),
            Registry(redis, Kind.WORKER).list(),
            Leadership(redis).current(),
            Leadership(redis).acquire("s1", 5),
            Catalog(redis).list(),
        ):
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await call
        assert time.monotonic() - started < 2


def test_a_bad_url_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="rediss://"):
        connect("http://127.0.0.1")


async def test_scripts_survive_being_forgotten(redis: Redis) -> None:
    requests = Requests(redis)
    await requests.accept(record("r1"), (1,), 100)
    await redis.script_flush()
    await requests.accept(record("r2"), (1,), 100)
    assert await requests.queued() == 2


async def test_a_server_that_comes_back_empty_serves_again(tmp_path: Path) -> None:
    with EmbeddedRedis(socket_dir=tmp_path) as server:
        async with connected(server.url) as redis:
            requests, queue = Requests(redis), Queue(redis, "s1")
            await requests.accept(record("r1"), (1,), 100)
            assert len(await queue.read(10, 10, 0)) == 1
            server.kill()
            with pytest.raises(StoreUnavailable):
                await requests.queued()
            server.start()
            assert await requests.load("r1") is None
            await requests.put_back(record("r1"), (1,), (), epoch=3, age_s=1, router_id="r9")
            ((entry_id, _),) = await queue.read(10, 10, 0)
            assert await requests.place("r1", entry_id, "w1", 10) == 4


async def test_a_server_that_dies_under_a_waiting_read_is_noticed(tmp_path: Path) -> None:
    with EmbeddedRedis(socket_dir=tmp_path) as server:
        async with connected(server.url) as redis:
            reading = asyncio.create_task(Queue(redis, "s1").read(1, 1, 3000))
            await asyncio.sleep(0.05)
            server.kill()
            with pytest.raises(StoreUnavailable):
                await reading


async def test_many_callers_share_few_connections(redis: Redis) -> None:
    requests = Requests(redis)
    async with asyncio.TaskGroup() as tasks:
        for number in range(300):
            tasks.create_task(requests.accept(record(f"r{number}"), (1,), 1000))
    assert await requests.queued() == 300


async def test_a_cancellation_that_redis_py_swallows_still_cancels() -> None:
    async def swallowing() -> None:
        with translated():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return

    task = asyncio.create_task(swallowing())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
