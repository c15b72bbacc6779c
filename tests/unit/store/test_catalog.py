import pytest
from redis.asyncio import Redis

from fakes.records import catalog_entry
from hekaton.errors import AlreadyExists
from hekaton.facts import ModelState
from hekaton.store.catalog import Catalog


async def test_a_model_is_created_once_and_replaced_by_put(redis: Redis) -> None:
    catalog = Catalog(redis)
    await catalog.create(catalog_entry())
    with pytest.raises(AlreadyExists, match="m1"):
        await catalog.create(catalog_entry())
    ready = catalog_entry(state=ModelState.READY)
    await catalog.put(ready)
    assert await catalog.get("m1") == ready


async def test_models_are_listed_by_name_until_deleted(redis: Redis) -> None:
    catalog = Catalog(redis)
    for name in ("b", "a"):
        await catalog.put(catalog_entry(name))
    assert [entry.name for entry in await catalog.list()] == ["a", "b"]
    assert await catalog.delete("a")
    assert not await catalog.delete("a")
    assert await catalog.get("a") is None
