"""The scheduler's whole service with real workers on emulated devices; the test plays the router."""

import asyncio
import os
import signal
from pathlib import Path

from redis.asyncio import Redis

from fakes.peers import listener
from fakes.redis import connected
from fakes.schedulers import RunningScheduler, reaches, running_scheduler, summary
from fakes.waiting import eventually
from fakes.worker import fake_worker
from fakes.workers import accept, add_model, address_of, expected, new_record, running_worker, worker_process
from hekaton.facts import RequestState
from hekaton.policy.admission import Admission
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import SHARD_0, Kind
from hekaton.store.outlooks import Outlooks
from hekaton.store.requests import Requests
from hekaton.store.workers import Registry
from hekaton.v1 import pool_pb2
from hekaton.v1 import worker_pb2 as pb

LONG = 2000
"""More tokens than any test waits for."""
SLOW = 4.0
"""So that LONG outlasts all that is done to its worker meanwhile, however busy the machine: it takes a minute."""
QUICK = 0.02
"""Of the worker that ends it."""


async def test_accepted_requests_run_on_a_worker(
    redis_server: EmbeddedRedis, redis: Redis, scheduler: RunningScheduler
) -> None:
    async with running_worker(redis_server.url, redis, "w1") as worker, listener(worker.address) as router:
        for number in range(20):
            await accept(redis, new_record(f"r{number}"))
        for number in range(20):
            await router.end(f"r{number}")
            assert router.known[f"r{number}"] == expected(20)
        assert await Requests(redis).queued() == 0
        status = await scheduler.status()
        assert (status.leader, status.placements, list(status.connected_worker_ids)) == (True, 20, ["w1"])

        async def nothing_is_held() -> bool:
            return (await scheduler.status()).placed_requests == 0

        await eventually(nothing_is_held)


async def test_requests_wait_for_the_first_worker(
    redis_server: EmbeddedRedis, redis: Redis, scheduler: RunningScheduler
) -> None:
    await accept(redis, new_record("r1"))

    async def waits() -> bool:
        return (await scheduler.status()).waiting_requests == 1

    await eventually(waits)
    async with running_worker(redis_server.url, redis, "w1"):
        await reaches(redis, "r1", RequestState.FINISHED)


async def test_a_deadline_that_passes_while_waiting_fails_the_request(
    redis: Redis, scheduler: RunningScheduler
) -> None:
    await accept(redis, new_record("r1", deadline_s=0.3))
    failed = await reaches(redis, "r1", RequestState.FAILED)
    assert failed.reason == "DEADLINE_EXCEEDED"
    assert await Requests(redis).queued() == 0


async def test_a_request_of_a_deleted_model_fails(redis: Redis, scheduler: RunningScheduler) -> None:
    await Catalog(redis).delete("m1")
    await accept(redis, new_record("r1"))
    assert (await reaches(redis, "r1", RequestState.FAILED)).reason == "MODEL_NOT_FOUND"


async def test_a_request_cancelled_while_it_waits_is_not_placed(
    redis_server: EmbeddedRedis, redis: Redis, scheduler: RunningScheduler
) -> None:
    await accept(redis, new_record("r1"))
    await Requests(redis).cancel("r1")
    await accept(redis, new_record("r2"))
    async with running_worker(redis_server.url, redis, "w1"):
        await reaches(redis, "r2", RequestState.FINISHED)
    assert (await scheduler.status()).placements == 1


async def test_a_model_stays_on_the_worker_that_has_it(
    redis_server: EmbeddedRedis, redis: Redis, scheduler: RunningScheduler
) -> None:
    async with running_worker(redis_server.url, redis, "w1"), running_worker(redis_server.url, redis, "w2"):
        await scheduler.connected("w1", "w2")
        holders = set()
        for number in range(4):
            await accept(redis, new_record(f"r{number}"))
            holders.add((await reaches(redis, f"r{number}", RequestState.FINISHED)).worker_id)
        assert len(holders) == 1


async def test_a_killed_worker_costs_a_pause_and_no_token(
    redis_server: EmbeddedRedis, redis: Redis, scheduler: RunningScheduler
) -> None:
    async with worker_process(redis_server.url, redis, "victim", time_scale=SLOW) as pid:
        await scheduler.connected("victim")
        await accept(redis, new_record("r1", max_tokens=LONG, deadline_s=120))
        async with listener(await address_of(redis, "victim")) as router:
            await router.tokens("r1", 20)
            async with (
                running_worker(redis_server.url, redis, "w2", time_scale=QUICK) as second,
                listener(second.address) as again,
            ):
                again.known = router.known
                await scheduler.connected("victim", "w2")
                os.kill(pid, signal.SIGKILL)
                assert await again.assigned("r1") == 2
                ended = await again.end("r1")
                assert again.known["r1"] == expected(LONG)
                assert (ended.stats.failures, ended.stats.worker_id) == (1, "w2")


async def test_a_request_that_loses_too_many_workers_fails(redis_server: EmbeddedRedis, redis: Redis) -> None:
    await add_model(redis)
    async with (
        running_scheduler(redis_server.url, redis, max_attempts=1),
        worker_process(redis_server.url, redis, "victim", time_scale=SLOW) as pid,
        listener(await address_of(redis, "victim")),
    ):
        await accept(redis, new_record("r1", max_tokens=LONG))
        await reaches(redis, "r1", RequestState.RUNNING)
        os.kill(pid, signal.SIGKILL)
        assert (await reaches(redis, "r1", RequestState.FAILED)).reason == "WORKER_LOST"


