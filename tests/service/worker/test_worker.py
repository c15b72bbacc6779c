"""The worker's whole service with an emulated device, driven by a test that plays scheduler and router."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from redis.asyncio import Redis

from fakes.peers import Commander, Listener, commander, listener
from fakes.redis import connected
from fakes.waiting import eventually
from fakes.workers import RunningWorker, accept, add_model, expected, new_record, place, running_worker
from hekaton.facts import RequestState
from hekaton.rpc.channel import open_channel
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import Kind
from hekaton.store.requests import Requests
from hekaton.store.workers import Registry
from hekaton.v1 import common_pb2, pool_pb2, worker_pb2, worker_pb2_grpc

Driven = tuple[RunningWorker, Commander, Listener]
LONG = 4000
"""More tokens than any test waits for."""


@pytest.fixture
async def driven(redis_server: EmbeddedRedis, redis: Redis) -> AsyncIterator[Driven]:
    await add_model(redis)
    async with (
        running_worker(redis_server.url, redis, "w1") as worker,
        commander(worker.address) as scheduler,
        listener(worker.address) as router,
    ):
        await scheduler.hello()
        yield worker, scheduler, router


async def state_of(redis: Redis, request_id: str) -> RequestState:
    return (await Requests(redis).peek([request_id]))[request_id].state


def engine_pids() -> list[int]:
    """Engine processes that this process has started."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"hekaton.engine.host" in Path(f"/proc/{pid}/cmdline").read_bytes()]


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


async def test_a_router_that_reconnects_gets_what_it_lacks(driven: Driven, redis: Redis) -> None:
    worker, scheduler, router = driven
    await accept(redis, new_record("r1", max_tokens=200))
    await scheduler.assign(*await place(redis, "w1"))
    some = (await router.tokens("r1", 10))[:5]
    async with listener(worker.address, known={"r1": some}) as again:
        await again.end("r1")
        assert again.known["r1"] == expected(200)
    assert "r1" not in router.ended
    async with listener(worker.address, known={"r1": some}) as late:
        await late.end("r1")
        assert late.known["r1"] == expected(200)
        await late.cancel("r1")
    async with listener(worker.address) as done:
        with pytest.raises(TimeoutError):
            await done.tokens("r1", 1, 0.2)


async def test_a_later_attempt_goes_on_after_what_the_router_has(driven: Driven, redis: Redis) -> None:
    worker, scheduler, _ = driven
    store = Requests(redis)
    await accept(redis, new_record("r1", max_tokens=30))
    request_id, epoch = await place(redis, "dead")
    await store.requeue(request_id, epoch, term=1, lost=True, max_attempts=3)
    async with listener(worker.address, known={"r1": expected(12)}) as router:
        await scheduler.assign(*await place(redis, "w1"))
        ended = await router.end("r1")
        assert router.known["r1"] == expected(30)
        assert (ended.stats.epoch, ended.stats.failures, ended.stats.completion_tokens) == (2, 1, 30)


async def test_a_later_attempt_without_its_router_goes_on_from_the_checkpoint(driven: Driven, redis: Redis) -> None:
    worker, scheduler, _ = driven
    store = Requests(redis)
    await accept(redis, new_record("r1", max_tokens=30))
    request_id, epoch = await place(redis, "dead")
    await store.checkpoint([(request_id, epoch, expected(5))])
    await store.requeue(request_id, epoch, term=1, lost=True, max_attempts=3)
    async with listener(worker.address, answers=False) as silent:
        await scheduler.assign(*await place(redis, "w1"))
        assert await silent.assigned("r1") == 2
        await scheduler.released()
    async with listener(worker.address, known={"r1": expected(8)}) as router:
        await router.end("r1")
        assert router.known["r1"] == expected(30)


async def test_an_older_term_is_refused_and_a_newer_one_takes_over(driven: Driven) -> None:
    worker, scheduler, _ = driven
    async with commander(worker.address, term=5) as newer:
        await newer.hello()
        assert await scheduler.call.read() is grpc.aio.EOF
        async with commander(worker.address, term=4) as older:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await older.hello()
            assert refused.value.code() is grpc.StatusCode.ABORTED


async def test_a_report_says_what_is_held_and_what_is_resident(driven: Driven, redis: Redis) -> None:
    worker, scheduler, router = driven
    await accept(redis, new_record("r1", max_tokens=LONG))
    await scheduler.assign(*await place(redis, "w1"))
    await scheduler.resident("m1")
    async with commander(worker.address, term=2) as next_leader:
        report = await next_leader.hello()
    assert [(held.request_id, held.epoch, held.model) for held in report.held] == [("r1", 1, "m1")]
    assert report.status.device == "emulated:h800"
    await router.cancel("r1")


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


async def test_requests_survive_their_engine(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    await accept(redis, new_record("r1", max_tokens=1000))
    await scheduler.assign(*await place(redis, "w1"))
    await router.tokens("r1", 10)
    [engine] = engine_pids()
    os.kill(engine, signal.SIGKILL)
    await router.end("r1")
    assert router.known["r1"] == expected(1000)
    assert engine_pids() != [engine]


async def test_streams_run_on_while_redis_is_away_and_their_ends_are_written_later(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "data", socket_dir=tmp_path) as server:
        async with (
            connected(server.url) as redis,
            running_worker(server.url, redis, "w1") as worker,
            commander(worker.address) as scheduler,
            listener(worker.address) as router,
        ):
            await add_model(redis)
            await scheduler.hello()
            await accept(redis, new_record("r1", max_tokens=500))
            await scheduler.assign(*await place(redis, "w1"))
            await router.tokens("r1", 10)
            await asyncio.to_thread(server.kill)
            await router.end("r1")
            assert router.known["r1"] == expected(500)
            await asyncio.to_thread(server.start)

            async def written() -> bool:
                return await state_of(redis, "r1") is RequestState.FINISHED

            await eventually(written)


async def test_a_drained_worker_ends_what_it_can_and_gives_back_the_rest(driven: Driven, redis: Redis) -> None:
    worker, scheduler, router = driven
    for name, tokens in (("short", 30), ("long", LONG)):
        await accept(redis, new_record(name, max_tokens=tokens))
        await scheduler.assign(*await place(redis, "w1"))
    await router.tokens("long", 5)
    worker.stop.set()
    released = [await scheduler.released(), await scheduler.released()]
    assert [(one.request_id, one.refused) for one in released] == [("short", False), ("long", True)]
    assert router.known["short"] == expected(30)
    assert await state_of(redis, "long") is RequestState.RUNNING

    async def gone() -> bool:
        return not await Registry(redis, Kind.WORKER).list()

    await eventually(gone)


async def test_a_draining_worker_takes_nothing_new(redis_server: EmbeddedRedis, redis: Redis) -> None:
    await add_model(redis)
    async with (
        running_worker(redis_server.url, redis, "w1", drain_timeout_s=1.0) as worker,
        commander(worker.address) as scheduler,
        listener(worker.address) as router,
    ):
        await scheduler.hello()
        for name in ("r1", "r2"):
            await accept(redis, new_record(name, max_tokens=LONG))
        await scheduler.assign(*await place(redis, "w1"))
        await router.tokens("r1", 5)
        worker.stop.set()

        async def draining() -> bool:
            info = (await Registry(redis, Kind.WORKER).list())["w1"]
            return pool_pb2.WorkerStatus.FromString(info).draining

        await eventually(draining)
        await scheduler.assign(*await place(redis, "w1"))
        released = await scheduler.released()
        assert (released.request_id, released.refused) == ("r2", True)
