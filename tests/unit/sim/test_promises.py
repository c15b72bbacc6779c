"""What the slack policy promises in any small world; that turns are not cut short is checked by the world itself."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.simworlds import World, arrivals, costs
from hekaton.engine.room import PARK_S
from hekaton.sim.workload import Arrival

MODELS = {"a": costs(), "b": costs(), "c": costs(weight_bytes=150), "d": costs(weight_bytes=80)}
MIN_TURN_S = 0.4
WORLDS = arrivals(sorted(MODELS), 60)


def world(memory_bytes: int) -> World:
    return World(MODELS, memory_bytes, min_turn_s=MIN_TURN_S, host_bytes=500)


@settings(max_examples=60, deadline=None)
@given(WORLDS, st.integers(150 + 128, 700))
def test_the_same_world_decides_the_same(asked: list[Arrival], memory_bytes: int) -> None:
    once, again = world(memory_bytes), world(memory_bytes)
    assert once.run(asked) == again.run(asked)
    assert once.policy.decided == again.policy.decided


@settings(max_examples=60, deadline=None)
@given(WORLDS, st.integers(150 + 128, 700))
def test_nobody_waits_for_longer_than_all_the_work_there_is(asked: list[Arrival], memory_bytes: int) -> None:
    ends = [times[-1] for times in world(memory_bytes).run(asked).values()]
    model = costs()
    work_s = sum(model.prefill_s(one.input_tokens) + one.output_tokens * model.step_s(1, 200) for one in asked)
    # A model is left after its minimum turn at the earliest, and each switch may wait for a load and what it displaced.
    switches = work_s / MIN_TURN_S + 3 * len(asked)
    assert max(ends) <= 10.0 + 2 * work_s + switches * (1.5 + PARK_S)
