"""Cancelling, however it comes about, reaches the worker, the store and the waiting call."""

import asyncio
import time
from functools import partial

import grpc
import pytest
from grpc_health.v1 import health_pb2
from redis.asyncio import Redis

from fakes.router import RouterClient, eventually, running_router
from fakes.worker import FakeWorker
from fakes.workers import place
from hekaton.errors import Cancelled, DeadlineExceeded, RequestNotFound, WorkerLost
from hekaton.facts import RequestState, RequestStats
from hekaton.rpc.errors import from_rpc_error
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import SHARD_0
from hekaton.store.requests import Requests
from hekaton.v1 import inference_pb2 as pb

HELLO = pb.GenerateRequest(model="m", text="hello")


async def state_of(redis: Redis, request_id: str) -> RequestState:
    """The terminal state that a request reaches."""

    async def look() -> RequestState:
        return (await Requests(redis).peek([request_id]))[request_id].state

    return await eventually(look, lambda state: state.terminal)


async def cancelled_on(worker: FakeWorker) -> str:
    return await asyncio.wait_for(worker.cancelled.get(), 30)


async def test_a_client_that_goes_away_ends_its_request(router: RouterClient, worker: FakeWorker, redis: Redis) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    await worker.produced.get()
    stream.call.cancel()
    assert await cancelled_on(worker) == request_id
    assert await state_of(redis, request_id) is RequestState.CANCELLED


