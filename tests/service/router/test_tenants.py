"""A router that asks for keys: who is let in, what he may do, and what he has left."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from operator import eq

import openai
import pytest
from redis.asyncio import Redis

from fakes.http import http_router, openai_client
from fakes.router import RouterClient, address_of, eventually
from fakes.worker import FakeWorker
from hekaton.client import Client, SamplingOptions
from hekaton.errors import HekatonError, PermissionDenied, QuotaExceeded, RequestNotFound, Unauthenticated
from hekaton.facts import CatalogEntry, Tenant
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import SHARD_0
from hekaton.store.requests import Requests
from hekaton.store.tenants import Tenants

SHORT = SamplingOptions(max_tokens=10)


@pytest.fixture
async def served(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry, worker: FakeWorker
) -> AsyncIterator[tuple[RouterClient, str]]:
    async with http_router(redis, redis_server.url, "keys") as served:
        yield served


@pytest.fixture
async def address(served: tuple[RouterClient, str], redis: Redis) -> str:
    return await address_of(redis, "router-1")


async def key_of(redis: Redis, tenant: Tenant) -> str:
    tenants = Tenants(redis)
    await tenants.put(tenant)
    return await tenants.create_key(tenant.name)


async def refused(address: str, api_key: str, model: str = "m", prompt: str = "hello") -> HekatonError:
    async with Client(address, api_key=api_key) as client:
        with pytest.raises(HekatonError) as caught:
            await client.complete(model, prompt, SHORT)
    return caught.value


async def early_in_a_minute(redis: Redis) -> None:
    """Returns when the server's minute has some seconds left: what is spent is forgotten with it."""
    seconds, _ = await redis.time()
    if (left_s := 60 - seconds % 60) < 8:
        await asyncio.sleep(left_s)


async def served_one(address: str, api_key: str, worker: FakeWorker) -> None:
    """One request, from its acceptance to its end after five tokens."""
    async with Client(address, api_key=api_key) as client:
        call = asyncio.create_task(client.complete("m", "hello", SHORT))
        request_id = await worker.take()
        await worker.produced.get()
        worker.step(request_id, 0, list(b"abcde"))
        worker.finish(request_id, 5)
        assert (await call).text == "abcde"


async def test_only_a_known_key_is_let_in(
    address: str, served: tuple[RouterClient, str], redis: Redis, worker: FakeWorker
) -> None:
    good = await key_of(redis, Tenant("ada"))
    key_id = good.split("-")[1]
    for bad in ("", "nonsense", f"hk-{key_id}-wrong", good + "x", f"hk-000000000000-{good.split('-', 2)[2]}"):
        assert isinstance(await refused(address, bad), Unauthenticated), bad
    await served_one(address, good, worker)
    async with openai_client(served[1], good) as client:
        assert [one.id async for one in client.models.list()] == ["m"]
    async with openai_client(served[1], "nonsense") as client:
        with pytest.raises(openai.AuthenticationError):
            [one async for one in client.models.list()]
        with pytest.raises(openai.AuthenticationError):
            await client.completions.create(model="m", prompt="hello")
        with pytest.raises(openai.AuthenticationError):
            await client.models.retrieve("m")
    assert await Tenants(redis).revoke(key_id)
    assert isinstance(await refused(address, good), Unauthenticated)


async def test_the_store_and_the_logs_never_have_a_key(
    address: str, redis: Redis, worker: FakeWorker, capfd: pytest.CaptureFixture[str]
) -> None:
    key = await key_of(redis, Tenant("ada", admin=True))
    await served_one(address, key, worker)
    async with Client(address, api_key=key) as client:
        await client.pool()
    secret = key.split("-", 2)[2]
    for name in await redis.keys("*"):
        dumped = await redis.dump(name)
        assert dumped is None or secret.encode() not in dumped
    said = capfd.readouterr()
    assert "administrative call" in said.out + said.err
    assert secret not in said.out + said.err


