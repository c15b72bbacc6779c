"""Says in Redis that this worker lives, and what it does. A Redis that is away stops nothing here."""

import asyncio
import time
from functools import partial

import structlog

from hekaton.config import WorkerSettings
from hekaton.errors import StaleTerm, StoreUnavailable
from hekaton.store.workers import Registry
from hekaton.tasks import forever
from hekaton_worker.status import StatusBoard

log = structlog.get_logger(__name__)


class Registration:
    def __init__(self, registry: Registry, board: StatusBoard, settings: WorkerSettings) -> None:
        self._registry = registry
        self._board = board
        self._settings = settings
        self._incarnation = time.time_ns() // 1_000_000
        self._lease_ends_s = 0.0
        """On this process's own clock, counted from before it was asked for."""

    @property
    def holds_lease(self) -> bool:
        """Nobody can have given this worker's requests to another one."""
        return asyncio.get_running_loop().time() < self._lease_ends_s

    async def run(self, stop: asyncio.Event) -> None:
        """Heartbeats until cancelled. Sets `stop` if a newer process took the id."""
        await forever(partial(self._turn, stop))

    async def _turn(self, stop: asyncio.Event) -> float:
        try:
            await self.beat()
        except StoreUnavailable as error:
            log.warning("not registered; trying again", why=error.message)
        except StaleTerm as error:
            log.error(error.message)
            stop.set()
        return self._settings.heartbeat_s

    async def beat(self) -> None:
        status, asked_s = self._board.status(), asyncio.get_running_loop().time()
        await self._registry.heartbeat(
            status.worker_id, status.SerializeToString(), self._settings.lease_s, self._incarnation
        )
        self._lease_ends_s = asked_s + self._settings.lease_s

    async def leave(self) -> None:
        try:
            await self._registry.remove(self._board.worker_id, self._incarnation)
        except StoreUnavailable:
            log.warning("could not say goodbye; the registration runs out by itself")