async def test_a_request_cancelled_while_it_waits_is_never_run(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    stream = router.generate(HELLO)
    request_id = (await stream.accepted()).request_id
    stream.call.cancel()
    assert await state_of(redis, request_id) is RequestState.CANCELLED
    assert await Requests(redis).queued() == 0


async def test_a_request_that_nobody_waits_for_is_cancelled_when_it_is_announced(
    router: RouterClient, worker: FakeWorker
) -> None:
    worker.hold("forgotten", 1, "router-1")
    assert await cancelled_on(worker) == "forgotten"


async def test_a_cancel_while_the_link_is_down_reaches_the_worker_later(
    router: RouterClient, worker: FakeWorker
) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    await worker.produced.get()
    worker.sever()
    stream.call.cancel()
    assert await cancelled_on(worker) == request_id


async def test_the_clients_deadline_ends_its_request(router: RouterClient, worker: FakeWorker, redis: Redis) -> None:
    stream = router.generate(HELLO, timeout_s=0.3)
    request_id = await worker.take()
    error = await stream.error()
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await cancelled_on(worker) == request_id
    assert await state_of(redis, request_id) is RequestState.CANCELLED


async def test_a_router_ends_what_exceeds_its_own_deadline(
    redis: Redis, redis_server: EmbeddedRedis, router: RouterClient, worker: FakeWorker
) -> None:
    async with running_router(redis, redis_server.url, "router-2", max_deadline_s=0.3) as strict:
        await strict.until_serving()
        stream = strict.generate(HELLO)
        request_id = await worker.take()
        started_s = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await stream.finished()
        assert time.monotonic() - started_s < 2
        assert await cancelled_on(worker) == request_id
        assert await state_of(redis, request_id) is RequestState.CANCELLED


async def test_the_cancel_call_ends_the_waiting_call(router: RouterClient, worker: FakeWorker, redis: Redis) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    await worker.produced.get()
    answer = await router.inference.Cancel(pb.CancelRequest(request_id=request_id))
    assert answer.cancelled
    with pytest.raises(Cancelled):
        await stream.finished()
    assert await cancelled_on(worker) == request_id
    assert await state_of(redis, request_id) is RequestState.CANCELLED
    again = await router.inference.Cancel(pb.CancelRequest(request_id=request_id))
    assert not again.cancelled


async def test_cancelling_an_unknown_request_is_not_found(router: RouterClient) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.inference.Cancel(pb.CancelRequest(request_id="nobody"))
    assert isinstance(from_rpc_error(caught.value), RequestNotFound)


async def test_a_router_hears_at_once_what_another_one_cancels(
    redis: Redis, redis_server: EmbeddedRedis, router: RouterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hekaton_router.checkpoints.CHECKPOINT_S", 3600.0)
    async with running_router(redis, redis_server.url, "router-2") as deaf:
        await deaf.until_serving()
        stream = deaf.generate(HELLO)
        request_id = (await stream.accepted()).request_id
        channel = SHARD_0.cancelled("router-2")
        await eventually(partial(redis.pubsub_numsub, channel), lambda seen: seen[0][1] == 1)
        assert (await router.inference.Cancel(pb.CancelRequest(request_id=request_id))).cancelled
        with pytest.raises(Cancelled):
            await stream.finished()


@pytest.mark.parametrize("placed", [True, False])
async def test_a_request_can_be_cancelled_at_another_router(
    redis: Redis, redis_server: EmbeddedRedis, router: RouterClient, worker: FakeWorker, placed: bool
) -> None:
    stream = router.generate(HELLO)
    request_id = (await stream.accepted()).request_id
    if placed:
        await worker.take()
        await worker.produced.get()
    async with running_router(redis, redis_server.url, "router-2") as other:
        await other.until_serving()
        assert (await other.inference.Cancel(pb.CancelRequest(request_id=request_id))).cancelled
        if placed:
            assert await cancelled_on(worker) == request_id
        with pytest.raises(Cancelled):
            await stream.finished()


async def test_a_request_that_the_scheduler_gave_up_ends(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    await Requests(redis).requeue(request_id, 1, term=1, lost=True, max_attempts=1)
    with pytest.raises(WorkerLost, match="lost 1 workers"):
        await stream.finished()


async def test_an_end_that_its_worker_could_not_tell_is_found_in_the_store(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    whole = router.generate(HELLO)
    ends = {await worker.take(): 1}
    cut = router.generate(HELLO)
    ends[await worker.take()] = 2
    for request_id, completion_tokens in ends.items():
        worker.step(request_id, 0, [104])
        stats = RequestStats(5, completion_tokens, 0, 1, 0, "w")
        await Requests(redis).finish(request_id, 1, RequestState.FINISHED, reason="length", stats=stats)
    assert (await whole.finished()).stats.completion_tokens == 1
    with pytest.raises(WorkerLost, match="last tokens"):
        await cut.finished()


async def test_a_stopping_router_lets_streams_end_and_then_cancels_the_rest(
    redis: Redis, redis_server: EmbeddedRedis, model: object, worker: FakeWorker
) -> None:
    async with running_router(redis, redis_server.url, drain_timeout_s=1.0) as router:
        await router.until_serving()
        quick, slow = router.generate(HELLO), router.generate(HELLO)
        quick_id, slow_id = (await quick.accepted()).request_id, (await slow.accepted()).request_id
        assert {await worker.take(), await worker.take()} == {quick_id, slow_id}
        health = aiter(router.health.Watch(health_pb2.HealthCheckRequest()))
        assert (await anext(health)).status == health_pb2.HealthCheckResponse.SERVING
        router.stop.set()
        assert (await anext(health)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        worker.finish(quick_id, 0)
        await quick.finished()
        await slow.error()
    assert await state_of(redis, slow_id) is RequestState.CANCELLED
    assert await cancelled_on(worker) == slow_id


async def test_a_request_whose_record_cannot_be_read_ends(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    stream = router.generate(HELLO)
    request_id = (await stream.accepted()).request_id
    await redis.hset(SHARD_0.request(request_id), mapping={"record": "{", "state": "failed"})
    error = await stream.error()
    assert error.reason == "INTERNAL"
    assert "cannot be read" in error.message


async def test_an_end_that_its_worker_could_not_write_is_in_the_store_before_the_client_hears(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    stream = router.generate(HELLO)
    request_id = await worker.take()
    await worker.produced.get()
    worker.step(request_id, 0, b"hello")
    worker.finish(request_id, 5, unwritten=True)
    assert (await stream.finished()).stats.completion_tokens == 5
    stored = await Requests(redis).load(request_id)
    assert stored is not None
    assert (stored.summary.state, bytes(stored.produced)) == (RequestState.FINISHED, b"hello")


async def test_an_unwritten_end_of_a_request_that_was_taken_back_does_not_count(
    router: RouterClient, worker: FakeWorker, redis: Redis
) -> None:
    """The worker cannot reach the store, was taken for lost, and does not know it."""
    stream = router.generate(HELLO)
    request_id = await worker.take()
    await worker.produced.get()
    worker.step(request_id, 0, b"hel")
    await stream.until(3)
    await Requests(redis).requeue(request_id, 1, term=1, lost=True, max_attempts=3)
    assert await place(redis, "worker-2") == (request_id, 2)
    assert await Requests(redis).start(request_id, 2)
    worker.finish(request_id, 3, unwritten=True)
    worker.hold(request_id, 2, "router-1")
    assert bytes((await worker.produced.get()).token_ids) == b"hel"
    worker.step(request_id, 3, b"lo")
    worker.finish(request_id, 5)
    await stream.finished()
    assert (stream.text, worker.cancelled.empty()) == ("hello", True)
