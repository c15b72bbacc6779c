from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.simworlds import World, arrivals, costs
from hekaton.sim.workload import Arrival

MODELS = {"a": costs(), "b": costs(), "c": costs(weight_bytes=150)}


def test_one_request_is_loaded_prefilled_and_decoded_at_the_profiles_pace() -> None:
    world = World({"a": costs()}, memory_bytes=1000)
    times = world.run([Arrival(2.0, "a", input_tokens=100, output_tokens=3)])["r0"]
    first = 2.0 + 1.0 + 0.02 + 100 * 1e-4
    assert times == pytest.approx([first, first + 0.012, first + 0.012 + 0.01201])
    assert world.worker.tally.switches == 1
    assert world.worker.tally.exposed_switch_s == pytest.approx(1.0)
    assert world.worker.tally.busy_s == pytest.approx(times[-1] - 3.0)
    assert world.device.copied_s == pytest.approx(1.0)


def test_a_request_that_arrives_in_mid_stretch_joins_at_the_next_step() -> None:
    world = World({"a": costs(load_s=0.0)}, memory_bytes=10_000)
    times = world.run([Arrival(0.0, "a", 100, 50), Arrival(0.1, "a", 100, 2)])
    before = [time for time in times["r0"] if time < 0.1]
    boundary = times["r0"][len(before)]
    mixed_s = costs().mixed_s(100, requests=1, context_tokens=100 + len(before))
    assert times["r1"][0] == pytest.approx(boundary + mixed_s)
    assert times["r0"][len(before) + 1] == pytest.approx(times["r1"][0]), "the one that decodes gets its token with it"


def test_two_models_that_fit_only_one_at_a_time_are_both_served() -> None:
    world = World(MODELS, memory_bytes=310)
    times = world.run([Arrival(0.0, "a", 50, 100), Arrival(0.0, "c", 50, 100)])
    assert {request: len(made) for request, made in times.items()} == {"r0": 100, "r1": 100}
    assert world.worker.tally.switches >= 2


@settings(max_examples=60, deadline=None)
@given(arrivals(sorted(MODELS), 60), st.integers(150 + 128, 700))
def test_every_request_ends_once_and_memory_is_never_over_committed(asked: list[Arrival], memory_bytes: int) -> None:
    world = World(MODELS, memory_bytes)
    times = world.run(asked)
    assert sorted(times) == sorted(f"r{index}" for index in range(len(asked)))
    assert len(world.ended) == len(asked)
    for index, one in enumerate(asked):
        made = times[f"r{index}"]
        assert len(made) == one.output_tokens
        assert made == sorted(made)
        assert made[0] > one.arrival_s
    assert world.device.kv_bytes == 0
    assert world.device.weights_bytes == sum(MODELS[model].weight_bytes for model in world.device.resident)
    assert world.worker.tally.busy_s <= world.agenda.now_s


@settings(max_examples=30, deadline=None)
@given(arrivals(sorted(MODELS), 60))
def test_the_closed_form_gives_the_times_of_single_steps(asked: list[Arrival]) -> None:
    at_once, one_by_one = World(MODELS, 5000), World(MODELS, 5000, max_steps=1)
    expected = one_by_one.run(asked)
    times = at_once.run(asked)
    assert times.keys() == expected.keys()
    for request, made in times.items():
        assert made == pytest.approx(expected[request])
    assert at_once.policy.decisions == one_by_one.policy.decisions


def test_decisions_grow_with_turns_and_not_with_tokens() -> None:
    world = World({"a": costs()}, memory_bytes=100_000)
    tokens = len(world.run([Arrival(0.0, "a", 10, 2000)])["r0"])
    turns = world.agenda.now_s / 0.4
    assert world.policy.decisions < 1.2 * turns + 3 < tokens / 10


def test_without_a_minimum_turn_every_step_is_a_decision() -> None:
    world = World({"a": costs()}, memory_bytes=1000, min_turn_s=0.0)
    assert len(world.run([Arrival(0.0, "a", 10, 30)])["r0"]) == 30
    assert world.policy.decisions >= 30


def test_a_request_that_lost_its_kv_computes_it_again_and_makes_every_token_once() -> None:
    # Either request alone fits in 100 bytes of KV, both do not: the younger loses what it has.
    world = World({"a": costs()}, memory_bytes=200)
    asked = [Arrival(0.0, "a", 40, 40), Arrival(0.5, "a", 40, 40)]
    times = world.run(asked)
    assert [len(times["r0"]), len(times["r1"])] == [40, 40]
    assert times["r0"][-1] < times["r1"][-1]
    gaps = [later - earlier for earlier, later in pairwise(times["r0"])]
    assert max(gaps) < 0.1, "the oldest never waits for room"
