"""Who runs what, and whether the router can serve."""

import grpc.aio
import pytest
from redis.asyncio import Redis

from fakes.router import RouterClient, eventually, running_router
from fakes.worker import FakeWorker
from hekaton.errors import Unavailable
from hekaton.rpc import convert
from hekaton.rpc.errors import from_rpc_error
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import Kind
from hekaton.store.leadership import Leadership
from hekaton.store.workers import Registry
from hekaton.v1 import common_pb2
from hekaton.v1 import inference_pb2 as pb
from hekaton.v1.pool_pb2 import GetPoolRequest, WatchPoolRequest


async def test_the_pool_shows_workers_queue_and_leader(router: RouterClient, worker: FakeWorker, redis: Redis) -> None:
    term = await Leadership(redis).acquire("scheduler-1", 60)
    await router.generate(pb.GenerateRequest(model="m", text="x")).accepted()
    pool = (await router.pool.GetPool(GetPoolRequest())).pool
    assert list(pool.workers) == [worker.status]
    assert (pool.queued_requests, pool.leader_term) == (1, term)


async def test_a_watcher_sees_turns_as_they_end_and_the_pool_again(router: RouterClient, worker: FakeWorker) -> None:
    watch = router.pool.WatchPool(WatchPoolRequest(interval=convert.duration(0.001)))
    responses = aiter(watch)
    assert (await anext(responses)).pool.workers[0].worker_id == "worker-1"
    worker.turns.put_nowait(common_pb2.TurnRecord(index=7))
    kinds: set[str | None] = set()
    while kinds != {"pool", "turn"}:
        response = await anext(responses)
        kinds.add(response.WhichOneof("event"))
    assert worker.watchers == 1
    watch.cancel()

    async def watchers() -> int:
        return worker.watchers

    await eventually(watchers, lambda count: count == 0)


async def test_a_watch_does_not_hold_up_a_stopping_router(
    redis: Redis, redis_server: EmbeddedRedis, worker: FakeWorker
) -> None:
    async with running_router(redis, redis_server.url, drain_timeout_s=30) as router:
        await router.until_serving()
        responses = aiter(router.pool.WatchPool(WatchPoolRequest(interval=convert.duration(60))))
        await anext(responses)
        router.stop.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(responses)
        assert isinstance(from_rpc_error(caught.value), Unavailable)


async def test_a_router_serves_while_there_is_a_worker_that_takes_work(
    router: RouterClient, worker: FakeWorker
) -> None:
    worker.status.draining = True
    await worker.register()
    await router.until_serving(False)
    worker.status.draining = False
    await worker.register()
    await router.until_serving()


async def test_a_router_that_stopped_is_no_longer_listed(redis: Redis, redis_server: EmbeddedRedis) -> None:
    registry = Registry(redis, Kind.ROUTER)
    async with running_router(redis, redis_server.url):
        assert list(await registry.list()) == ["router-1"]
    assert await registry.list() == {}


async def test_a_registration_that_cannot_be_decoded_hides_itself_only(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    await Registry(redis, Kind.WORKER).heartbeat("garbage", b"\xff\xff", 60, 1)
    assert list((await router.pool.GetPool(GetPoolRequest())).pool.workers) == [worker.status]
    await router.until_serving()