async def test_a_tenant_uses_and_sees_his_models_only(
    address: str, served: tuple[RouterClient, str], redis: Redis
) -> None:
    key = await key_of(redis, Tenant("ada", models=("other",)))
    assert isinstance(await refused(address, key), PermissionDenied)
    assert isinstance(await refused(address, key, "nobody"), PermissionDenied)
    async with Client(address, api_key=key) as client:
        assert await client.list_models() == ()
        with pytest.raises(PermissionDenied):
            await client.tokenize("m", "hello")
    async with openai_client(served[1], key) as http:
        assert [one.id async for one in http.models.list()] == []
        with pytest.raises(openai.PermissionDeniedError):
            await http.completions.create(model="m", prompt="hello")


async def test_only_an_administrator_changes_the_catalog_and_sees_the_pool(address: str, redis: Redis) -> None:
    async with Client(address, api_key=await key_of(redis, Tenant("ada"))) as client:
        with pytest.raises(PermissionDenied):
            await client.register_model("n", "emulated:qwen2.5-7b")
        with pytest.raises(PermissionDenied):
            await client.delete_model("m")
        with pytest.raises(PermissionDenied):
            await client.pool()
    async with Client(address, api_key=await key_of(redis, Tenant("root", admin=True))) as client:
        await client.register_model("n", "emulated:qwen2.5-7b")
        assert len((await client.pool()).workers) == 1


async def test_another_tenants_request_does_not_exist(address: str, redis: Redis, worker: FakeWorker) -> None:
    ada, eve = await key_of(redis, Tenant("ada")), await key_of(redis, Tenant("eve"))
    async with Client(address, api_key=ada) as owner, Client(address, api_key=eve) as other:
        call = asyncio.create_task(owner.complete("m", "hello", SHORT))
        request_id = await worker.take()
        stored = await Requests(redis).load(request_id)
        assert stored is not None
        assert stored.summary.record.tenant == "ada"
        with pytest.raises(RequestNotFound) as caught:
            await other.cancel(request_id)
        with pytest.raises(RequestNotFound) as unknown:
            await other.cancel("f" * len(request_id))
        assert caught.value.message.replace(request_id, "") == unknown.value.message.replace("f" * 32, "")
        assert await owner.cancel(request_id)
        with pytest.raises(HekatonError):
            await call


async def test_a_tenants_requests_at_the_same_time_are_limited(
    address: str, redis: Redis, worker: FakeWorker, served: tuple[RouterClient, str]
) -> None:
    key = await key_of(redis, Tenant("ada", concurrent=1))
    async with Client(address, api_key=key) as client:
        call = asyncio.create_task(client.complete("m", "hello", SHORT))
        request_id = await worker.take()
        error = await refused(address, key)
        assert isinstance(error, QuotaExceeded)
        assert error.retry_after_s == 1
        async with openai_client(served[1], key) as http:
            with pytest.raises(openai.RateLimitError) as limited:
                await http.completions.create(model="m", prompt="hello")
        assert limited.value.response.headers["retry-after"] == "1"
        await client.cancel(request_id)
        with pytest.raises(HekatonError):
            await call

    async def active() -> int:
        return int(await redis.zcard(SHARD_0.active("ada")))

    await eventually(active, lambda count: count == 0)
    await served_one(address, key, worker)


async def test_a_tenants_minute_is_limited_in_requests_and_in_tokens_that_were_used(
    address: str, redis: Redis, worker: FakeWorker
) -> None:
    await early_in_a_minute(redis)
    few = await key_of(redis, Tenant("ada", requests_per_minute=1))
    await served_one(address, few, worker)
    error = await refused(address, few)
    assert isinstance(error, QuotaExceeded)
    assert 0 < (error.retry_after_s or 0) <= 60
    # 5 of the prompt and 10 asked for, of which 5 come: three times 10 fit into 35, and a fourth does not.
    some = await key_of(redis, Tenant("eve", tokens_per_minute=35))

    async def spent() -> int:
        return int(await redis.hget(SHARD_0.spent("eve"), "tokens") or 0)

    for used in (10, 20, 30):
        await served_one(address, some, worker)
        await eventually(spent, partial(eq, used))
    assert isinstance(await refused(address, some), QuotaExceeded)
    assert "shorten" in (await refused(address, some, prompt="x" * 30)).message
