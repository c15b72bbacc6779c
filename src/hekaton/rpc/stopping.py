"""The end of a process: asked for by a signal, certain after a while."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable

import structlog

log = structlog.get_logger(__name__)
LAST_RESORT_S = 10.0
"""Beyond the drain; what a service does after it is bounded by less."""
GAVE_UP = 70
"""The exit status of a process that did not end by itself (EX_SOFTWARE)."""


async def until_stopped(main: Awaitable[None], stop: asyncio.Event, limit_s: float) -> None:
    """Waits for `main`, which a first SIGTERM or SIGINT tells to stop.

    A second one ends the process on the spot. So does `limit_s`, both after it was told and after `main` has ended.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _signalled, stop)
    guard = asyncio.create_task(_guard(stop, limit_s), name="last resort")
    try:
        await main
    finally:
        guard.cancel()
        # Tasks that are left, or the interpreter's own end, may hang as well.
        _end_within(limit_s)


def _signalled(stop: asyncio.Event) -> None:
    if stop.is_set():
        _give_up("a second signal", asyncio.get_running_loop())
    stop.set()


async def _guard(stop: asyncio.Event, limit_s: float) -> None:
    await stop.wait()
    _end_within(limit_s)


def _end_within(limit_s: float) -> None:
    """In a thread, because the event loop may be what hangs."""
    why = f"it has not ended {limit_s:g} s after it was told to"
    timer = threading.Timer(limit_s, _give_up, (why, asyncio.get_running_loop()))
    timer.daemon = True
    timer.start()


def _give_up(why: str, loop: asyncio.AbstractEventLoop) -> None:
    try:
        log.error("ended by force", why=why, tasks=sorted(task.get_name() for task in asyncio.all_tasks(loop)))
        sys.stderr.flush()
    finally:
        os._exit(GAVE_UP)
