"""Other names of models, preloading, counting: what ModelService and InferenceService offer besides the main job."""

import asyncio

import pytest
from redis.asyncio import Redis

from fakes.http import http_router, openai_client
from fakes.router import RouterClient, address_of
from fakes.worker import FakeWorker
from hekaton.client import Client, Message, Model, SamplingOptions
from hekaton.errors import AlreadyExists, HekatonError, InvalidArgument, ModelNotFound, PermissionDenied
from hekaton.facts import CatalogEntry, Tenant
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.requests import Requests
from hekaton.store.tenants import Tenants


@pytest.fixture
async def client(router: RouterClient, redis: Redis) -> Client:
    return Client(await address_of(redis, "router-1"))


async def model_of_next(worker: FakeWorker, redis: Redis, *tokens: int) -> str:
    """Answers the next request with these tokens; the model that it was for."""
    request_id = await worker.take()
    await worker.produced.get()
    worker.step(request_id, 0, tokens)
    worker.finish(request_id, len(tokens))
    stored = await Requests(redis).load(request_id)
    assert stored is not None
    return stored.summary.record.model


async def asked(client: Client, model: str, worker: FakeWorker, redis: Redis) -> str:
    """The model that a request by this name reaches."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(client.complete(model, "hello", SamplingOptions(max_tokens=5)))
        found = tasks.create_task(model_of_next(worker, redis, 65))
    return found.result()


async def test_an_alias_reaches_its_model_and_is_switched_at_once(
    client: Client, worker: FakeWorker, redis: Redis
) -> None:
    async with client:
        await client.register_model("other", "emulated:yi-1.5-9b")
        assert await client.set_alias("prod", "m") == ""
        assert await asked(client, "prod", worker, redis) == "m"
        assert await client.set_alias("prod", "other") == "m"
        assert await asked(client, "prod", worker, redis) == "other"
        assert (await client.get_model("prod")).name == "other"
        assert {model.name: model.aliases for model in await client.list_models()} == {"m": (), "other": ("prod",)}
        await client.delete_alias("prod")
        with pytest.raises(ModelNotFound):
            await client.get_model("prod")


@pytest.mark.parametrize(
    ("alias", "target", "error", "says"),
    [
        ("m", "m", AlreadyExists, "name of a model"),
        ("a b", "m", InvalidArgument, "^alias must be"),
        ("prod", "nobody", ModelNotFound, "no model is registered as 'nobody'"),
    ],
)
async def test_an_alias_that_cannot_be_is_refused(
    client: Client, alias: str, target: str, error: type[HekatonError], says: str
) -> None:
    async with client:
        with pytest.raises(error, match=says):
            await client.set_alias(alias, target)


async def test_names_and_aliases_do_not_meet_and_a_lost_model_is_told_of(client: Client) -> None:
    async with client:
        await client.set_alias("prod", "m")
        with pytest.raises(AlreadyExists, match="prod is an alias of model m"):
            await client.register_model("prod", "emulated:yi-1.5-9b")
        await client.delete_model("m")
        with pytest.raises(ModelNotFound, match="prod points at m, which is not registered"):
            await client.complete("prod", "hello")
        with pytest.raises(ModelNotFound, match="no alias 'm'"):
            await client.delete_alias("m")


async def test_a_tenant_may_use_an_alias_or_what_it_points_at(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry, worker: FakeWorker
) -> None:
    tenants = Tenants(redis)
    for tenant in (Tenant("root", admin=True), Tenant("by-alias", models=("prod",)), Tenant("neither", models=("x",))):
        await tenants.put(tenant)
    keys = {name: await tenants.create_key(name) for name in ("root", "by-alias", "neither")}
    async with http_router(redis, redis_server.url, "keys") as (_, http_address):
        address = await address_of(redis, "router-1")
        async with Client(address, api_key=keys["by-alias"]) as user:
            with pytest.raises(PermissionDenied):
                await user.set_alias("prod", "m")
            async with Client(address, api_key=keys["root"]) as root:
                await root.set_alias("prod", "m")
            assert await asked(user, "prod", worker, redis) == "m"
            with pytest.raises(PermissionDenied):
                await user.complete("m", "hello")
        async with Client(address, api_key=keys["neither"]) as user:
            with pytest.raises(PermissionDenied):
                await user.complete("prod", "hello")
        for name, listed in (("by-alias", ["m", "prod"]), ("neither", [])):
            async with openai_client(http_address, keys[name]) as openai:
                ids = [one.id async for one in openai.models.list()]
                assert [one for one in ids if one != "m"] == [one for one in listed if one != "m"]


async def test_preloading_answers_where_the_model_is(client: Client, worker: FakeWorker, redis: Redis) -> None:
    async with client, asyncio.TaskGroup() as tasks:
        loading = tasks.create_task(client.preload_model("m"))
        assert await model_of_next(worker, redis, 65) == "m"
        assert await loading == "worker-1"


async def test_tokens_are_counted_as_they_would_be_sent(client: Client) -> None:
    async with client:
        for prompt in ("hello", [Message("user", "hello")]):
            assert await client.count_tokens("m", prompt) == len(await client.tokenize("m", prompt))
        with pytest.raises(InvalidArgument, match="chat is empty"):
            await client.count_tokens("m", [])


async def test_a_model_says_when_it_was_registered_and_pins_need_weights(client: Client) -> None:
    async with client:
        registered: Model = await client.register_model("e", "emulated:yi-1.5-9b")
        assert registered.created > 1_700_000_000
        with pytest.raises(InvalidArgument, match="pinned: e is emulated"):
            await client.pin_model("e")
        assert (await client.pin_model("e", False)).pinned is False
