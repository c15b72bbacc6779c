"""Ending tasks for certain."""

import asyncio
from collections.abc import Collection

AGAIN_S = 0.1


async def end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancels tasks until they have ended.

    Once is not enough: in Python 3.11 `asyncio.wait_for`, which redis-py uses, swallows a cancellation that comes
    together with its result.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=AGAIN_S)
