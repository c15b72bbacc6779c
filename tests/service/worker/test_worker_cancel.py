"""How a worker's requests end early: cancels, deadlines, revocations, routers that are gone."""

import grpc
import pytest
from redis.asyncio import Redis

from fakes.driven import LONG, Driven, state_of
from fakes.peers import commander, listener
from fakes.workers import accept, add_model, expected, new_record, place, running_worker
from hekaton.facts import RequestState
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests
from hekaton.v1 import worker_pb2


async def test_a_router_that_cancels_frees_the_request_within_a_step(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1", max_tokens=LONG))
    await scheduler.assign(*await place(redis, "w1"))
    await router.tokens("r1", 3)
    await router.cancel("r1")
    assert (await router.end("r1", 1.0)).code == grpc.StatusCode.CANCELLED.value[0]
    assert await state_of(redis, "r1") is RequestState.CANCELLED
    await scheduler.released(1.0)


async def test_a_cancel_in_the_store_wins_over_the_end_that_comes_after_it(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1", max_tokens=1000))
    await scheduler.assign(*await place(redis, "w1"))
    await router.tokens("r1", 3)
    await Requests(redis).cancel("r1")
    assert (await router.end("r1")).code == grpc.StatusCode.CANCELLED.value[0]


async def test_the_deadline_ends_a_request(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1", max_tokens=LONG, deadline_s=0.5))
    await scheduler.assign(*await place(redis, "w1"))
    ended = await router.end("r1", 2.0)
    assert (ended.code, ended.error_reason) == (grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "DEADLINE_EXCEEDED")
    assert await state_of(redis, "r1") is RequestState.FAILED


async def test_a_revoked_request_ends_without_a_terminal_state(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1", max_tokens=LONG))
    await scheduler.assign(*await place(redis, "w1"))
    await router.tokens("r1", 3)
    await scheduler.revoke("r1", 1)
    assert (await scheduler.released()).refused is False
    assert await state_of(redis, "r1") is RequestState.RUNNING
    assert "r1" not in router.ended


@pytest.mark.parametrize("came", [True, False])
async def test_requests_of_a_router_that_is_gone_are_cancelled_after_its_lease(
    redis_server: EmbeddedRedis, redis: Redis, came: bool
) -> None:
    await add_model(redis)
    async with (
        running_worker(redis_server.url, redis, "w1", lease_s=0.3) as worker,
        commander(worker.address) as scheduler,
    ):
        await scheduler.hello()
        await accept(redis, new_record("r1", max_tokens=LONG))
        if came:
            async with listener(worker.address) as router:
                await scheduler.assign(*await place(redis, "w1"))
                await router.tokens("r1", 1)
        else:
            await scheduler.assign(*await place(redis, "w1"))
        assert await scheduler.released() == worker_pb2.Released(request_id="r1", epoch=1)
        assert await state_of(redis, "r1") is RequestState.CANCELLED


async def test_a_router_that_comes_back_within_its_lease_keeps_its_requests(
    redis_server: EmbeddedRedis, redis: Redis
) -> None:
    await add_model(redis)
    async with (
        running_worker(redis_server.url, redis, "w1", lease_s=0.5) as worker,
        commander(worker.address) as scheduler,
    ):
        await scheduler.hello()
        await accept(redis, new_record("r1", max_tokens=200))
        async with listener(worker.address) as router:
            await scheduler.assign(*await place(redis, "w1"))
            known = await router.tokens("r1", 1)
        async with listener(worker.address, known={"r1": known}) as router:
            ended = await router.end("r1")
            assert (ended.code, router.known["r1"]) == (0, expected(200))
