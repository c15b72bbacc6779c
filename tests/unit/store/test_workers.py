import asyncio

import pytest
from redis.asyncio import Redis

from hekaton.errors import StaleTerm
from hekaton.store.keys import Keys, Kind
from hekaton.store.workers import Registry


async def test_the_living_are_listed_with_what_they_say(redis: Redis) -> None:
    workers, memories = Registry(redis, Kind.WORKER), Registry(redis, Kind.MEMORY)
    await workers.heartbeat("w1", b"\xff\x00old", 5, 1)
    await workers.heartbeat("w1", b"\xff\x00new", 5, 1)
    await workers.heartbeat("w2", b"", 5, 1)
    await memories.heartbeat("m1", b"memory", 5, 1)
    assert await workers.list() == {"w1": b"\xff\x00new", "w2": b""}
    assert await memories.list() == {"m1": b"memory"}


async def test_a_silent_member_is_gone_after_its_lease(redis: Redis) -> None:
    workers = Registry(redis, Kind.WORKER)
    await workers.heartbeat("w1", b"x", 0.01, 1)
    await asyncio.sleep(0.02)
    assert await workers.list() == {}
    assert await redis.exists(Keys().members(Kind.WORKER)) == 0


async def test_a_lease_that_ran_out_is_told_from_one_that_is_forgotten(redis: Redis) -> None:
    workers = Registry(redis, Kind.WORKER)
    await workers.heartbeat("w1", b"x", 0.01, 1)
    await asyncio.sleep(0.02)
    assert await workers.lapsed(["w1", "w2"]) == {"w1"}
    await redis.flushall()
    assert await workers.lapsed(["w1", "w2"]) == frozenset()
    assert await workers.lapsed([]) == frozenset()


async def test_an_older_process_of_the_same_id_is_refused(redis: Redis) -> None:
    workers = Registry(redis, Kind.WORKER)
    await workers.heartbeat("w1", b"old", 0.01, 1)
    await workers.heartbeat("w1", b"new", 5, 2)
    with pytest.raises(StaleTerm, match="w1"):
        await workers.heartbeat("w1", b"old", 5, 1)
    assert not await workers.remove("w1", 1)
    assert await workers.list() == {"w1": b"new"}
    assert await workers.remove("w1", 2)
    assert await workers.list() == {}
    with pytest.raises(StaleTerm):
        await workers.heartbeat("w1", b"old", 5, 1)
