"""The model repository of the Open Inference Protocol: the pool's catalog."""

import asyncio
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from redis.asyncio import Redis

from fakes.router import RouterClient, address_of, eventually, running_router
from fakes.worker import FakeWorker
from hekaton.errors import HekatonError, InvalidArgument, ModelNotFound, PermissionDenied
from hekaton.facts import CatalogEntry, ModelState, Tenant
from hekaton.oip import open_inference_pb2 as pb
from hekaton.oip import open_inference_pb2_grpc as pb_grpc
from hekaton.rpc.channel import open_channel
from hekaton.rpc.errors import from_rpc_error
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.tenants import Tenants

LOAD = pb.RepositoryModelLoadRequest(model_name="m")
UNLOAD = pb.RepositoryModelUnloadRequest(
    model_name="m", parameters={"unload_dependents": pb.ModelRepositoryParameter(bool_param=False)}
)
CONFIG = {"config": pb.ModelRepositoryParameter(string_param="{}")}
Change = pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest


async def index(router: RouterClient, *, ready: bool = False) -> dict[str, tuple[str, str]]:
    """Name → state and reason."""
    told = await router.open_inference.RepositoryIndex(pb.RepositoryIndexRequest(ready=ready))
    assert all(model.version == "1" for model in told.models)
    return {model.name: (model.state, model.reason) for model in told.models}


async def refused(stub: pb_grpc.GRPCInferenceServiceStub, request: Change) -> HekatonError:
    load = isinstance(request, pb.RepositoryModelLoadRequest)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (stub.RepositoryModelLoad(request) if load else stub.RepositoryModelUnload(request))  # type: ignore[arg-type]
    return from_rpc_error(caught.value)


async def test_the_index_has_every_name_its_state_and_where_it_is(
    router: RouterClient, worker: FakeWorker, redis: Redis, model: CatalogEntry
) -> None:
    await Catalog(redis).set_alias("chat", "m")
    await Catalog(redis).create(replace(model, name="torn", state=ModelState.FAILED, error="the file is torn"))
    ready = {"chat": ("READY", "on no device"), "m": ("READY", "on no device")}
    assert await index(router) == {**ready, "torn": ("UNAVAILABLE", "the file is torn")}
    assert await index(router, ready=True) == ready
    worker.status.resident_models.append("m")
    await worker.register()
    await eventually(lambda: index(router), lambda told: told["chat"] == ("READY", "on worker-1"))


async def test_a_load_answers_when_a_worker_has_the_model(router: RouterClient, worker: FakeWorker) -> None:
    load = asyncio.ensure_future(router.open_inference.RepositoryModelLoad(LOAD))
    request_id = await worker.take()
    worker.step(request_id, 0, [65])
    assert not load.done()
    worker.finish(request_id, 1)
    await load


async def test_an_unload_ends_a_pin(router: RouterClient, redis: Redis, model: CatalogEntry) -> None:
    await Catalog(redis).replace(model, replace(model, source="/models/m", pinned=True))
    await router.open_inference.RepositoryModelUnload(UNLOAD)
    entry = await Catalog(redis).get("m")
    assert entry is not None
    assert not entry.pinned


async def test_what_a_repository_does_not_do_is_refused_by_name(router: RouterClient) -> None:
    bad: list[tuple[Change, str]] = [
        (pb.RepositoryModelLoadRequest(model_name="m", parameters=CONFIG), "'config' is not supported"),
        (pb.RepositoryModelUnloadRequest(model_name="m", parameters=CONFIG), "'config' is not supported"),
        (pb.RepositoryModelLoadRequest(repository_name="m"), "repository_name: there is one repository"),
        (pb.RepositoryModelUnloadRequest(repository_name="m"), "repository_name: there is one repository"),
    ]
    for request, message in bad:
        error = await refused(router.open_inference, request)
        assert isinstance(error, InvalidArgument)
        assert message in error.message
    nobody = pb.RepositoryModelUnloadRequest(model_name="nobody")
    assert isinstance(await refused(router.open_inference, nobody), ModelNotFound)


async def test_only_an_administrator_loads_and_unloads(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry, worker: FakeWorker
) -> None:
    async with running_router(redis, redis_server.url, auth="keys") as router:
        await router.until_serving()
        await Tenants(redis).put(Tenant("ada", models=("other",)))
        key = await Tenants(redis).create_key("ada")
        async with open_channel(await address_of(redis, "router-1"), api_key=key) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            for request in (LOAD, UNLOAD):
                assert isinstance(await refused(stub, request), PermissionDenied)
            assert not (await stub.RepositoryIndex(pb.RepositoryIndexRequest())).models
