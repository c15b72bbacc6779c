"""What the leader thinks that the pool can promise to new requests, for routers to read."""

from pydantic import TypeAdapter
from redis.asyncio import Redis

from hekaton.policy.admission import Promise
from hekaton.store.connect import translated
from hekaton.store.keys import SHARD_0, Keys

_JSON = TypeAdapter(Promise)


class Outlooks:
    """All methods raise StoreUnavailable if Redis is away."""

    def __init__(self, redis: Redis, keys: Keys = SHARD_0) -> None:
        self._redis = redis
        self._key = keys.outlooks

    async def publish(self, promise: Promise, ttl_s: float) -> None:
        """Holds for `ttl_s`."""
        with translated():
            await self._redis.set(self._key, _JSON.dump_json(promise), px=round(ttl_s * 1000))

    async def read(self) -> Promise:
        """Nothing if nobody has said anything lately."""
        with translated():
            published = await self._redis.get(self._key)
        return _JSON.validate_json(published) if published else Promise({})
