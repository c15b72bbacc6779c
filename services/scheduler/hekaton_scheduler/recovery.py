"""Requests that go back into the queue: refused, moved, handed over, or lost with their worker."""

import asyncio
from collections.abc import Container

import structlog

from hekaton.config import SchedulerSettings
from hekaton.facts import RequestState
from hekaton.store.requests import Requests
from hekaton_scheduler.patience import patiently

log = structlog.get_logger(__name__)


class Recovery:
    """All of it waits while Redis is away, and raises StaleTerm when a newer leader is known."""

    def __init__(self, settings: SchedulerSettings, store: Requests, term: int) -> None:
        self._settings = settings
        self._store = store
        self._term = term

    async def requeue(self, request_id: str, epoch: int, *, lost: bool = False) -> RequestState | None:
        """Only a loss counts as a failure. The state that holds now, None if that epoch is over."""
        holds = await patiently(
            self._store.requeue,
            request_id,
            epoch,
            term=self._term,
            lost=lost,
            max_attempts=self._settings.max_attempts,
        )
        log.info("request taken back", request_id=request_id, epoch=epoch, lost=lost, state=holds)
        return holds

    async def recover(self, worker_id: str) -> None:
        """Everything that a lost worker held."""
        for request_id, epoch in await patiently(self._store.held_by, worker_id):
            await self.requeue(request_id, epoch, lost=True)

    async def sweep(self, linked: Container[str]) -> None:
        """Recovers what workers held that died while nobody led. Those that live have said so by then."""
        await asyncio.sleep(self._settings.lease_s)
        for worker_id in await patiently(self._store.holders):
            if worker_id not in linked:
                await self.recover(worker_id)
