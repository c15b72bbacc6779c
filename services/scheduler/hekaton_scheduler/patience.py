"""What a leader does while Redis is away: it waits. Its lease bounds for how long."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from hekaton.errors import StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")


async def patiently(act: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Tries until the store answers."""
    with suppress(StoreUnavailable):
        # The usual case costs no more than the call.
        return await act(*args, **kwargs)
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(StoreUnavailable), wait=wait_random_exponential(multiplier=0.05, max=1.0)
    )
    return await retrying(act, *args, **kwargs)
