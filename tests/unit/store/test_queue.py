import asyncio

import pytest
from redis.asyncio import Redis

from fakes.records import record
from hekaton.errors import StaleTerm
from hekaton.store.keys import Keys
from hekaton.store.queue import Entry, Queue
from hekaton.store.requests import Requests


async def accept(redis: Redis, *request_ids: str) -> None:
    for request_id in request_ids:
        await Requests(redis).accept(record(request_id), (1,), 10_000)


def ids(entries: tuple[Entry, ...]) -> list[str]:
    return [entry.request_id for entry in entries]


async def test_entries_come_once_and_in_order(redis: Redis) -> None:
    queue = Queue(redis, "s1")
    await accept(redis, "a", "b", "c")
    assert ids(await queue.read(1, 2, 0)) == ["a", "b"]
    assert ids(await queue.read(1, 2, 0)) == ["c"]
    assert await queue.read(1, 2, 1) == ()


async def test_a_read_waits_for_the_first_entry(redis: Redis) -> None:
    queue = Queue(redis, "s1")
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(queue.read(1, 10, 3000))
        await asyncio.sleep(0.05)
        await accept(redis, "a")
    assert ids(reading.result()) == ["a"]


@pytest.mark.parametrize("delay_s", [0.0, 0.0002, 0.0005, 0.001, 0.02])
async def test_a_cancelled_read_loses_nothing(redis: Redis, delay_s: float) -> None:
    queue = Queue(redis, "s1")
    read: list[str] = []
    for number in range(20):
        reading = asyncio.create_task(queue.read(1, 10, 3000))
        await accept(redis, f"r{number}")
        await asyncio.sleep(delay_s)
        reading.cancel()
        (result,) = await asyncio.gather(reading, return_exceptions=True)
        if isinstance(result, tuple):
            read += ids(result)
    read += ids(await queue.read(1, 100, 0))
    assert read == [f"r{number}" for number in range(20)]


async def test_what_was_delivered_and_not_received_comes_again(redis: Redis) -> None:
    queue = Queue(redis, "s1")
    await accept(redis, "a", "b")
    await queue.read(1, 1, 0)
    await redis.xreadgroup("schedulers", "s1", {Keys().queue: ">"}, count=1)
    await accept(redis, "c")
    assert ids(await queue.read(1, 10, 0)) == ["b", "c"]


async def test_a_new_leader_claims_all_that_is_pending(redis: Redis) -> None:
    old, new = Queue(redis, "s1"), Queue(redis, "s2")
    names = [f"r{number}" for number in range(1500)]
    await accept(redis, *names)
    assert len(await old.read(1, 1500, 0)) == 1500
    await accept(redis, "later")
    assert ids(await new.claim_all(2)) == names
    assert ids(await new.read(2, 10, 0)) == ["later"]


async def test_a_leader_that_was_replaced_takes_nothing(redis: Redis) -> None:
    old, new = Queue(redis, "s1"), Queue(redis, "s2")
    waiting = asyncio.create_task(old.read(1, 10, 3000))
    await asyncio.sleep(0.05)
    assert await new.claim_all(2) == ()
    await accept(redis, "a")
    with pytest.raises(StaleTerm):
        await waiting
    with pytest.raises(StaleTerm):
        await old.claim_all(1)
    assert ids(await new.read(2, 10, 0)) == ["a"]
