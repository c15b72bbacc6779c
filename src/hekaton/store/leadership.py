"""Who leads a shard: a lease that expires, and a term that only grows."""

from redis.asyncio import Redis

from hekaton.store.connect import translated
from hekaton.store.keys import SHARD_0, Keys
from hekaton.store.scripts import Script, convert

MAX_TERM = 1 << 52
"""That others may claim to have seen. Redis counts in doubles, which are exact a little beyond it."""


class Leadership:
    """All methods raise StoreUnavailable if Redis is away."""

    def __init__(self, redis: Redis, keys: Keys = SHARD_0) -> None:
        self._redis = redis
        self._names = (keys.leader, keys.term)
        self._acquire = Script(redis, "acquire")
        self._renew = Script(redis, "renew")
        self._release = Script(redis, "release")

    async def acquire(self, holder: str, ttl_s: float, *, at_least: int = 0) -> int | None:
        """A new term, None while somebody leads.

        The term is above every earlier one that Redis remembers, not below the server's clock in ms (Redis may have
        come back empty), and not below `at_least` (one above the term that a worker refused this leader for).
        """
        term = await self._acquire(tuple[int, ...], self._names, holder, _ms(ttl_s), at_least)
        return term[0] if term else None

    async def renew(self, holder: str, term: int, ttl_s: float) -> bool:
        """False if the holder no longer leads under this term: it stops leading and acquires anew."""
        return await self._renew(bool, self._names, holder, term, _ms(ttl_s))

    async def release(self, holder: str, term: int) -> bool:
        """Lets another lead at once. False if somebody else does already."""
        return await self._release(bool, self._names, holder, term)

    async def left_s(self) -> float:
        """How long the lease of whoever leads still lasts; 0 if nobody does."""
        with translated():
            left_ms = int(await self._redis.pttl(self._names[0]))
        return max(left_ms, 0) / 1000

    async def current(self) -> tuple[str, int] | None:
        """Who leads, and its term."""
        with translated():
            answer = await self._redis.mget(self._names)
        holder, term = convert(answer, tuple[str | None, int | None])
        return (holder, term) if holder is not None and term is not None else None


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
