"""Waiting for what another process does in its own time."""

from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, retry_if_not_result, stop_after_delay, wait_fixed

PATIENCE_S = 45.0
"""Of every test: long enough for a machine that has much else to do."""


async def eventually(holds: Callable[[], Awaitable[bool]], timeout_s: float = PATIENCE_S) -> None:
    """Returns when `holds` says so; raises RetryError if it does not in time."""
    waiting = AsyncRetrying(retry=retry_if_not_result(bool), wait=wait_fixed(0.02), stop=stop_after_delay(timeout_s))
    await waiting(holds)
