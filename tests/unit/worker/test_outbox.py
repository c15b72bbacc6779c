import asyncio

from hekaton_worker.outbox import Outbox


async def test_messages_come_out_in_order_and_then_the_end() -> None:
    outbox: Outbox[int] = Outbox()
    outbox.put(1)
    outbox.put(2)
    outbox.close()
    assert [await outbox.get() for _ in range(3)] == [1, 2, None]


async def test_a_receiver_that_is_too_slow_loses_its_stream_and_holds_up_nobody() -> None:
    outbox: Outbox[int] = Outbox(limit=2)
    for number in range(4):
        outbox.put(number)
    assert outbox.closed
    assert await outbox.get() is None


async def test_a_waiting_receiver_wakes_up() -> None:
    outbox: Outbox[int] = Outbox()
    waiting = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    outbox.put(7)
    assert await asyncio.wait_for(waiting, 1) == 7
