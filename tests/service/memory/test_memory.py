"""The memory service over real gRPC, with a real Redis and real builders."""

import asyncio
import json
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from fakes.checkpoints import write_checkpoint
from fakes.memories import ROOM_BYTES, MemoryClient, running_memory
from fakes.redis import connected
from fakes.waiting import eventually
from hekaton.errors import InvalidArgument, InvalidCheckpoint, ModelNotReady, ResourceExhausted
from hekaton.facts import Image
from hekaton.rpc.convert import image_from_pb, seconds
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import Kind
from hekaton.store.workers import Registry
from hekaton.v1 import common_pb2
from hekaton.v1 import memory_pb2 as pb
from hekaton_memory.__main__ import main

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with EmbeddedRedis() as redis:
        yield redis.url


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint as large, with weights of its own."""
    return str(write_checkpoint(tmp_path_factory.mktemp("other"), seed=2))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small checkpoint."""
    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint")))


def check_segment(image: Image, weight_bytes: int) -> None:
    path = Path(image.path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.stat().st_size == image.nbytes == weight_bytes
    assert all(entry.offset + entry.nbytes <= image.nbytes for entry in image.tensors)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MemoryClient]:
    """Room for one image of the checkpoint, not for two."""
    async with running_memory(redis_url, tmp_path_factory.mktemp("memory") / "segments", ROOM_BYTES) as service:
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spec(service: MemoryClient, source: str) -> common_pb2.ModelSpec:
    """The checkpoint, prepared for two clients at once."""
    first, second = await asyncio.gather(service.prepare(source), service.prepare(source))
    assert first == second
    return first


async def test_a_prepared_checkpoint_is_described(service: MemoryClient, spec: common_pb2.ModelSpec) -> None:
    status = await service.status()
    assert [image.digest for image in status.images] == [spec.digest]
    assert spec.weight_bytes <= status.used_bytes == status.images[0].bytes < status.budget_bytes
    assert (spec.architecture, spec.dtype) == ("LlamaForCausalLM", "float32")


async def test_a_lease_maps_every_tensor(service: MemoryClient, spec: common_pb2.ModelSpec, source: str) -> None:
    lease = await service.acquire(spec.digest, source)
    image = image_from_pb(lease)
    check_segment(image, spec.weight_bytes)
    assert json.loads(image.config_json)["model_type"] == "llama"
    assert seconds(lease.duration) == 2 * service.settings.lease_s
    await service.release(lease)
    await service.release(lease)
    assert [image.leases for image in (await service.status()).images] == [0]


async def test_only_a_holder_renews_his_leases(service: MemoryClient, spec: common_pb2.ModelSpec, source: str) -> None:
    lease = await service.acquire(spec.digest, source, "worker-1")
    for holder_id, lost in (("worker-1", ["never given"]), ("worker-2", [lease.lease_id, "never given"])):
        request = pb.RenewLeasesRequest(holder_id=holder_id, lease_ids=[lease.lease_id, "never given"])
        assert list((await service.stub.RenewLeases(request)).lost_lease_ids) == lost
    await service.release(lease)


async def test_a_leased_image_is_not_dropped_for_another(
    service: MemoryClient, spec: common_pb2.ModelSpec, source: str, other: str
) -> None:
    lease = await service.acquire(spec.digest, source)
    with pytest.raises(ResourceExhausted, match="host_memory"):
        await service.prepare(other)
    await service.release(lease)


async def test_images_take_turns_within_the_budget(
    service: MemoryClient, spec: common_pb2.ModelSpec, source: str, other: str
) -> None:
    second = await service.prepare(other)
    assert second.digest != spec.digest
    assert [image.digest for image in (await service.status()).images] == [second.digest]
    # What was dropped is still described, without a rebuild ...
    assert await service.prepare(source) == spec
    tokenizer = await service.stub.GetTokenizer(pb.GetTokenizerRequest(digest=spec.digest, source=source))
    assert json.loads(tokenizer.tokenizer_json)
    assert [image.digest for image in (await service.status()).images] == [second.digest]
    # ... and is built again when a worker wants it.
    await service.release(await service.acquire(spec.digest, source))
    assert [image.digest for image in (await service.status()).images] == [spec.digest]
    # A checkpoint that became another one is refused.
    write_checkpoint(Path(other), seed=3)
    with pytest.raises(ModelNotReady, match=f"{second.digest}.*register it again"):
        await service.acquire(second.digest, other)
    status = await service.status()
    assert status.images[0].digest not in (spec.digest, second.digest)
    assert [image.leases for image in status.images] == [0]


