"""Which workers and memory services live: each says so before its lease ends."""

from collections.abc import Sequence

from redis.asyncio import Redis

from hekaton.store.connect import translated
from hekaton.store.keys import SHARD_0, Keys, Kind
from hekaton.store.scripts import Script

INCARNATION_MEMORY_S = 24 * 3600
"""For so long after its last heartbeat a process is refused if a newer one took its id."""


class Registry:
    """The live members of one kind. All methods raise StoreUnavailable if Redis is away."""

    def __init__(self, redis: Redis, kind: Kind, keys: Keys = SHARD_0) -> None:
        self._redis = redis
        self._kind = kind
        self._keys = keys
        self._heartbeat = Script(redis, "heartbeat")
        self._members = Script(redis, "members")
        self._remove = Script(redis, "remove")

    async def heartbeat(self, member_id: str, info: bytes, ttl_s: float, incarnation: int) -> None:
        """Lives for `ttl_s` more, and says `info` of itself.

        `incarnation` grows with every process that uses the id. Raises StaleTerm if a newer one was here.
        """
        ttls = round(ttl_s * 1000), incarnation, INCARNATION_MEMORY_S * 1000
        await self._heartbeat(bool, self._names(member_id), member_id, info, *ttls)

    async def list(self) -> dict[str, bytes]:
        """What each live member last said, by id."""
        keys = (self._keys.members(self._kind),)
        prefix = self._keys.member_prefix(self._kind)
        members = await self._members(tuple[tuple[bytes, bytes], ...], keys, prefix, binary=True)
        return {member_id.decode(): info for member_id, info in members}

    async def lapsed(self, member_ids: Sequence[str]) -> frozenset[str]:
        """Of members that are not listed, those whose leases ran out. The others are forgotten with all else."""
        if not member_ids:
            return frozenset()
        with translated():
            known = await self._redis.mget([self._keys.incarnation(self._kind, name) for name in member_ids])
        return frozenset(name for name, incarnation in zip(member_ids, known, strict=True) if incarnation is not None)

    async def remove(self, member_id: str, incarnation: int) -> bool:
        """Says goodbye. False if it was gone, or a newer process has its id."""
        return await self._remove(bool, self._names(member_id), member_id, incarnation)

    def _names(self, member_id: str) -> tuple[str, str, str]:
        kind, keys = self._kind, self._keys
        return keys.member(kind, member_id), keys.members(kind), keys.incarnation(kind, member_id)
