"""Waiting for a Redis that is away."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from hekaton.errors import StoreUnavailable

T = TypeVar("T")
MAX_WAITING = 1000


class Patience:
    """Lets a bounded number of calls wait until Redis is back."""

    def __init__(self, wait_s: float, *, most: int = MAX_WAITING) -> None:
        self._wait_s = wait_s
        self._most = most
        self._waiting = 0

    async def run(self, operation: Callable[[], Awaitable[T]], budget_s: float) -> T:
        """What `operation` returns, tried again for at most `budget_s` and the limit. Raises StoreUnavailable."""

        async def attempt() -> T:
            return await operation()

        try:
            return await attempt()
        except StoreUnavailable:
            if self._waiting >= self._most:
                raise
        self._waiting += 1
        try:
            return await AsyncRetrying(
                retry=retry_if_exception_type(StoreUnavailable),
                wait=wait_random_exponential(multiplier=0.05, max=1.0),
                stop=stop_before_delay(min(budget_s, self._wait_s)),
                reraise=True,
            )(attempt)
        finally:
            self._waiting -= 1