async def test_who_goes_away_leaves_neither_work_nor_lease(
    service: MemoryClient, spec: common_pb2.ModelSpec, source: str
) -> None:
    half = service.stub.PrepareModel(pb.PrepareModelRequest(source=source, dtype="float16"))
    assert (await anext(aiter(half))).HasField("progress")
    half.cancel()
    wanted = service.stub.AcquireWeights(
        pb.AcquireWeightsRequest(holder_id="w", digest="f" * 64, source=source, dtype="bfloat16")
    )
    assert (await anext(aiter(wanted))).HasField("progress")
    wanted.cancel()
    before = [image.digest for image in (await service.status()).images]

    async def quiet() -> bool:
        return not list(service.directory.glob("build-*"))

    await eventually(quiet, timeout_s=2)
    after = (await service.status()).images
    assert [image.digest for image in after] == before
    assert [image.leases for image in after] == [0] * len(after)


@pytest.mark.parametrize(("source", "dtype"), [("", ""), ("--help", ""), ("anywhere", "int3")])
async def test_requests_that_make_no_sense_are_refused(service: MemoryClient, source: str, dtype: str) -> None:
    with pytest.raises(InvalidArgument):
        await service.prepare(source, dtype)
    with pytest.raises(InvalidArgument):
        await service.acquire("", source)


@pytest.mark.parametrize("damage", ["corrupt", "truncated", "pickle", "absent"])
async def test_a_bad_checkpoint_fails_alone(
    damage: str, service: MemoryClient, spec: common_pb2.ModelSpec, source: str, tmp_path: Path
) -> None:
    bad = shutil.copytree(source, tmp_path / damage)
    weights = bad / "model.safetensors"
    if damage == "corrupt":
        weights.write_bytes(b"\xff" * weights.stat().st_size)
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "pickle":
        weights.rename(bad / "pytorch_model.bin")
    else:
        shutil.rmtree(bad)
    with pytest.raises(InvalidCheckpoint) as raised:
        await service.prepare(str(bad))
    assert len(raised.value.message) > 20
    assert await service.prepare(source) == spec
    assert not list(service.directory.glob("build-*"))


async def test_a_stop_in_mid_build_leaves_nothing(redis_url: str, source: str, tmp_path: Path) -> None:
    async with running_memory(redis_url, tmp_path / "segments", ROOM_BYTES) as service:
        half = service.stub.PrepareModel(pb.PrepareModelRequest(source=source))
        assert (await anext(aiter(half))).HasField("progress")


async def test_it_says_in_redis_where_it_is(service: MemoryClient, redis_url: str) -> None:
    async with connected(redis_url) as redis:
        live = await Registry(redis, Kind.MEMORY).list()
    assert live[service.settings.memory_id].decode() == service.settings.listen


async def test_a_redis_that_is_away_stops_nothing(tmp_path: Path) -> None:
    with EmbeddedRedis(socket_dir=tmp_path) as redis:
        async with running_memory(redis.url, tmp_path / "segments", ROOM_BYTES) as service:
            redis.kill()
            assert (await service.status()).used_bytes == 0
            redis.start()
            async with connected(redis.url) as client:
                registry = Registry(client, Kind.MEMORY)

                async def registered() -> bool:
                    return service.settings.memory_id in await registry.list()

                await eventually(registered)


async def test_no_two_services_share_a_directory(service: MemoryClient, redis_url: str) -> None:
    settings = service.settings.model_copy(update={"listen": "127.0.0.1:0"})
    with pytest.raises(InvalidArgument, match="in use by another memory service"):
        await main(settings, asyncio.Event())
    assert service.directory.exists()
