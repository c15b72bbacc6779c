"""A worker's requests with an emulated device, driven by a test that plays scheduler and router."""

import grpc
from redis.asyncio import Redis

from fakes.driven import LONG, Driven, state_of
from fakes.workers import accept, add_model, expected, new_record, place
from hekaton.facts import RequestState
from hekaton.rpc.channel import open_channel
from hekaton.store.keys import SHARD_0
from hekaton.v1 import common_pb2, worker_pb2, worker_pb2_grpc


async def test_a_request_runs_to_its_end_and_everybody_agrees(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1"))
    await scheduler.assign(*await place(redis, "w1"))
    ended = await router.end("r1")
    assert router.known["r1"] == expected(20)
    assert (ended.code, ended.reason) == (0, common_pb2.FINISH_REASON_LENGTH)
    assert (ended.stats.completion_tokens, ended.stats.worker_id, ended.stats.epoch) == (20, "w1", 1)
    assert await state_of(redis, "r1") is RequestState.FINISHED
    assert await scheduler.released() == worker_pb2.Released(request_id="r1", epoch=1)


async def test_a_request_that_cannot_be_decoded_fails_and_the_worker_goes_on(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("bad"))
    placed = await place(redis, "w1")
    await redis.hset(SHARD_0.request("bad"), "record", "{")
    await scheduler.assign(*placed)
    assert await scheduler.released() == worker_pb2.Released(request_id="bad", epoch=1)
    assert await redis.hmget(SHARD_0.request("bad"), "state", "reason") == [b"failed", b"INTERNAL"]
    await accept(redis, new_record("good"))
    await scheduler.assign(*await place(redis, "w1"))
    await router.end("good")


async def test_a_request_whose_text_is_complete_ends_well_where_its_router_says(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1", max_tokens=LONG))
    await scheduler.assign(*await place(redis, "w1"))
    await router.tokens("r1", 5)
    await router.stop("r1", 1, 3)
    ended = await router.end("r1", 2.0)
    assert (ended.code, ended.reason) == (0, common_pb2.FINISH_REASON_STOP)
    assert ended.stats.completion_tokens == 3
    assert await state_of(redis, "r1") is RequestState.FINISHED
    await scheduler.released(1.0)


async def test_a_router_that_claims_too_many_tokens_ends_its_request_only(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    router.known["r1"] = [1] * 21
    await accept(redis, new_record("r1"))
    await scheduler.assign(*await place(redis, "w1"))
    ended = await router.end("r1")
    assert (ended.code, ended.error_reason) == (grpc.StatusCode.INTERNAL.value[0], "INTERNAL")


async def test_an_assign_that_comes_twice_runs_once(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1"))
    placed = await place(redis, "w1")
    await scheduler.assign(*placed)
    await scheduler.assign(*placed)
    await router.end("r1")
    await scheduler.released()
    await scheduler.assign(*placed)
    assert (await scheduler.released()).refused is False
    assert router.known["r1"] == expected(20)


async def test_one_step_of_many_requests_is_one_message(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    for number in range(8):
        await accept(redis, new_record(f"r{number}", max_tokens=50))
        await scheduler.assign(*await place(redis, "w1"))
    for number in range(8):
        await router.end(f"r{number}")
        assert router.known[f"r{number}"] == expected(50)
    assert router.steps < 2 * 50


async def test_a_request_that_another_worker_holds_is_not_run(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1"))
    await scheduler.assign(*await place(redis, "another"))
    assert (await scheduler.released()).refused is False
    assert "r1" not in router.epochs


async def test_a_model_that_is_gone_is_refused(driven: Driven, redis: Redis) -> None:
    _, scheduler, _ = driven
    await accept(redis, new_record("r1", model="gone"))
    await scheduler.assign(*await place(redis, "w1"), model="gone")
    released = await scheduler.released()
    assert (released.refused, released.reason) == (True, "MODEL_NOT_FOUND")


async def test_turns_are_watched_with_their_history(driven: Driven, redis: Redis) -> None:
    worker, scheduler, router = driven
    await add_model(redis, "m2")
    async with open_channel(worker.address) as channel:
        watch = worker_pb2_grpc.WorkerServiceStub(channel).WatchTurns(worker_pb2.WatchTurnsRequest(history=10))
        for name, model in (("r1", "m1"), ("r2", "m2")):
            await accept(redis, new_record(name, model=model))
            await scheduler.assign(*await place(redis, "w1"), model=model)
            await router.end(name)
        turns = [(await anext(aiter(watch))).turn for _ in range(2)]
        assert [(turn.index, turn.worker_id, turn.model) for turn in turns] == [(0, "w1", "m1"), (1, "w1", "m2")]
        watch.cancel()
