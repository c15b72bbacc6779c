"""Who leads: one scheduler at a time, under a term that only grows."""

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from hekaton.errors import StoreUnavailable
from hekaton.store.leadership import MAX_TERM, Leadership
from hekaton.tasks import end

log = structlog.get_logger(__name__)
PROMPT_S = 0.01
"""After the end of a lease that somebody else may take it."""
Lead = Callable[[int], Coroutine[object, object, int]]
"""What a leader does under its term, until cancelled; it returns a newer term when one is known."""


class Election:
    """Acquires the lease, leads while it can renew it, stands by otherwise."""

    def __init__(self, leadership: Leadership, holder: str, ttl_s: float) -> None:
        self._leadership = leadership
        self._holder = holder
        self._ttl_s = ttl_s
        self._valid_until_s = 0.0
        """The end of the lease on this process's own clock, counted from before it was asked for."""
        self.term = 0
        """0 while somebody else leads."""

    async def run(self, lead: Lead) -> None:
        """Until cancelled; gives the lease back then."""
        least = 0
        while True:
            term = await self._win(least)
            least = min(await self._hold(term, lead) + 1, MAX_TERM)

    async def _win(self, least: int) -> int:
        while True:
            asked_s = asyncio.get_running_loop().time()
            again_s = self._ttl_s / 3
            try:
                term = await self._leadership.acquire(self._holder, self._ttl_s, at_least=least)
                if term is not None:
                    self._valid_until_s = asked_s + self._ttl_s
                    return term
                # A lease that is not renewed is taken over as it ends.
                again_s = min(again_s, await self._leadership.left_s() + PROMPT_S)
            except StoreUnavailable as error:
                log.warning("cannot stand for election", why=error.message)
            await asyncio.sleep(again_s)

    async def _hold(self, term: int, lead: Lead) -> int:
        """Leads; returns the newest term that is known then."""
        log.info("leading", term=term)
        self.term = term
        tasks = [asyncio.create_task(lead(term), name="lead"), asyncio.create_task(self._renew(term), name="renew")]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.term = 0
            await end(*tasks)
            await self._give_back(term)
        newest = max(task.result() for task in tasks if not task.cancelled())
        log.warning("standing by", last_term=term, newest_term=newest)
        return newest

    async def _renew(self, term: int) -> int:
        """Returns its term when the lease is lost."""
        loop = asyncio.get_running_loop()
        while loop.time() < self._valid_until_s:
            await asyncio.sleep(min(self._ttl_s / 3, self._valid_until_s - loop.time()))
            asked_s = loop.time()
            try:
                async with asyncio.timeout_at(self._valid_until_s):
                    if not await self._leadership.renew(self._holder, term, self._ttl_s):
                        return term
                self._valid_until_s = asked_s + self._ttl_s
            except (StoreUnavailable, TimeoutError):
                log.warning("lease not renewed", left_s=round(self._valid_until_s - loop.time(), 2))
        return term

    async def _give_back(self, term: int) -> None:
        try:
            await self._leadership.release(self._holder, term)
        except StoreUnavailable:
            log.warning("lease not given back; it runs out by itself")
