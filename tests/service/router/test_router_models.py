"""The catalog over real gRPC, with a memory service that answers as it is told; tokenizers."""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from redis.asyncio import Redis

from fakes.memory import FakeMemory, fake_memory
from fakes.router import RouterClient, eventually
from fakes.worker import FakeWorker
from hekaton.errors import AlreadyExists, HekatonError, InvalidArgument, InvalidCheckpoint, ModelNotFound, Unavailable
from hekaton.facts import CatalogEntry, Slo
from hekaton.policy.costs import DeviceProfile, guessed_costs
from hekaton.rpc import convert
from hekaton.rpc.errors import from_rpc_error
from hekaton.store.catalog import Catalog
from hekaton.store.profiles import Profiles
from hekaton.v1 import common_pb2, inference_pb2, models_pb2
from hekaton.v1.models_pb2 import (
    DeleteModelRequest,
    GetModelRequest,
    ListModelsRequest,
    RegisterModelRequest,
    UpdateModelRequest,
)

REAL = RegisterModelRequest(name="real", source="/models/real", dtype="float32")


@pytest.fixture
async def memory(redis: Redis, router: RouterClient) -> AsyncIterator[FakeMemory]:
    """A memory service that the router knows."""
    async with fake_memory(redis) as memory:
        memory.error = InvalidCheckpoint("not now")
        memory.go_on.set()
        await eventually(lambda: refused(router, REAL), lambda error: isinstance(error, InvalidCheckpoint))
        memory.error = None
        memory.go_on.clear()
        await memory.asked.get()
        yield memory


async def refused(router: RouterClient, request: RegisterModelRequest) -> HekatonError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.models.RegisterModel(request)
    return from_rpc_error(caught.value)


async def names(router: RouterClient) -> list[str]:
    return [model.name for model in (await router.models.ListModels(ListModelsRequest())).models]


async def test_a_model_is_shown_with_what_workers_have_measured(redis: Redis, router: RouterClient) -> None:
    request = RegisterModelRequest(name="e", source="emulated:yi-1.5-9b")
    spec = (await router.models.RegisterModel(request)).model.spec
    costs = guessed_costs(spec.weight_bytes, spec.kv_bytes_per_token)
    profile = DeviceProfile("emulated:h800", 80 << 30, costs)
    await Profiles(redis).put({spec.digest: profile})
    model = (await router.models.GetModel(GetModelRequest(name="e"))).model
    assert [convert.profile_from_pb(one) for one in model.profiles] == [profile]


async def test_an_emulated_model_is_ready_at_once(router: RouterClient) -> None:
    request = RegisterModelRequest(name="e", source="emulated:yi-1.5-9b", slo=common_pb2.Slo(tbt=convert.duration(0.5)))
    model = (await router.models.RegisterModel(request)).model
    assert (model.state, model.spec.architecture) == (models_pb2.MODEL_STATE_READY, "emulated")
    assert convert.slo_from_pb(model.slo, Slo(0, 0)) == Slo(10.0, 0.5)
    assert (await router.models.GetModel(GetModelRequest(name="e"))).model == model
    assert await names(router) == ["e", "m"]
    assert isinstance(await refused(router, request), AlreadyExists)


@pytest.mark.parametrize(
    "bad",
    [
        RegisterModelRequest(name="", source="emulated:yi-1.5-9b"),
        RegisterModelRequest(name="a b", source="emulated:yi-1.5-9b"),
        RegisterModelRequest(name="a", source=""),
        RegisterModelRequest(name="a", source="emulated:nothing"),
        RegisterModelRequest(name="a", source="emulated:yi-1.5-9b", dtype="float32"),
        RegisterModelRequest(name="a", source="/there", dtype="int8"),
    ],
)
async def test_a_bad_registration_is_an_invalid_argument(router: RouterClient, bad: RegisterModelRequest) -> None:
    assert isinstance(await refused(router, bad), InvalidArgument)
    assert await names(router) == ["m"]


async def test_without_a_memory_service_nothing_can_be_prepared(router: RouterClient) -> None:
    error = await refused(router, REAL)
    assert isinstance(error, Unavailable)
    assert error.retry_after_s
    assert await names(router) == ["m"]


async def test_a_model_is_in_preparation_until_it_is_ready(router: RouterClient, memory: FakeMemory) -> None:
    registration = asyncio.ensure_future(router.models.RegisterModel(REAL))
    assert await memory.asked.get() == ("/models/real", "float32")
    model = (await router.models.GetModel(GetModelRequest(name="real"))).model
    assert model.state == models_pb2.MODEL_STATE_PREPARING
    assert isinstance(await refused(router, REAL), AlreadyExists)
    memory.go_on.set()
    assert (await registration).model.state == models_pb2.MODEL_STATE_READY
    model = (await router.models.GetModel(GetModelRequest(name="real"))).model
    assert (model.state, model.spec.digest) == (models_pb2.MODEL_STATE_READY, "digest")


