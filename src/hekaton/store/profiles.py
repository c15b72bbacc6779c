"""What models cost on each kind of device, as workers have measured: beside the catalog, and longer than a worker."""

from collections.abc import Mapping

import structlog
from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis

from hekaton.policy.costs import DeviceProfile
from hekaton.store.connect import translated
from hekaton.store.keys import SHARD_0, Keys

log = structlog.get_logger(__name__)
KEPT_S = 90 * 24 * 3600
"""After the last measurement."""
_JSON = TypeAdapter(DeviceProfile)


class Profiles:
    """By digest of the model. All methods raise StoreUnavailable if Redis is away."""

    def __init__(self, redis: Redis, keys: Keys = SHARD_0) -> None:
        self._redis = redis
        self._keys = keys

    async def put(self, profiles: Mapping[str, DeviceProfile]) -> None:
        """By digest: each replaces what was known of its kind of device."""
        with translated():
            async with self._redis.pipeline(transaction=False) as pipe:
                for digest, profile in profiles.items():
                    pipe.hset(self._keys.profiles(digest), profile.device, _JSON.dump_json(profile))
                    pipe.expire(self._keys.profiles(digest), KEPT_S)
                await pipe.execute()

    async def of(self, digest: str) -> tuple[DeviceProfile, ...]:
        """Of one model, by device."""
        with translated():
            stored = await self._redis.hgetall(self._keys.profiles(digest))
        found = (_decode(digest, value) for value in stored.values())
        return tuple(sorted((one for one in found if one), key=lambda one: one.device))

    async def on(self, digest: str, device: str) -> DeviceProfile | None:
        with translated():
            stored = await self._redis.hget(self._keys.profiles(digest), device)
        return _decode(digest, stored) if stored is not None else None


def _decode(digest: str, stored: bytes | str) -> DeviceProfile | None:
    """None for what is damaged or written by another version: it is measured again."""
    try:
        return _JSON.validate_json(stored)
    except ValidationError as error:
        log.error("a profile cannot be decoded", digest=digest, why=str(error))
        return None
