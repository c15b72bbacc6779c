"""The registered models."""

import msgspec
from redis.asyncio import Redis

from hekaton.errors import AlreadyExists
from hekaton.facts import CatalogEntry
from hekaton.store.connect import translated
from hekaton.store.keys import SHARD_0, Keys


class Catalog:
    """All methods raise StoreUnavailable if Redis is away."""

    def __init__(self, redis: Redis, keys: Keys = SHARD_0) -> None:
        self._redis = redis
        self._key = keys.catalog

    async def create(self, entry: CatalogEntry) -> None:
        """Raises AlreadyExists."""
        with translated():
            created = await self._redis.hsetnx(self._key, entry.name, _encode(entry))
        if not created:
            raise AlreadyExists(f"model {entry.name} is registered already; delete it first or choose another name")

    async def put(self, entry: CatalogEntry) -> None:
        """Creates or replaces."""
        with translated():
            await self._redis.hset(self._key, entry.name, _encode(entry))

    async def get(self, name: str) -> CatalogEntry | None:
        with translated():
            stored = await self._redis.hget(self._key, name)
        return _decode(stored) if stored is not None else None

    async def list(self) -> tuple[CatalogEntry, ...]:
        """All models, by name."""
        with translated():
            stored = await self._redis.hvals(self._key)
        return tuple(sorted(map(_decode, stored), key=lambda entry: entry.name))

    async def delete(self, name: str) -> bool:
        """False if there is no such model."""
        with translated():
            return bool(await self._redis.hdel(self._key, name))


def _encode(entry: CatalogEntry) -> str:
    return msgspec.json.encode(entry).decode()


def _decode(stored: bytes | str) -> CatalogEntry:
    return msgspec.json.decode(stored, type=CatalogEntry)
