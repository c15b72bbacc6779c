from redis.asyncio import Redis

from hekaton.policy.costs import DeviceProfile
from hekaton.policy.types import ModelCosts
from hekaton.store.keys import SHARD_0
from hekaton.store.profiles import Profiles

COSTS = ModelCosts(1000, 10, 0.5, 0.02, 0.001, 0.01, 0.0005, 1e-6)


async def test_costs_are_kept_by_model_and_kind_of_device(redis: Redis) -> None:
    profiles = Profiles(redis)
    slow, fast = DeviceProfile("cpu", 1 << 30, COSTS.slowed(9)), DeviceProfile("cuda", 8 << 30, COSTS)
    await profiles.put({"d1": slow, "d2": fast})
    await profiles.put({"d1": fast})
    assert await profiles.of("d1") == (slow, fast)
    assert await profiles.on("d2", "cuda") == fast
    assert await profiles.on("d2", "cpu") is None
    await profiles.put({"d2": DeviceProfile("cuda", 8 << 30, COSTS.slowed(2))})
    assert [one.costs for one in await profiles.of("d2")] == [COSTS.slowed(2)]
    assert await redis.ttl(SHARD_0.profiles("d1")) > 0


async def test_a_damaged_profile_counts_as_none(redis: Redis) -> None:
    await redis.hset(SHARD_0.profiles("d"), "cpu", '{"device": "cpu"}')
    assert await Profiles(redis).of("d") == ()
    assert await Profiles(redis).on("d", "cpu") is None
