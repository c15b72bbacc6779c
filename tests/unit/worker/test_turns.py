from contextlib import aclosing

from hekaton.facts import TurnRecord
from hekaton_worker.turns import KEPT_TURNS, Turns


def turn(index: int) -> TurnRecord:
    return TurnRecord(index, "", "m1", float(index), 1.0, 0.0, True, 0, 1, 1, ())


async def test_turns_of_a_second_engine_go_on_counting() -> None:
    turns = Turns("w1")
    turns.add(turn(0), 1.0)
    turns.add(turn(0), 9.0)
    async with aclosing(turns.watch(10)) as seen:
        records = [await anext(seen) for _ in range(2)]
    assert [(one.index, one.worker_id, one.start_s) for one in records] == [(0, "w1", 1.0), (1, "w1", 9.0)]


async def test_a_watcher_sees_the_history_that_it_asks_for_then_what_comes() -> None:
    turns = Turns("w1")
    for index in range(5):
        turns.add(turn(index), 0.0)
    async with aclosing(turns.watch(2)) as seen:
        assert [(await anext(seen)).index for _ in range(2)] == [3, 4]
        turns.add(turn(5), 0.0)
        assert (await anext(seen)).index == 5
        turns.close()
        assert await anext(seen, None) is None


async def test_only_so_many_turns_are_kept() -> None:
    turns = Turns("w1")
    for index in range(KEPT_TURNS + 3):
        turns.add(turn(index), 0.0)
    async with aclosing(turns.watch(2 * KEPT_TURNS)) as seen:
        assert (await anext(seen)).index == 3