async def test_a_model_in_preparation_is_not_stored(router: RouterClient, memory: FakeMemory, redis: Redis) -> None:
    """So a router that is killed leaves none behind for ever."""
    registration = asyncio.ensure_future(router.models.RegisterModel(REAL))
    await memory.asked.get()
    assert await names(router) == ["m", "real"]
    assert await Catalog(redis).get("real") is None
    memory.go_on.set()
    await registration
    assert await Catalog(redis).get("real") is not None


async def test_the_end_of_a_registration_does_not_undo_a_delete(router: RouterClient, memory: FakeMemory) -> None:
    registration = asyncio.ensure_future(refused(router, REAL))
    await memory.asked.get()
    await router.models.DeleteModel(DeleteModelRequest(name="real"))
    assert await names(router) == ["m"]
    memory.go_on.set()
    assert isinstance(await registration, ModelNotFound)
    assert await names(router) == ["m"]


async def test_a_checkpoint_that_cannot_be_served_leaves_no_model(router: RouterClient, memory: FakeMemory) -> None:
    memory.error = InvalidCheckpoint("the file is torn")
    memory.go_on.set()
    error = await refused(router, REAL)
    assert (type(error), error.message) == (InvalidCheckpoint, "the file is torn")
    assert await names(router) == ["m"]


async def test_a_caller_that_goes_away_leaves_no_model(router: RouterClient, memory: FakeMemory) -> None:
    registration = router.models.RegisterModel(REAL)
    await memory.asked.get()
    registration.cancel()
    await eventually(lambda: names(router), lambda found: found == ["m"])


async def test_an_objective_can_be_changed_and_a_model_removed(router: RouterClient, redis: Redis) -> None:
    slo = common_pb2.Slo(ttft=convert.duration(3))
    await router.models.UpdateModel(UpdateModelRequest(name="m", slo=slo))
    entry = await Catalog(redis).get("m")
    assert entry is not None
    assert entry.slo == Slo(3.0, 0.1)
    await router.models.DeleteModel(DeleteModelRequest(name="m"))
    assert await names(router) == []
    for call in (
        router.models.DeleteModel(DeleteModelRequest(name="m")),
        router.models.GetModel(GetModelRequest(name="m")),
        router.models.UpdateModel(UpdateModelRequest(name="m", slo=slo)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert isinstance(from_rpc_error(caught.value), ModelNotFound)


async def test_a_model_has_no_class(router: RouterClient) -> None:
    slo = common_pb2.Slo(slo_class=common_pb2.SLO_CLASS_BATCH)
    for call in (
        router.models.UpdateModel(UpdateModelRequest(name="m", slo=slo)),
        router.models.RegisterModel(RegisterModelRequest(name="e", source="emulated:yi-1.5-9b", slo=slo)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "slo.slo_class" in (caught.value.details() or "")


async def test_a_model_says_where_its_weights_are(router: RouterClient, worker: FakeWorker) -> None:
    worker.status.running_model = "m"
    worker.status.resident_models.append("m")
    await worker.register()

    async def where() -> tuple[list[str], list[str]]:
        model = (await router.models.GetModel(GetModelRequest(name="m"))).model
        return list(model.resident_worker_ids), list(model.running_worker_ids)

    await eventually(where, lambda found: found == (["worker-1"], ["worker-1"]))


async def test_text_and_tokens_go_both_ways(router: RouterClient, model: CatalogEntry) -> None:
    tokenize = inference_pb2.TokenizeRequest(model="m", text="naïve")
    token_ids = (await router.inference.Tokenize(tokenize)).token_ids
    assert bytes(token_ids) == "naïve".encode()
    detokenize = inference_pb2.DetokenizeRequest(model="m", token_ids=token_ids)
    assert (await router.inference.Detokenize(detokenize)).text == "naïve"


async def test_a_tokenizer_comes_from_the_memory_service_once(router: RouterClient, memory: FakeMemory) -> None:
    memory.go_on.set()
    await router.models.RegisterModel(REAL)
    chat = inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="user", content="hi")])
    for _ in range(2):
        answer = await router.inference.Tokenize(inference_pb2.TokenizeRequest(model="real", chat=chat))
        assert bytes(answer.token_ids) == b"^[hi]"
    assert memory.tokenizers == 1
