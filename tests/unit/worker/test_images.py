"""Images over a real MemoryService: what the engine asks for is leased, kept, and given back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from opentelemetry import trace
from redis.asyncio import Redis

from fakes.leases import LeasingMemory, leasing_memory
from fakes.workers import SPEC, add_model
from hekaton.engine.messages import AddModel, Command, ImageFailed, ImageReady
from hekaton.errors import InvalidCheckpoint, ResourceExhausted, Unavailable
from hekaton.store.catalog import Catalog
from hekaton_worker.crew import Crew
from hekaton_worker.images import Images
from hekaton_worker.models import KnownModels


class Fixture:
    """Images of one worker; `needed` says whether a request waits for the model."""

    def __init__(self, memory: LeasingMemory, images: Images, models: KnownModels) -> None:
        self.memory = memory
        self.images = images
        self.models = models
        self.posted: asyncio.Queue[Command] = asyncio.Queue()
        self.needed = True

    def waiting(self, model: str) -> trace.Span | None:
        return trace.INVALID_SPAN if self.needed else None

    async def answer(self) -> Command:
        return await asyncio.wait_for(self.posted.get(), 5)


@asynccontextmanager
async def setting(redis: Redis) -> AsyncIterator[Fixture]:
    await add_model(redis)
    async with leasing_memory() as (memory, stub), asyncio.TaskGroup() as group:
        crew, models = Crew(group), KnownModels(Catalog(redis))
        images = Images(stub, "w1", models, lambda model: fixture.waiting(model), crew)
        fixture = Fixture(memory, images, models)
        await models.ensure("m1", fixture.posted.put_nowait)
        assert await fixture.answer() == AddModel("m1", SPEC, "emulated:qwen2.5-7b")
        yield fixture
        crew.dismiss()


async def test_an_image_is_leased_renewed_and_released(redis: Redis) -> None:
    async with setting(redis) as now:
        renewal = asyncio.create_task(now.images.renew())
        now.images.want("m1", now.posted.put_nowait)
        ready = await now.answer()
        assert isinstance(ready, ImageReady)
        assert ready.image.path == "/image"
        assert (now.memory.acquired[0].holder_id, now.memory.acquired[0].digest) == ("w1", SPEC.digest)
        assert await asyncio.wait_for(now.memory.renewed.get(), 5) == ["lease-1"]
        now.images.drop("m1")
        assert await asyncio.wait_for(now.memory.released.get(), 5) == "lease-1"
        renewal.cancel()


@pytest.mark.parametrize("refusal", [ResourceExhausted("no room"), Unavailable("not yet")])
async def test_a_passing_refusal_is_tried_again(redis: Redis, refusal: ResourceExhausted | Unavailable) -> None:
    async with setting(redis) as now:
        now.memory.refusals.append(refusal)
        now.images.want("m1", now.posted.put_nowait)
        assert isinstance(await now.answer(), ImageReady)


async def test_a_passing_refusal_is_final_when_nobody_waits_for_the_model(redis: Redis) -> None:
    async with setting(redis) as now:
        now.needed = False
        now.memory.refusals.append(ResourceExhausted("no room"))
        now.images.want("m1", now.posted.put_nowait)
        assert isinstance(await now.answer(), ImageFailed)
        assert len(now.memory.acquired) == 1


async def test_any_other_refusal_is_told_as_it_is(redis: Redis) -> None:
    async with setting(redis) as now:
        now.memory.refusals.append(InvalidCheckpoint("truncated"))
        now.images.want("m1", now.posted.put_nowait)
        code = InvalidCheckpoint.code.value[0]
        assert await now.answer() == ImageFailed("m1", code, "INVALID_CHECKPOINT", "truncated")


async def test_an_image_of_a_model_that_was_registered_anew_is_not_given(redis: Redis) -> None:
    async with setting(redis) as now:
        now.images.want("m1", now.posted.put_nowait)
        catalog = Catalog(redis)
        entry = await catalog.get("m1")
        assert entry is not None
        now.memory.refusals.append(ResourceExhausted("no room yet"))
        await catalog.put(replace(entry, spec=replace(SPEC, digest="newer")))
        await now.models.ensure("m1", now.posted.put_nowait)
        assert isinstance(await now.answer(), AddModel)
        assert await asyncio.wait_for(now.memory.released.get(), 5)
        assert now.posted.empty()


async def test_a_dead_engine_leaves_no_lease(redis: Redis) -> None:
    async with setting(redis) as now:
        now.images.want("m1", now.posted.put_nowait)
        await now.answer()
        now.images.drop_all()
        assert await asyncio.wait_for(now.memory.released.get(), 5) == "lease-1"
