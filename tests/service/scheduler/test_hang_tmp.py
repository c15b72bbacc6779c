import asyncio, pytest, sys
from fakes.redis import redis, redis_server
from fakes.schedulers import running_scheduler
from fakes.workers import *
from hekaton.store.catalog import Catalog
@pytest.fixture
async def scheduler(redis_server, redis):
    await add_model(redis)
    async with running_scheduler(redis_server.url, redis) as running:
        yield running
async def test_x(redis_server, redis, scheduler):
    await Catalog(redis).delete("m1")
    await accept(redis, new_record("r1"))
    await asyncio.sleep(11)
    assert 0
@pytest.mark.parametrize("n", range(12))
async def test_y(redis_server, redis, scheduler, n):
    await accept(redis, new_record("r1"))
    from hekaton.store.requests import Requests
    await Requests(redis).cancel("r1")
    await accept(redis, new_record("r2"))
    async with running_worker(redis_server.url, redis, "w1"):
        await asyncio.sleep(0.3)
