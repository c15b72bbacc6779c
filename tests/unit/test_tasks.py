"""Tasks that lose a cancellation, as redis-py and grpc.aio make them, end nevertheless."""

import asyncio

import pytest

from hekaton import tasks
from hekaton.tasks import dismiss, end, forever


class Deaf:
    """Swallows the first cancellation and goes on."""

    def __init__(self) -> None:
        self.waits = 0

    async def turn(self) -> float:
        self.waits += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.waits > 1:
                raise
        return 0.0

    async def run(self) -> None:
        while True:
            await self.turn()


async def started(task: asyncio.Task[None]) -> asyncio.Task[None]:
    await asyncio.sleep(0)
    return task


async def test_a_loop_whose_turn_swallows_the_cancellation_ends() -> None:
    deaf = Deaf()
    task = asyncio.create_task(forever(deaf.turn))
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(1):
        await asyncio.wait([task])
    assert (task.cancelled(), deaf.waits) == (True, 1)


async def test_a_loop_pauses_as_long_as_its_turn_says() -> None:
    pauses = iter([0.0, 0.02, 60.0])
    clock = asyncio.get_running_loop().time
    turns: list[float] = []

    async def turn() -> float:
        turns.append(clock())
        return next(pauses)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await forever(turn)
    assert len(turns) == 3
    assert turns[2] - turns[1] >= 0.02


async def test_a_task_that_swallows_its_first_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_S", 0.02)
    task = await started(asyncio.create_task(Deaf().run()))
    async with asyncio.timeout(1):
        await end(task)
    assert task.cancelled()


async def test_a_group_ends_although_a_dismissed_task_swallowed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_S", 0.02)
    async with asyncio.timeout(1), asyncio.TaskGroup() as group:
        dismiss(await started(group.create_task(Deaf().run())))


async def test_a_task_has_time_to_clean_up() -> None:
    cleaned = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            cleaned.set()

    await end(await started(asyncio.create_task(work())))
    assert cleaned.is_set()
