"""Says in Redis that this memory service lives. A Redis that is away stops nothing here."""

import asyncio
import time
from contextlib import suppress

import structlog
from redis.asyncio import Redis

from hekaton.config import MemorySettings
from hekaton.errors import StaleTerm, StoreUnavailable
from hekaton.store.keys import Kind
from hekaton.store.workers import Registry

MAX_BACKOFF_S = 5.0

log = structlog.get_logger(__name__)


class Registration:
    """The entry of one memory service: its id and, as info, its address."""

    def __init__(self, redis: Redis, settings: MemorySettings, memory_id: str, address: str) -> None:
        self._registry = Registry(redis, Kind.MEMORY)
        self._settings = settings
        self._memory_id = memory_id
        self._address = address
        self._incarnation = time.time_ns() // 1_000_000

    async def keep(self, stop: asyncio.Event) -> None:
        """Heartbeats until `stop`, then says goodbye. Sets `stop` if a newer process took the id.

        Ends by the event and not by a cancel, which redis-py loses under Python 3.11 if a reply comes at that moment.
        """
        wait_s = 0.0
        while not stop.is_set():
            wait_s = await self._heartbeat(wait_s, stop)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await stop.wait()
        try:
            await self._registry.remove(self._memory_id, self._incarnation)
        except StoreUnavailable:
            log.warning("could not say goodbye; the registration runs out by itself", memory_id=self._memory_id)

    async def _heartbeat(self, last_wait_s: float, stop: asyncio.Event) -> float:
        """Returns how long to wait for the next one; longer and longer while Redis is away."""
        settings = self._settings
        try:
            await self._registry.heartbeat(self._memory_id, self._address.encode(), settings.lease_s, self._incarnation)
        except StoreUnavailable as error:
            log.warning("not registered; trying again", error=error.message)
            return min(max(2 * last_wait_s, settings.heartbeat_s), MAX_BACKOFF_S)
        except StaleTerm as error:
            log.error(error.message)
            stop.set()
        return settings.heartbeat_s
