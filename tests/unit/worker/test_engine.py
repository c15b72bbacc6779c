import asyncio
import os
import signal

import pytest

from hekaton.engine.messages import Event, Ready
from hekaton.engine.options import EngineOptions
from hekaton.errors import EngineFailed
from hekaton_worker.engine import MAX_DEATHS, EngineKeeper


async def test_an_engine_that_keeps_dying_is_given_up() -> None:
    started = 0

    def on_start() -> None:
        nonlocal started
        started += 1

    def on_event(event: Event) -> None:
        if isinstance(event, Ready):
            os.kill(keeper.pid, signal.SIGKILL)

    options = EngineOptions("emulated", "h800", 1_000_000, "w1")
    keeper = EngineKeeper(options, on_start, on_event, lambda request_ids: None, 60.0)
    with pytest.raises(EngineFailed, match="SIGKILL"):
        await asyncio.wait_for(keeper.run(), 30)
    assert started == MAX_DEATHS + 1
