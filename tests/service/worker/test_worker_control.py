"""A worker's leader: its terms, the report to a new one, and the drain."""

from dataclasses import replace

import grpc
import grpc.aio
import pytest
from redis.asyncio import Redis

from fakes.driven import LONG, Driven, state_of
from fakes.peers import commander, listener
from fakes.waiting import eventually
from fakes.workers import accept, add_model, expected, new_record, place, running_worker
from hekaton.facts import RequestState
from hekaton.policy.types import Role
from hekaton.rpc.channel import open_channel
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import Kind
from hekaton.store.workers import Registry
from hekaton.v1 import pool_pb2
from hekaton.v1 import worker_pb2 as pb


async def test_an_older_term_is_refused_and_a_newer_one_takes_over(driven: Driven) -> None:
    worker, scheduler, _ = driven
    async with commander(worker.address, term=5) as newer:
        await newer.hello()
        assert await scheduler.call.read() is grpc.aio.EOF
        async with commander(worker.address, term=4) as older:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await older.hello()
            assert refused.value.code() is grpc.StatusCode.ABORTED


@pytest.mark.parametrize("method", ["Control", "StreamTokens"])
async def test_a_message_that_cannot_be_decoded_ends_its_stream_and_nothing_else(driven: Driven, method: str) -> None:
    worker = driven[0]
    hello: pb.ControlRequest | pb.StreamTokensRequest = (
        pb.ControlRequest(hello=pb.ControlHello(term=2))
        if method == "Control"
        else pb.StreamTokensRequest(hello=pb.StreamTokensHello(router_id="another"))
    )
    async with open_channel(worker.address) as channel:
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"/hekaton.v1.WorkerService/{method}"
        )
        call = stream()
        await call.write(hello.SerializeToString())
        await call.write(b"\xff" * 11)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in call:
                pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    async with commander(worker.address, term=3) as leader:
        assert (await leader.hello()).status.worker_id == "w1"


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


async def test_tenants_are_charged_for_the_steps_of_their_requests(driven: Driven, redis: Redis) -> None:
    _, scheduler, router = driven
    for name, tenant in (("r1", "ann"), ("r2", "bob"), ("r3", "")):
        await accept(redis, replace(new_record(name, max_tokens=LONG), tenant=tenant))
        await scheduler.assign(*await place(redis, "w1"))
    used_s = await scheduler.used_s({"ann", "bob"})
    assert set(used_s) == {"ann", "bob"}
    assert min(used_s.values()) > 0
    for name in ("r1", "r2", "r3"):
        await router.cancel(name)


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


async def test_what_is_handed_over_while_nobody_leads_is_in_the_next_leaders_report(
    redis_server: EmbeddedRedis, redis: Redis
) -> None:
    await add_model(redis)
    async with (
        running_worker(redis_server.url, redis, "w1", "aegaeon", Role.PREFILL) as worker,
        listener(worker.address) as router,
    ):
        async with commander(worker.address, term=1) as leader:
            await leader.hello()
            await accept(redis, new_record("r1"))
            await leader.assign(*await place(redis, "w1"))
            await router.assigned("r1")
        await router.tokens("r1", 1)
        async with commander(worker.address, term=2) as next_leader:
            report = await next_leader.hello()
        assert [(one.request_id, one.epoch, one.handed_over) for one in report.given_back] == [("r1", 1, True)]
        assert not report.held
        async with commander(worker.address, term=3) as third:
            assert not (await third.hello()).given_back, "it was told once"
