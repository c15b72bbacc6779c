"""Requests that a scheduler asks an emulated worker to let go of; the test plays scheduler and router."""

import asyncio

from redis.asyncio import Redis

from fakes.driven import Driven
from fakes.peers import commander, listener
from fakes.redis import running_redis
from fakes.workers import PROMPT, accept, add_model, expected, new_record, place, running_worker
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests
from hekaton.v1 import worker_pb2 as pb

ENDLESS = 30_000
"""Tokens that take longer than any test."""
LEASE_S = 0.6
MANY = 8
EVERY_S = 0.2
"""All of them take longer than a lease."""


async def test_a_request_leaves_with_its_kv_and_goes_on_elsewhere(
    driven: Driven, redis: Redis, redis_server: EmbeddedRedis
) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1", max_tokens=ENDLESS))
    await scheduler.assign(*await place(redis, "w1"))
    await router.tokens("r1", 40)
    await scheduler.revoke("r1", 1, hand_over=True)
    released = await scheduler.released()
    assert (released.moved, released.refused, released.handed_over) == (True, False, False)
    assert released.parcel.tokens >= len(PROMPT) + 39
    await router.tokens("r1", released.parcel.tokens + 1 - len(PROMPT))
    await Requests(redis).requeue("r1", 1, term=1, lost=False, max_attempts=3)
    async with (
        running_worker(redis_server.url, redis, "w2") as other,
        commander(other.address) as second,
        listener(other.address, known=router.known) as stream,
    ):
        await second.hello()
        await second.assign(*await place(redis, "w2"), parcel=released.parcel)
        count = len(stream.known["r1"]) + 20
        assert (await stream.tokens("r1", count))[:count] == expected(count)


async def test_a_request_that_has_only_just_come_is_let_go_too(driven: Driven, redis: Redis) -> None:
    _, scheduler, _ = driven
    await accept(redis, new_record("r1", max_tokens=ENDLESS))
    placed = await place(redis, "w1")
    await scheduler.assign(*placed)
    await scheduler.revoke(*placed, hand_over=True)
    assert (await scheduler.released()).moved


async def test_a_worker_without_a_lease_lets_go_of_requests_and_not_of_kv() -> None:
    async with running_redis() as (server, redis):
        await add_model(redis)
        async with (
            running_worker(server.url, redis, "w1", lease_s=LEASE_S, time_scale=1.0) as worker,
            commander(worker.address) as scheduler,
            listener(worker.address) as router,
        ):
            await scheduler.hello()
            names = [f"r{number}" for number in range(MANY)]
            for name in names:
                await accept(redis, new_record(name, max_tokens=ENDLESS))
                await scheduler.assign(*await place(redis, "w1"))
            await asyncio.gather(*(router.tokens(name, 2, 60.0) for name in names))
            server.kill()
            released: list[pb.Released] = []
            for name in names:
                await scheduler.revoke(name, 1, hand_over=True)
                released.append(await scheduler.released(60.0))
                assert released[-1].moved, released[-1]
                if not released[-1].HasField("parcel"):
                    break
                await asyncio.sleep(EVERY_S)
            assert not released[-1].HasField("parcel"), "its lease has run out"
            server.start()
