"""The queue of accepted requests: one stream, read by the leading scheduler alone."""

from typing import NamedTuple

from redis.asyncio import Redis

from hekaton.store.connect import translated
from hekaton.store.keys import SHARD_0, Keys
from hekaton.store.scripts import Script

MAX_BLOCK_MS = 3000
"""Well below the reply timeout of the connection."""


class Entry(NamedTuple):
    entry_id: str
    request_id: str


class _Taken(NamedTuple):
    entries: tuple[Entry, ...]
    delivered: str
    """The newest entry that was ever given to anyone."""


class Queue:
    """One scheduler's end of the queue. An entry stays pending until `Requests.place` deletes it.

    Entries are taken by a script that checks the term, so that a leader which was replaced takes none. Waiting is a
    plain XREAD, which takes nothing either: a cancelled `read` loses no entry, the next one returns it.
    """

    def __init__(self, redis: Redis, consumer: str, keys: Keys = SHARD_0) -> None:
        self._redis = redis
        self._consumer = consumer
        self._keys = keys
        self._seen = "0-0"
        self._take = Script(redis, "take")
        self._claim = Script(redis, "claim")

    async def claim_all(self, term: int) -> tuple[Entry, ...]:
        """At takeover: everything that is pending with anyone, in order. Raises StaleTerm, StoreUnavailable."""
        entries, self._seen = await self._claim(_Taken, self._names(), self._consumer, term)
        return entries

    async def read(self, term: int, count: int, block_ms: int) -> tuple[Entry, ...]:
        """At most `count` new entries; waits for the first at most `block_ms` (3,000 at most). () if none came.

        Raises StaleTerm, StoreUnavailable.
        """
        entries, delivered = await self._take(_Taken, self._names(), self._consumer, term, self._seen, count)
        if not entries and block_ms > 0 and await self._wait(delivered, min(block_ms, MAX_BLOCK_MS)):
            entries, _ = await self._take(_Taken, self._names(), self._consumer, term, self._seen, count)
        if entries:
            self._seen = entries[-1][0]
        return entries

    async def _wait(self, after: str, block_ms: int) -> bool:
        """Until there is an entry behind `after`, on a connection that nobody else uses meanwhile."""
        with translated():
            return bool(await self._redis.xread({self._keys.queue: after}, count=1, block=block_ms))

    def _names(self) -> tuple[str, str]:
        return self._keys.queue, self._keys.term
