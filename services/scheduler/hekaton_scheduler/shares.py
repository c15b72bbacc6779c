"""Fairness between tenants: what they have used of the pool, and who has to yield."""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from hekaton.errors import StoreUnavailable
from hekaton.policy.fairness import Usage, over_share
from hekaton.store.tenants import Tenants

log = structlog.get_logger(__name__)
EVERY_S = 1.0
MAX_NAMES = 256
"""Of tenants whose seconds are told one by one."""
OTHERS = "other tenants"


class Shares:
    """Adds up what workers report and `tell`s who yields whenever that changes. A new leader begins with nothing."""

    def __init__(self, tenants: Tenants, workers: Callable[[], int], tell: Callable[[frozenset[str]], None]) -> None:
        self._tenants = tenants
        self._workers = workers
        self._tell = tell
        self._usage = Usage()
        self._weights: dict[str, float] = {}
        self.yielding: frozenset[str] = frozenset()
        self.total_s: dict[str, float] = {}
        """Used by each since this leader came."""

    def charge(self, used_s: Mapping[str, float]) -> None:
        now_s = asyncio.get_running_loop().time()
        for tenant, seconds in used_s.items():
            self._usage.charge(tenant, seconds, now_s)
            name = tenant if tenant in self.total_s or len(self.total_s) < MAX_NAMES else OTHERS
            self.total_s[name] = self.total_s.get(name, 0.0) + seconds

    async def turn(self) -> float:
        """Compares the shares once; how long to wait for the next time, in seconds."""
        rates = self._usage.rates(asyncio.get_running_loop().time())
        try:
            self._weights = await self._tenants.weights(sorted(rates))
        except StoreUnavailable as error:
            log.warning("tenants keep the weights that they had", why=error.message)
        # One who is alone may be named, without effect: whoever comes next goes before him from his first request on.
        over = over_share(rates, self._weights, self._workers())
        if over != self.yielding:
            self.yielding = over
            self._tell(over)
        return EVERY_S
