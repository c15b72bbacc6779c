"""Clean-up that must happen although the call that asked for it is gone."""

import asyncio
from collections.abc import Callable, Coroutine

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from hekaton.errors import HekatonError, StoreUnavailable

log = structlog.get_logger(__name__)
MAX_CHORES = 10_000
Chore = Callable[[], Coroutine[object, object, object]]


class Chores:
    """Done one after the other; while Redis is away they wait for it."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Chore] = asyncio.Queue(MAX_CHORES)

    def add(self, chore: Chore) -> None:
        """One too many is left undone: a worker that announces the request is told instead."""
        try:
            self._queue.put_nowait(chore)
        except asyncio.QueueFull:
            log.warning("clean-up left undone", waiting=self._queue.qsize())

    async def run(self) -> None:
        """Until cancelled."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable), wait=wait_random_exponential(multiplier=0.05, max=1.0)
        )
        while True:
            chore = await self._queue.get()
            try:
                await retrying(_done, chore)
            except HekatonError as error:
                log.info("chore without effect", why=error.message)
            finally:
                self._queue.task_done()

    async def flush(self, timeout_s: float) -> None:
        """Waits until all are done, at most so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
        except TimeoutError:
            log.warning("stopped before all clean-up was done", left=self._queue.qsize())


async def _done(chore: Chore) -> None:
    await chore()
