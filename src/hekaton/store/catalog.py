"""The registered models, and other names for them."""

import msgspec
import structlog
from redis.asyncio import Redis

from hekaton.errors import AlreadyExists
from hekaton.facts import CatalogEntry
from hekaton.store.connect import translated
from hekaton.store.keys import SHARD_0, Keys
from hekaton.store.scripts import Script

log = structlog.get_logger(__name__)


class Catalog:
    """All methods raise StoreUnavailable if Redis is away."""

    def __init__(self, redis: Redis, keys: Keys = SHARD_0) -> None:
        self._redis = redis
        self._key = keys.catalog
        self._version = keys.catalog_version
        self._aliases = keys.aliases
        self._swap = Script(redis, "swap")

    async def create(self, entry: CatalogEntry) -> None:
        """Raises AlreadyExists."""
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hsetnx(self._key, entry.name, _encode(entry))
                pipe.incr(self._version)
                created, _ = await pipe.execute()
        if not created:
            raise AlreadyExists(f"model {entry.name} is registered already; delete it first or choose another name")

    async def put(self, entry: CatalogEntry) -> None:
        """Creates or replaces."""
        with translated():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(self._key, entry.name, _encode(entry))
                pipe.incr(self._version)
                await pipe.execute()

    async def version(self) -> int:
        """Another one if models were registered since; what a model promises may change without it."""
        with translated():
            return int(await self._redis.get(self._version) or 0)

    async def replace(self, old: CatalogEntry, new: CatalogEntry) -> bool:
        """False if what is stored under the name is not `old` any more."""
        return await self._swap(bool, (self._key,), old.name, _encode(old), _encode(new))

    async def get(self, name: str) -> CatalogEntry | None:
        """None if there is no such model, or its entry cannot be read."""
        with translated():
            stored = await self._redis.hget(self._key, name)
        return _decode(name, stored) if stored is not None else None

    async def list(self) -> tuple[CatalogEntry, ...]:
        """All models that can be read, by name."""
        with translated():
            stored = await self._redis.hgetall(self._key)
        entries = (_decode(str(name), value) for name, value in stored.items())
        return tuple(sorted((entry for entry in entries if entry), key=lambda entry: entry.name))

    async def delete(self, name: str) -> bool:
        """False if there is no such model."""
        with translated():
            return bool(await self._redis.hdel(self._key, name))

    async def set_alias(self, alias: str, model: str) -> str:
        """Points an alias at a model, in one write; what it pointed at before, empty if it is new."""
        with translated():
            async with self._redis.pipeline() as both:
                both.hget(self._aliases, alias)
                both.hset(self._aliases, alias, model)
                before, _ = await both.execute()
        return _text(before) if before else ""

    async def alias(self, name: str) -> str:
        """The model that an alias points at; empty if there is no such alias."""
        with translated():
            model = await self._redis.hget(self._aliases, name)
        return _text(model) if model else ""

    async def aliases(self) -> dict[str, str]:
        """Models, by alias."""
        with translated():
            stored = await self._redis.hgetall(self._aliases)
        return {_text(alias): _text(model) for alias, model in sorted(stored.items())}

    async def delete_alias(self, alias: str) -> bool:
        """False if there is no such alias."""
        with translated():
            return bool(await self._redis.hdel(self._aliases, alias))


def _text(stored: bytes | str) -> str:
    return stored.decode() if isinstance(stored, bytes) else stored


def _encode(entry: CatalogEntry) -> str:
    return msgspec.json.encode(entry).decode()


def _decode(name: str, stored: bytes | str) -> CatalogEntry | None:
    """None for an entry that is damaged or written by another version: deleting it helps."""
    try:
        return msgspec.json.decode(stored, type=CatalogEntry)
    except msgspec.DecodeError as error:
        log.error("a catalog entry cannot be decoded", model=name, why=str(error))
        return None
