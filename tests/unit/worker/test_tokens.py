"""The token streams of a worker, without routers."""

import asyncio

from hekaton_worker.desk import Desk
from hekaton_worker.tokens import TokenStreams


async def test_a_router_that_nobody_waits_for_is_forgotten() -> None:
    """Else a worker would remember every router that there ever was."""
    streams = TokenStreams()
    desk = Desk(streams, lambda command: None, 0.0, lambda: False)
    stream = streams.open("gone", desk)
    streams.forget("gone", stream)
    desk.await_router("gone")
    assert streams.awaited == {"gone"}
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not streams.awaited
