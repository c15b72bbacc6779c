"""Who may use a pool, and how much of it each has used."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from redis.asyncio import Redis

from hekaton.errors import QuotaExceeded
from hekaton.facts import Tenant
from hekaton.store.connect import translated
from hekaton.store.keys import SHARD_0, Keys
from hekaton.store.scripts import Script

PREFIX = "hk"
ID_BYTES, SECRET_BYTES = 6, 32
KEY_ID_CHARS = 2 * ID_BYTES


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What is kept of an API key. Its secret has 256 random bits: a plain hash of it tells nobody anything."""

    key_id: str
    tenant: str
    digest: str
    created: int


class Tenants:
    """Tenants and their keys. All methods raise StoreUnavailable if Redis is away."""

    def __init__(self, redis: Redis, keys: Keys = SHARD_0) -> None:
        self._redis = redis
        self._keys = keys

    async def put(self, tenant: Tenant) -> None:
        """Creates or replaces."""
        with translated():
            await self._redis.hset(self._keys.tenants, tenant.name, msgspec.json.encode(tenant))

    async def get(self, name: str) -> Tenant | None:
        with translated():
            stored = await self._redis.hget(self._keys.tenants, name)
        return msgspec.json.decode(stored, type=Tenant) if stored is not None else None

    async def weights(self, names: Sequence[str]) -> dict[str, float]:
        """Of those that are known."""
        if not names:
            return {}
        with translated():
            stored = await self._redis.hmget(self._keys.tenants, list(names))
        found = [msgspec.json.decode(one, type=Tenant) for one in stored if one is not None]
        return {tenant.name: tenant.weight for tenant in found}

    async def create_key(self, tenant: str) -> str:
        """A new key of a tenant: shown once, never stored."""
        key_id, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
        stored = StoredKey(key_id, tenant, _digest(secret), int(time.time()))
        with translated():
            await self._redis.hset(self._keys.api_keys, key_id, msgspec.json.encode(stored))
        return f"{PREFIX}-{key_id}-{secret}"

    async def keys(self) -> list[StoredKey]:
        """All of them, the oldest first."""
        with translated():
            stored = await self._redis.hvals(self._keys.api_keys)
        return sorted((msgspec.json.decode(one, type=StoredKey) for one in stored), key=lambda one: one.created)

    async def revoke(self, key_id: str) -> bool:
        """From the next call on. False if there is no such key."""
        with translated():
            return bool(await self._redis.hdel(self._keys.api_keys, key_id))

    async def owner(self, api_key: str) -> Tenant | None:
        """Whose key it is; None if nobody's."""
        prefix, _, rest = api_key.partition("-")
        key_id, _, secret = rest.partition("-")
        if prefix != PREFIX or not secret or not api_key.isascii():
            return None
        with translated():
            stored = await self._redis.hget(self._keys.api_keys, key_id)
        if stored is None:
            return None
        known = msgspec.json.decode(stored, type=StoredKey)
        return await self.get(known.tenant) if hmac.compare_digest(known.digest, _digest(secret)) else None


class Spending:
    """What tenants use, over all routers. All methods raise StoreUnavailable if Redis is away."""

    def __init__(self, redis: Redis, keys: Keys = SHARD_0) -> None:
        self._keys = keys
        self._charge = Script(redis, "charge")
        self._settle = Script(redis, "settle")

    async def charge(self, tenant: Tenant, request_id: str, tokens: int, ttl_s: float) -> int:
        """Takes a request and the most tokens that it can use; the minute that it is charged to.

        `ttl_s` is how long it can last. Raises QuotaExceeded.
        """
        limits = tenant.requests_per_minute, tenant.tokens_per_minute, tenant.concurrent
        refusal, number = await self._charge(
            tuple[str, int], self._names(tenant.name), request_id, tokens, *limits, int(1000 * ttl_s)
        )
        if refusal:
            limit = getattr(tenant, refusal)
            message = f"tenant {tenant.name} has reached its limit: {refusal} = {limit}; try again later"
            raise QuotaExceeded(message, retry_after_s=number / 1000)
        return number

    async def settle(self, tenant: str, request_id: str, minute: int, unused_tokens: int) -> None:
        """A request has ended."""
        await self._settle(bool, self._names(tenant), request_id, minute, unused_tokens)

    def _names(self, tenant: str) -> tuple[str, str]:
        return self._keys.spent(tenant), self._keys.active(tenant)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
