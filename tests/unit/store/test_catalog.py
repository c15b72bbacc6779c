import pytest
from redis.asyncio import Redis

from fakes.records import catalog_entry
from hekaton.errors import AlreadyExists
from hekaton.facts import ModelState
from hekaton.store.catalog import Catalog
from hekaton.store.keys import Keys


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


async def test_an_entry_that_cannot_be_decoded_hides_itself_only_and_can_be_deleted(redis: Redis) -> None:
    catalog = Catalog(redis)
    await catalog.put(catalog_entry("good"))
    await redis.hset(Keys().catalog, "bad", "{")
    assert [entry.name for entry in await catalog.list()] == ["good"]
    assert await catalog.get("bad") is None
    assert await catalog.delete("bad")


async def test_an_update_that_comes_after_a_delete_changes_nothing(redis: Redis) -> None:
    catalog = Catalog(redis)
    old, new = catalog_entry(), catalog_entry(state=ModelState.READY)
    await catalog.create(old)
    assert await catalog.replace(old, new)
    assert not await catalog.replace(old, new)
    await catalog.delete("m1")
    assert not await catalog.replace(new, old)
    assert await catalog.get("m1") is None
