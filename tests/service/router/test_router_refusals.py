"""Every refusal, with its status, its reason and whether to try again."""

import asyncio

import grpc
import pytest
from redis.asyncio import Redis

from fakes.redis import connected, running_redis
from fakes.router import RouterClient, running_router
from fakes.worker import FakeWorker, fake_worker
from hekaton.engine.profiles import emulated_spec
from hekaton.errors import NoWorker, StoreUnavailable
from hekaton.facts import CatalogEntry, ModelSpec, ModelState, Slo
from hekaton.policy.admission import Admission, Outlook, Promise
from hekaton.rpc import convert
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.outlooks import Outlooks
from hekaton.store.requests import Requests
from hekaton.v1 import common_pb2
from hekaton.v1 import inference_pb2 as pb

CONTEXT = 4096
Sampling = common_pb2.Sampling


def ids(*token_ids: int) -> pb.TokenIds:
    return pb.TokenIds(ids=token_ids)


BAD = [
    (pb.GenerateRequest(model="m"), "exactly one prompt"),
    (pb.GenerateRequest(model="m", text=""), "empty"),
    (pb.GenerateRequest(model="m", token_ids=ids()), "empty"),
    (pb.GenerateRequest(model="m", chat=pb.ChatPrompt()), "empty"),
    (pb.GenerateRequest(model="m", token_ids=ids(256)), "256 is not below .* 256"),
    (pb.GenerateRequest(model="m", text="x" * CONTEXT), "4096 tokens.*context limit of 4096"),
    (pb.GenerateRequest(model="m", text="x" * 96, sampling=Sampling(max_tokens=4001)), "96 .*4001.*4096.*at most 4000"),
    (pb.GenerateRequest(model="m", text="x", sampling=Sampling(temperature=-1)), "temperature"),
    (pb.GenerateRequest(model="m", text="x", sampling=Sampling(top_p=2)), "top_p"),
    (pb.GenerateRequest(model="m", text="x", sampling=Sampling(max_tokens=0)), "max_tokens"),
    (pb.GenerateRequest(model="m", text="x", sampling=Sampling(stop_token_ids=[1] * 65)), "stop_token_ids"),
    (pb.GenerateRequest(model="m", text="x", slo=common_pb2.Slo(ttft=convert.duration(-1))), "ttft"),
    (pb.GenerateRequest(model="m", text="x", request_id="no spaces"), "request_id"),
    (pb.GenerateRequest(model="m", text="x", request_id="x" * 129), "request_id"),
]


@pytest.mark.parametrize(("request_", "says"), BAD, ids=[says for _, says in BAD])
async def test_a_bad_request_is_an_invalid_argument(
    router: RouterClient, request_: pb.GenerateRequest, says: str
) -> None:
    error = await router.generate(request_).error()
    assert (error.code, error.reason, error.retry_after_s) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        None,
    )
    with pytest.raises(type(error), match=says):
        raise error


async def test_an_unknown_model_is_not_found(router: RouterClient) -> None:
    error = await router.generate(pb.GenerateRequest(model="nobody", text="x")).error()
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_model_in_preparation_is_not_ready(router: RouterClient, redis: Redis) -> None:
    await Catalog(redis).create(CatalogEntry("soon", "/there", "", Slo(1, 1), ModelState.PREPARING))
    error = await router.generate(pb.GenerateRequest(model="soon", text="x")).error()
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_READY")


async def test_a_model_larger_than_every_device_is_refused_with_both_sizes(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry
) -> None:
    async with fake_worker(redis, memory_bytes=10**10), running_router(redis, redis_server.url) as router:
        await router.until_serving()
        error = await router.generate(pb.GenerateRequest(model="m", text="x")).error()
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_TOO_LARGE")
    needed = emulated_spec("qwen2.5-7b").weight_bytes + 16 * 57_344
    assert f"{needed} bytes" in error.message
    assert f"{10**10}" in error.message


async def test_a_request_whose_kv_fits_no_device_is_refused_with_both_numbers(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry
) -> None:
    room = 4 * 16 * 57_344
    memory = emulated_spec("qwen2.5-7b").weight_bytes + room
    async with fake_worker(redis, memory_bytes=memory), running_router(redis, redis_server.url) as router:
        await router.until_serving()
        fits = pb.GenerateRequest(model="m", text="x" * 4, sampling=Sampling(max_tokens=60))
        await router.generate(fits).accepted()
        error = await router.generate(pb.GenerateRequest(model="m", text="x" * 5, sampling=fits.sampling)).error()
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"{room + 16 * 57_344} bytes" in error.message
    assert f"{room} beside" in error.message


