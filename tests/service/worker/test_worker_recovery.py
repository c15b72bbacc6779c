"""What survives the loss of a connection, a worker, an engine or Redis."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis

from fakes.driven import Driven, state_of
from fakes.peers import commander, listener
from fakes.redis import connected
from fakes.waiting import eventually
from fakes.workers import accept, add_model, expected, new_record, place, running_worker
from hekaton.facts import RequestState
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests


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


def engine_pids() -> list[int]:
    """Engine processes that this process has started."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"hekaton.engine.host" in Path(f"/proc/{pid}/cmdline").read_bytes()]


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
