"""What the Open Inference Protocol tells of the server and its models."""

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor
from redis.asyncio import Redis

from fakes.router import RouterClient, address_of, running_router
from fakes.worker import FakeWorker
from hekaton import __version__
from hekaton.errors import HekatonError, ModelNotFound, PermissionDenied, Unauthenticated
from hekaton.facts import CatalogEntry, Tenant
from hekaton.oip import open_inference_pb2 as pb
from hekaton.oip import open_inference_pb2_grpc as pb_grpc
from hekaton.rpc.channel import open_channel
from hekaton.rpc.errors import from_rpc_error
from hekaton.store.catalog import Catalog
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.tenants import Tenants


async def ready(router: RouterClient, name: str, version: str = "") -> bool:
    return (await router.open_inference.ModelReady(pb.ModelReadyRequest(name=name, version=version))).ready


async def metadata_error(stub: pb_grpc.GRPCInferenceServiceStub, name: str, version: str = "") -> HekatonError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelMetadata(pb.ModelMetadataRequest(name=name, version=version))
    return from_rpc_error(caught.value)


async def call_once(stub: pb_grpc.GRPCInferenceServiceStub, method: MethodDescriptor) -> None:
    """With an empty request, which a guard refuses before anybody reads it."""
    call, request = getattr(stub, method.name), getattr(pb, method.input_type.name)()
    if method.client_streaming:
        await anext(aiter(call(iter([request]))))
    else:
        await call(request)


async def test_the_server_says_what_it_is_and_whether_it_serves(router: RouterClient, worker: FakeWorker) -> None:
    stub = router.open_inference
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    told = await stub.ServerMetadata(pb.ServerMetadataRequest())
    assert (told.name, told.version) == ("hekaton", __version__)
    assert "model_repository" in told.extensions
    await worker.leave()
    await router.until_serving(False)
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert not await ready(router, "m")


async def test_a_model_is_ready_by_each_of_its_names_and_in_its_version(router: RouterClient, redis: Redis) -> None:
    await Catalog(redis).set_alias("chat", "m")
    assert await ready(router, "m")
    assert await ready(router, "chat", "1")
    assert not await ready(router, "m", "2")
    assert not await ready(router, "nobody")


async def test_a_model_tells_its_tensors(router: RouterClient) -> None:
    told = await router.open_inference.ModelMetadata(pb.ModelMetadataRequest(name="m"))
    assert (told.name, list(told.versions), told.platform) == ("m", ["1"], "hekaton")
    inputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in told.inputs}
    assert inputs["text_input"] == ("BYTES", [1])
    assert inputs["input_ids"] == ("INT32", [-1])
    assert inputs["stream"] == ("BOOL", [1])
    assert {tensor.name: tensor.datatype for tensor in told.outputs}["text_output"] == "BYTES"
    assert isinstance(await metadata_error(router.open_inference, "nobody"), ModelNotFound)
    error = await metadata_error(router.open_inference, "m", "2")
    assert isinstance(error, ModelNotFound)
    assert "version 1 only" in error.message


async def test_every_call_of_the_open_protocol_needs_a_key(
    redis: Redis, redis_server: EmbeddedRedis, model: CatalogEntry, worker: FakeWorker
) -> None:
    async with running_router(redis, redis_server.url, auth="keys") as router:
        await router.until_serving()
        for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call_once(router.open_inference, method)
            assert isinstance(from_rpc_error(caught.value), Unauthenticated), method.name
        await Tenants(redis).put(Tenant("ada", models=("other",)))
        key = await Tenants(redis).create_key("ada")
        async with open_channel(await address_of(redis, "router-1"), api_key=key) as channel:
            stub = pb_grpc.GRPCInferenceServiceStub(channel)
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            assert isinstance(await metadata_error(stub, "m"), PermissionDenied)
