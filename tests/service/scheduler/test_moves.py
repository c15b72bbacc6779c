"""Requests that move between real workers while they run; the test plays the router."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from redis.asyncio import Redis

from fakes.metrics import free_address, sample, scrape
from fakes.peers import Listener, listener
from fakes.schedulers import running_scheduler
from fakes.waiting import eventually
from fakes.worker import fake_worker
from fakes.workers import PROMPT, accept, add_model, expected, new_record, running_worker
from hekaton.facts import RequestState, Slo
from hekaton.policy.types import Role
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.records import RequestSummary
from hekaton.store.requests import Requests
from hekaton.v1 import worker_pb2 as pb

MODELS = ("m1", "m2", "m3", "m4")
NAMES = tuple(f"{model}/{number}" for model in MODELS for number in range(2))
TIGHT = Slo(ttft_s=0.5, tbt_s=0.004)
"""Four models are too many for one worker."""
TOKENS = 1200
PATIENT_S = 20.0
"""The lease: the test's router comes when both workers are there, and must not be taken for gone before."""


@asynccontextmanager
async def router(*addresses: str) -> AsyncIterator[list[Listener]]:
    """One router with a stream to each of two workers."""
    first, second = addresses
    async with listener(first) as one, listener(second) as other:
        other.known = one.known
        yield [one, other]


async def all_finished(redis: Redis, names: tuple[str, ...], timeout_s: float = 60.0) -> dict[str, RequestSummary]:
    async def ended() -> bool:
        found = await Requests(redis).peek(names)
        return all(summary.state is RequestState.FINISHED for summary in found.values())

    await eventually(ended, timeout_s)
    return await Requests(redis).peek(names)


async def parcels(metrics: dict[str, str], outcome: str) -> float:
    """So many requests whose KV left, came or was lost, on all workers."""
    found = await scrape(metrics)
    return sum(found[sample(worker, "kv_parcels_total", outcome=outcome)] for worker in metrics)


async def test_a_pool_with_everything_on_one_worker_spreads_out_and_every_stream_is_exact(
    redis_server: EmbeddedRedis, redis: Redis
) -> None:
    metrics = {name: free_address() for name in ("w1", "w2")}
    for model in MODELS:
        await add_model(redis, model)
    async with (
        running_scheduler(redis_server.url, redis),
        running_worker(
            redis_server.url, redis, "w1", metrics=metrics["w1"], lease_s=PATIENT_S, time_scale=0.3
        ) as first,
    ):
        for name in NAMES:
            await accept(redis, replace(new_record(name, model=name[:2], max_tokens=TOKENS), slo=TIGHT))
        async with (
            running_worker(redis_server.url, redis, "w2", metrics=metrics["w2"], lease_s=PATIENT_S) as second,
            router(first.address, second.address) as streams,
        ):
            ended = await all_finished(redis, NAMES)
            for name, summary in ended.items():
                await streams[summary.worker_id == "w2"].end(name)
                assert streams[0].known[name] == expected(TOKENS, name[:2]), name

            async def told() -> bool:
                return await parcels(metrics, "received") == await parcels(metrics, "sent") > 0

            await eventually(told, 30)
            assert await parcels(metrics, "lost") == 0
    assert {summary.worker_id for summary in ended.values()} == {"w1", "w2"}
    assert {summary.failures for summary in ended.values()} == {0}
    assert all(summary.epoch > 1 for summary in ended.values() if summary.worker_id == "w2"), "all began on w1"


async def test_prefill_and_decode_on_different_workers_make_exact_streams(
    redis_server: EmbeddedRedis, redis: Redis
) -> None:
    metrics = {name: free_address() for name in ("prefill", "decode")}
    for model in MODELS:
        await add_model(redis, model)
    url = redis_server.url
    async with (
        running_scheduler(url, redis, policy="aegaeon"),
        running_worker(url, redis, "prefill", "aegaeon", Role.PREFILL, metrics["prefill"]) as first,
        running_worker(url, redis, "decode", "aegaeon", Role.DECODE, metrics["decode"]) as second,
        router(first.address, second.address) as streams,
    ):
        for name in NAMES:
            await accept(redis, new_record(name, model=name[:2], max_tokens=40))
        await accept(redis, new_record("m1/short", max_tokens=1))
        ended = await all_finished(redis, (*NAMES, "m1/short"))
        for name in NAMES:
            await streams[1].end(name)
            assert streams[0].known[name] == expected(40, name[:2]), name
            summary = ended[name]
            assert (summary.worker_id, summary.epoch, summary.failures) == ("decode", 2, 0)
        assert (await streams[0].end("m1/short")).stats.worker_id == "prefill", "its first token was its last"

        async def told() -> bool:
            return await parcels(metrics, "received") == len(NAMES)

        await eventually(told, 30)
        decode = (await scrape(metrics))[sample("decode", "worker_prefilled_tokens_total")]
        assert decode == 0, "nothing was computed again"


async def test_a_decode_worker_that_stops_passes_requests_on_to_the_next_and_not_to_prefill(
    redis_server: EmbeddedRedis, redis: Redis
) -> None:
    metrics = {name: free_address() for name in ("prefill", "decode")}
    await add_model(redis)
    url = redis_server.url
    async with (
        running_scheduler(url, redis, policy="aegaeon") as scheduler,
        running_worker(url, redis, "prefill", "aegaeon", Role.PREFILL, metrics["prefill"]) as first,
        running_worker(url, redis, "stops", "aegaeon", Role.DECODE, time_scale=2.0) as second,
        router(first.address, second.address) as streams,
    ):
        await accept(redis, new_record("r1", max_tokens=TOKENS))
        await streams[1].tokens("r1", 20)
        async with (
            running_worker(url, redis, "decode", "aegaeon", Role.DECODE, metrics["decode"]) as third,
            listener(third.address, known=streams[0].known) as stream,
        ):
            await scheduler.connected("decode", "prefill", "stops")
            second.stop.set()
            ended = (await all_finished(redis, ("r1",)))["r1"]
            await stream.end("r1")
            assert stream.known["r1"] == expected(TOKENS)
            found = await scrape(metrics)
    assert (ended.worker_id, ended.epoch, ended.failures) == ("decode", 3, 0)
    assert found[sample("prefill", "worker_prefilled_tokens_total")] == len(PROMPT)
    assert found[sample("decode", "worker_prefilled_tokens_total")] == 0, "nothing was computed again"


async def test_what_a_worker_gave_back_while_nobody_led_is_not_lost(redis: Redis, redis_server: EmbeddedRedis) -> None:
    await add_model(redis)
    async with fake_worker(redis, "w1") as worker:
        for name in ("back", "lost"):
            await accept(redis, new_record(name))
            assert await worker.take() == name
            assert await Requests(redis).start(name, 1)
        given_back = [pb.Released(request_id="back", epoch=1, handed_over=True)]
        worker.report = pb.WorkerReport(status=worker.status, given_back=given_back)
        async with running_scheduler(redis_server.url, redis):

            async def placed_again() -> bool:
                return all(one.epoch == 2 for one in (await Requests(redis).peek(["back", "lost"])).values())

            await eventually(placed_again)
        found = await Requests(redis).peek(["back", "lost"])
    assert {name: summary.failures for name, summary in found.items()} == {"back": 0, "lost": 1}
