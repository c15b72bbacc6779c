"""Who leads the pool: takeover, standing down, and terms that only grow."""

import os
import signal

from redis.asyncio import Redis

from fakes.peers import commander, listener
from fakes.schedulers import RunningScheduler, reaches, running_scheduler, scheduler_process
from fakes.waiting import eventually
from fakes.workers import accept, add_model, expected, new_record, running_worker, worker_process
from hekaton.facts import RequestState
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.leadership import Leadership


async def test_a_standby_takes_over_when_the_leader_is_killed(redis_server: EmbeddedRedis, redis: Redis) -> None:
    await add_model(redis)
    async with scheduler_process(redis_server.url, redis, "s1") as first:
        await eventually(first.leads)
        async with (
            running_scheduler(redis_server.url, redis, "s2") as second,
            running_worker(redis_server.url, redis, "w1", time_scale=1.0) as worker,
            listener(worker.address) as router,
        ):
            await first.connected("w1")
            assert not await second.leads()
            await accept(redis, new_record("r1", max_tokens=800))
            await router.tokens("r1", 10)
            os.kill(first.pid, signal.SIGKILL)
            await accept(redis, new_record("r2"))
            await router.end("r2")
            assert await second.leads()
            ended = await router.end("r1")
            assert (ended.stats.epoch, router.known["r1"]) == (1, expected(800))


async def test_a_stopped_leader_gives_way_at_once(redis_server: EmbeddedRedis, redis: Redis) -> None:
    async with running_scheduler(redis_server.url, redis, "s1", leader_lease_s=3600) as first:
        await eventually(first.leads)
        async with running_scheduler(redis_server.url, redis, "s2") as second:
            first.stop.set()
            await eventually(second.leads)


async def test_a_leader_that_a_worker_refuses_comes_back_under_a_newer_term(
    redis_server: EmbeddedRedis, redis: Redis, scheduler: RunningScheduler
) -> None:
    async with running_worker(redis_server.url, redis, "w1") as worker:
        await scheduler.connected("w1")
        before = (await scheduler.status()).term
        async with commander(worker.address, term=before + 1) as rival:
            await rival.hello()
            await accept(redis, new_record("r1"))
            await reaches(redis, "r1", RequestState.FINISHED)
        assert (await scheduler.status()).term > before


async def test_requests_of_a_worker_that_died_while_nobody_led_run_again(
    redis_server: EmbeddedRedis, redis: Redis
) -> None:
    await add_model(redis)
    async with (
        running_scheduler(redis_server.url, redis, "s1") as first,
        worker_process(redis_server.url, redis, "victim", time_scale=2.0) as pid,
    ):
        await accept(redis, new_record("r1", max_tokens=4000, deadline_s=120))
        await reaches(redis, "r1", RequestState.RUNNING)
        first.stop.set()

        async def nobody_leads() -> bool:
            return await Leadership(redis).current() is None

        await eventually(nobody_leads)
        os.kill(pid, signal.SIGKILL)
    async with (
        running_worker(redis_server.url, redis, "w2") as second,
        listener(second.address),
        running_scheduler(redis_server.url, redis, "s2"),
    ):
        assert (await reaches(redis, "r1", RequestState.FINISHED)).worker_id == "w2"


async def test_a_leader_whom_a_worker_refuses_leads_again_above_the_newer_term(
    redis_server: EmbeddedRedis, redis: Redis, scheduler: RunningScheduler
) -> None:
    """As after a Redis that came back from an older replica, with its clock behind."""
    async with running_worker(redis_server.url, redis, "w1") as worker:
        newer = (await scheduler.status()).term + 1_000_000_000
        async with commander(worker.address, term=newer) as other:
            await other.hello()
            await scheduler.connected("w1")
            assert (await scheduler.status()).term == newer + 1
