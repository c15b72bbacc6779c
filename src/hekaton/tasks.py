"""Tasks that run until they are cancelled, and do end then.

A cancellation can get lost below us: in Python 3.11 `asyncio.wait_for`, under which redis-py sends, returns a result
that comes at the same moment; a stream of grpc.aio that has had no message yet raises the error of a connection that
breaks at the same moment.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

AGAIN_S = 2.0
"""Longer than a healthy task needs to clean up: cancelling again cuts that short."""


async def forever(turn: Callable[[], Awaitable[float]]) -> NoReturn:
    """Until cancelled: takes turns, each after the pause in seconds that the one before it returned."""
    while True:
        pause_s = await turn()
        heed_cancellation()
        await asyncio.sleep(pause_s)


def heed_cancellation() -> None:
    """Raises CancelledError if the current task was told to end and does not know it."""
    if (task := asyncio.current_task()) and task.cancelling():
        raise asyncio.CancelledError


def dismiss(*tasks: asyncio.Task[object]) -> None:
    """Cancels tasks, and every AGAIN_S those that have not ended."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        asyncio.get_running_loop().call_later(AGAIN_S, dismiss, *running)


async def end(*tasks: asyncio.Task[object]) -> None:
    """Dismisses tasks and waits until they have ended, however they do."""
    dismiss(*tasks)
    if tasks:
        await asyncio.wait(tasks)