async def test_a_frozen_worker_is_replaced_and_changes_nothing_when_it_wakes_up(
    redis_server: EmbeddedRedis, redis: Redis, scheduler: RunningScheduler
) -> None:
    async with (
        worker_process(redis_server.url, redis, "victim", time_scale=SLOW) as pid,
        listener(await address_of(redis, "victim")),
    ):
        await accept(redis, new_record("r1", max_tokens=LONG, deadline_s=120))
        await reaches(redis, "r1", RequestState.RUNNING)
        async with (
            running_worker(redis_server.url, redis, "w2", time_scale=QUICK) as second,
            listener(second.address),
        ):
            os.kill(pid, signal.SIGSTOP)
            try:
                ended = await reaches(redis, "r1", RequestState.FINISHED)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert (ended.worker_id, ended.epoch, ended.failures) == ("w2", 2, 1)
            await scheduler.connected("victim", "w2")

            async def nothing_is_held() -> bool:
                return (await scheduler.status()).placed_requests == 0

            await eventually(nothing_is_held)
            assert (await summary(redis, "r1")).epoch == 2


async def test_a_drained_worker_loses_nothing(
    redis_server: EmbeddedRedis, redis: Redis, scheduler: RunningScheduler
) -> None:
    async with (
        running_worker(redis_server.url, redis, "w1", time_scale=SLOW) as first,
        listener(first.address),
    ):
        await accept(redis, new_record("r1", max_tokens=LONG, deadline_s=120))
        await reaches(redis, "r1", RequestState.RUNNING)
        async with (
            running_worker(redis_server.url, redis, "w2", time_scale=QUICK) as second,
            listener(second.address),
        ):
            await scheduler.connected("w1", "w2")
            first.stop.set()
            ended = await reaches(redis, "r1", RequestState.FINISHED)
            assert (ended.worker_id, ended.failures) == ("w2", 0)


async def test_a_redis_that_restarts_stops_no_stream_and_loses_no_accepted_request(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "data", socket_dir=tmp_path) as server:
        async with (
            connected(server.url) as redis,
            running_worker(server.url, redis, "w1", time_scale=0.4) as worker,
            listener(worker.address) as router,
            running_scheduler(server.url, redis) as scheduler,
        ):
            await add_model(redis)
            await add_model(redis, "m2")
            await accept(redis, new_record("r1", max_tokens=1200))
            await router.tokens("r1", 10)
            await accept(redis, new_record("r2", model="m2"))
            await asyncio.to_thread(server.kill)
            await router.tokens("r1", len(router.known["r1"]) + 100)
            await asyncio.to_thread(server.start)
            assert (await router.end("r1")).stats.epoch == 1
            assert router.known["r1"] == expected(1200)
            await eventually(scheduler.leads)
            for name in ("r1", "r2"):
                await reaches(redis, name, RequestState.FINISHED)
            assert await Requests(redis).queued() == 0


async def test_what_cannot_be_decoded_ends_no_scheduler(
    redis_server: EmbeddedRedis, redis: Redis, scheduler: RunningScheduler
) -> None:
    await Registry(redis, Kind.WORKER).heartbeat("garbage", b"\xff\xff", 60, 1)
    await redis.hset(SHARD_0.catalog, "garbage", "{")
    await redis.hset(SHARD_0.request("bad"), mapping={"record": "{", "state": "queued", "entry": "1-1"})
    await redis.xadd(SHARD_0.queue, {"id": "bad"}, id="1-1")
    await accept(redis, new_record("good"))
    async with running_worker(redis_server.url, redis, "w1"):
        await reaches(redis, "good", RequestState.FINISHED)
    assert await redis.hmget(SHARD_0.request("bad"), "state", "reason") == [b"failed", b"INTERNAL"]


async def test_a_worker_that_reports_nonsense_is_not_used(redis: Redis, scheduler: RunningScheduler) -> None:
    """Its report says that it is another worker, to whom nothing could be sent."""
    async with fake_worker(redis, "w1") as worker:
        worker.report = pb.WorkerReport(status=pool_pb2.WorkerStatus(worker_id="w2", device_memory_bytes=80 << 30))
        await accept(redis, new_record("r1"))
        await asyncio.sleep(0.5)
        assert (await scheduler.status()).connected_worker_ids == []
        assert (await summary(redis, "r1")).state is RequestState.QUEUED


async def test_a_leader_that_sheds_says_what_the_pool_can_promise(redis_server: EmbeddedRedis, redis: Redis) -> None:
    await add_model(redis)
    published = Outlooks(redis)

    async def promised() -> bool:
        return bool((await published.read()).outlooks)

    async with running_scheduler(redis_server.url, redis, admission=Admission.SHED) as scheduler:
        async with running_worker(redis_server.url, redis, "w1"):
            await scheduler.connected("w1")
            await eventually(promised)
            (idle,) = (await published.read()).outlooks.values()
            assert 0 < idle.start_s <= idle.ttft_s(0.1)

        async def nothing_is() -> bool:
            return not (await published.read()).outlooks

        await eventually(nothing_is)