async def test_without_a_worker_for_the_model_the_client_is_told_to_try_again(
    router: RouterClient, redis: Redis, worker: FakeWorker
) -> None:
    spec = ModelSpec("d", "llama", "float32", 10, 10, 100, 256)
    await Catalog(redis).create(CatalogEntry("real", "/there", "", Slo(1, 1), ModelState.READY, spec))
    error = await router.generate(pb.GenerateRequest(model="real", token_ids=ids(1))).error()
    assert isinstance(error, NoWorker)
    assert (error.code, error.retry_after_s) == (grpc.StatusCode.UNAVAILABLE, 1.0)
    await worker.leave()
    await router.until_serving(False)
    assert isinstance(await router.generate(pb.GenerateRequest(model="m", text="x")).error(), NoWorker)


async def test_a_request_id_is_admitted_once(router: RouterClient, worker: FakeWorker, redis: Redis) -> None:
    request = pb.GenerateRequest(model="m", text="x", request_id="once")
    stream = router.generate(request)
    await stream.accepted()
    live = await router.generate(request).error()
    assert (live.code, live.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
    worker_request = await worker.take()
    worker.finish(worker_request, 0)
    await stream.finished()
    ended = await router.generate(request).error()
    assert ended.code is grpc.StatusCode.ALREADY_EXISTS
    assert await Requests(redis).queued() == 0


async def test_a_refused_request_leaves_nothing_behind(router: RouterClient, redis: Redis) -> None:
    await router.generate(pb.GenerateRequest(model="m", text="x", sampling=Sampling(max_tokens=0))).error()
    assert await Requests(redis).queued() == 0


async def test_without_redis_a_new_request_is_unavailable_within_the_limit() -> None:
    async with running_redis() as (server, redis), running_router(redis, server.url) as router:
        server.kill()
        async with asyncio.timeout(2):
            error = await router.generate(pb.GenerateRequest(model="m", text="x")).error()
        await router.until_serving(False)
    assert isinstance(error, StoreUnavailable)
    assert (error.code, error.retry_after_s) == (grpc.StatusCode.UNAVAILABLE, 1.0)
    assert "Redis" in error.message


async def test_a_redis_that_is_back_in_time_costs_only_a_pause(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("redis")
    server = EmbeddedRedis(folder / "data", folder)
    with server:
        async with connected(server.url) as redis, fake_worker(redis):
            entry = CatalogEntry("m", "s", "", Slo(1, 1), ModelState.READY, emulated_spec("qwen2.5-7b"))
            await Catalog(redis).create(entry)
            async with running_router(redis, server.url, redis_wait_s=30) as router:
                await router.until_serving()
                server.kill()
                stream = router.generate(pb.GenerateRequest(model="m", text="x"))
                server.start()
                assert (await stream.accepted()).prompt_tokens == 1


async def test_a_router_that_sheds_refuses_what_the_pool_cannot_serve_in_time(
    redis_server: EmbeddedRedis, redis: Redis, model: CatalogEntry, worker: FakeWorker
) -> None:
    soon, late = ({"m": Outlook(start_s=start_s, round_s=0.1)} for start_s in (4.0, 9.0))
    assert Promise(soon, late, frozenset({"flood"})).of("m", "flood") == late["m"]
    await Outlooks(redis).publish(Promise(soon, late, frozenset({"flood"})), ttl_s=60)
    fast = pb.GenerateRequest(model="m", text="x", slo=common_pb2.Slo(ttft=convert.duration(2.5)))
    slow = pb.GenerateRequest(model="m", text="x", slo=common_pb2.Slo(ttft=convert.duration(5)))
    async with running_router(redis, redis_server.url, admission=Admission.SHED) as router:
        await router.until_serving()
        error = await router.generate(fast).error()
        assert (error.code, error.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 1.5)
        assert "m within 2.5 s; it could within 4.0 s" in error.message
        assert (await router.generate(slow).accepted()).request_id
    async with running_router(redis, redis_server.url, "router-2") as router:
        await router.until_serving()
        assert (await router.generate(fast).accepted()).request_id, "one that queues"
