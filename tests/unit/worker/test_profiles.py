"""Costs between the engine and the store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
from redis.asyncio import Redis

from fakes.waiting import eventually
from fakes.workers import SPEC, add_model
from hekaton.engine.messages import AddModel, Command, Ready
from hekaton.policy.costs import DeviceProfile, guessed_costs
from hekaton.store.catalog import Catalog
from hekaton.store.profiles import Profiles
from hekaton.tasks import end
from hekaton_worker.models import KnownModels
from hekaton_worker.profiles import ProfileKeeper
from hekaton_worker.status import NOTHING_YET, StatusBoard

SOURCE = "emulated:qwen2.5-7b"
COSTS = guessed_costs(SPEC.weight_bytes, SPEC.kv_bytes_per_token)
PROFILE = DeviceProfile("cpu", 1 << 30, COSTS)


class Fixture:
    def __init__(self, redis: Redis) -> None:
        self.posted: asyncio.Queue[Command] = asyncio.Queue()
        self.profiles = Profiles(redis)
        self.models = KnownModels(Catalog(redis), rehearse=True)
        self.board = StatusBoard("w1")
        self.board.restart(Ready("cpu", 1 << 30))
        catalog, post = Catalog(redis), self.posted.put_nowait
        self.keeper = ProfileKeeper(catalog, self.profiles, self.models, self.board, post, 0.01, follow=True)

    async def command(self) -> Command:
        return await asyncio.wait_for(self.posted.get(), 30)

    async def is_stored(self) -> bool:
        return await self.profiles.on(SPEC.digest, "cpu") is not None

    async def is_known(self) -> bool:
        return bool(self.board.take_costs(everything=True))


@asynccontextmanager
async def keeping(redis: Redis) -> AsyncIterator[Fixture]:
    fixture = Fixture(redis)
    task = asyncio.create_task(fixture.keeper.run())
    yield fixture
    await end(task)


async def test_models_that_nobody_has_measured_are_rehearsed_and_new_ones_always(redis: Redis) -> None:
    await add_model(redis, "unknown")
    async with keeping(redis) as now:
        assert await now.command() == AddModel("unknown", SPEC, SOURCE, None, rehearse=True)
        await Profiles(redis).put({SPEC.digest: PROFILE})
        await add_model(redis, "new")
        assert await now.command() == AddModel("new", SPEC, SOURCE, COSTS, rehearse=True)


async def test_a_restarted_worker_knows_what_was_measured(redis: Redis) -> None:
    await Profiles(redis).put({SPEC.digest: PROFILE})
    await add_model(redis, "known")
    async with keeping(redis) as now:
        await eventually(now.is_known, 30)
        assert now.posted.empty()
        await now.models.ensure("known", now.posted.put_nowait)
        assert await now.command() == AddModel("known", SPEC, SOURCE, COSTS)


async def test_what_is_measured_is_stored_and_what_is_known_in_part_is_not(redis: Redis) -> None:
    await add_model(redis, "a")
    async with keeping(redis) as now:
        await now.command()
        now.keeper.measured(msgspec.structs.replace(NOTHING_YET, costs={"a": COSTS.slowed(3)}, in_part=("a",)))
        now.keeper.measured(msgspec.structs.replace(NOTHING_YET, costs={"a": COSTS.slowed(2), "b": COSTS}))
        await eventually(now.is_stored, 30)
        assert await now.profiles.on(SPEC.digest, "cpu") == replace(PROFILE, costs=COSTS.slowed(2))
