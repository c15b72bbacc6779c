import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.turnloop import GB, SettableClock, spec
from hekaton.engine.emulated import EmulatedEngine, emulated_token
from hekaton.engine.interface import Sampled, StepItem
from hekaton.engine.profiles import CLASSES, DEVICES, emulated_costs, emulated_spec
from hekaton.errors import EngineFailed, InvalidArgument, ModelTooLarge
from hekaton.facts import ModelSpec, Sampling

SAMPLING = Sampling(max_tokens=10, seed=7)


def build(memory_bytes: int = 40 * GB, host_bytes: int = 0, **models: int) -> tuple[EmulatedEngine, SettableClock]:
    """An engine that knows models of so many bytes."""
    clock = SettableClock()
    engine = EmulatedEngine("h800", memory_bytes, host_kv_memory_bytes=host_bytes, clock=clock, sleep=clock.sleep)
    for name, nbytes in models.items():
        engine.add_model(name, spec(nbytes), "emulated:qwen2.5-7b")
    return engine, clock


def load(engine: EmulatedEngine, clock: SettableClock, model: str) -> None:
    assert engine.begin_load(model)
    clock.sleep(engine.costs(model).load_s)
    assert model in engine.resident()


def decode(request_id: str, start: int) -> StepItem:
    return StepItem(request_id, (1,), start, SAMPLING, start)


def test_loads_end_one_after_the_other_at_the_bandwidth_of_the_bus() -> None:
    engine, clock = build(a=16 * GB, b=8 * GB)
    assert engine.begin_load("a")
    assert engine.begin_load("b")
    assert engine.next_event_s() == 101.0
    clock.sleep(1.0)
    assert engine.resident() == {"a"}
    assert engine.loading() == {"b"}
    assert [(result.model, result.duration_s) for result in engine.finished_loads()] == [("a", 1.0)]
    assert engine.next_event_s() == 101.5
    clock.sleep(0.5)
    assert [(result.model, result.duration_s) for result in engine.finished_loads()] == [("b", 1.5)]
    assert engine.finished_loads() == []
    assert engine.next_event_s() is None


def test_a_cancelled_load_frees_its_bytes_and_the_bus() -> None:
    engine, clock = build(a=16 * GB, b=8 * GB)
    engine.begin_load("a")
    engine.begin_load("b")
    clock.sleep(0.25)
    engine.evict("a")
    assert engine.next_event_s() == pytest.approx(100.75)
    assert engine.weights_bytes() == 8 * GB
    engine.check_integrity()


def test_kv_comes_back_after_both_copies_and_weights_wait_for_it() -> None:
    """1.6 GB of KV take 0.1 s in each direction, 16 GB of weights a second."""
    engine, clock = build(40 * GB, 2 * GB, a=16 * GB)
    assert engine.grow_kv("r", "a", 1600)
    assert engine.swap_out("r", 1600)
    assert (engine.kv_bytes(), engine.host_kv_bytes()) == (0, 1600 * 1_000_000)
    assert engine.begin_load("a")
    assert engine.swap_in("r")
    assert engine.next_event_s() == pytest.approx(100.2)
    clock.sleep(0.2)
    assert [swap.request_id for swap in engine.finished_swaps()] == ["r"]
    assert engine.finished_swaps() == []
    assert (engine.kv_bytes(), engine.host_kv_bytes()) == (1600 * 1_000_000, 0)
    assert engine.next_event_s() == pytest.approx(101.1)
    engine.check_integrity()


def test_kv_that_finds_no_room_on_the_host_stays_and_on_the_device_stays_away() -> None:
    engine, _ = build(40 * GB, 2 * GB, a=16 * GB, b=38 * GB)
    assert engine.grow_kv("r", "a", 3200)
    assert not engine.swap_out("r", 3200)
    assert engine.kv_bytes() == 3200 * 1_000_000
    assert engine.swap_out("r", 2000), "the tokens that it has computed, not the room that it has"
    assert engine.begin_load("b")
    assert engine.grow_kv("s", "b", 16)
    assert not engine.swap_in("r")
    engine.drop_kv("r")
    assert engine.host_kv_bytes() == 0
    engine.check_integrity()


def test_what_does_not_fit_is_refused_and_nothing_changes() -> None:
    engine, clock = build(20 * GB, a=12 * GB, b=12 * GB)
    load(engine, clock, "a")
    assert not engine.begin_load("b")
    assert engine.grow_kv("r", "a", 8000)
    assert not engine.grow_kv("r", "a", 8001)
    assert engine.kv_bytes() == 8 * GB
    engine.evict("a")
    assert engine.begin_load("b")
    engine.drop_kv("r")
    engine.drop_kv("unknown")
    assert engine.kv_bytes() == 0
    engine.check_integrity()
    with pytest.raises(ModelTooLarge, match="20000000000"):
        engine.add_model("c", spec(20 * GB), "emulated:qwen2.5-7b")


def test_kv_is_counted_in_blocks_of_sixteen_tokens() -> None:
    engine, _ = build(a=GB)
    assert engine.grow_kv("r", "a", 17)
    assert engine.kv_bytes() == 32_000_000
    assert engine.grow_kv("r", "a", 3), "KV never shrinks"
    assert engine.kv_bytes() == 32_000_000


def test_a_step_takes_the_profiles_time_and_samples_only_where_asked() -> None:
    engine, clock = build(a=int(15.2 * GB))
    load(engine, clock, "a")
    for request_id in ("r", "s", "t"):
        engine.grow_kv(request_id, "a", 200)
    begin_s = clock()
    tokens = engine.step("a", [StepItem("r", tuple(range(100)), 0, SAMPLING, 0), StepItem("s", (1, 2), 0, None, 0)])
    assert clock() - begin_s == pytest.approx(engine.costs("a").prefill_s(102))
    assert tokens == [Sampled(emulated_token("a", 7, 0, spec())), None]
    begin_s = clock()
    engine.step("a", [decode("r", 100), decode("s", 50)])
    assert clock() - begin_s == pytest.approx(engine.costs("a").step_s(2, 152))


def test_a_step_without_weights_or_kv_is_refused() -> None:
    engine, clock = build(a=GB)
    with pytest.raises(EngineFailed, match="load it"):
        engine.step("a", [])
    load(engine, clock, "a")
    with pytest.raises(EngineFailed, match="request r has no KV"):
        engine.step("a", [decode("r", 0)])


@pytest.mark.parametrize(("time_scale", "late_s"), [(1.0, 0.002), (6.0, 0.05)])
def test_late_sleeps_do_not_add_up(time_scale: float, late_s: float) -> None:
    clock = SettableClock()

    def late(duration_s: float) -> None:
        clock.sleep(duration_s + late_s)

    engine = EmulatedEngine("h800", 40 * GB, clock=clock, sleep=late, time_scale=time_scale)
    engine.add_model("a", spec(), "emulated:qwen2.5-7b")
    load(engine, clock, "a")
    engine.grow_kv("r", "a", 1000)
    begin_s = clock()
    wanted_s = 0.0
    for position in range(1, 500):
        engine.step("a", [decode("r", position)])
        wanted_s += engine.costs("a").step_s(1, position + 1)
    assert clock() - begin_s == pytest.approx(wanted_s, abs=1.5 * late_s)


def test_time_scale_stretches_real_time() -> None:
    engine = EmulatedEngine("h800", 40 * GB, time_scale=0.01)
    engine.add_model("a", emulated_spec("qwen2.5-7b"), "emulated:qwen2.5-7b")
    begin_s = time.monotonic()
    engine.begin_load("a")
    end_s = engine.next_event_s()
    assert end_s is not None
    assert end_s - begin_s == pytest.approx(0.0095, abs=0.005)


@given(seed=st.integers(0, 2**63), position=st.integers(0, 5000), ends=st.sets(st.integers(0, 255), max_size=8))
def test_tokens_are_reproducible_in_the_vocabulary_and_never_an_end(seed: int, position: int, ends: set[int]) -> None:
    facts = ModelSpec("d", "emulated", "bfloat16", GB, 1, 4096, 256, tuple(ends))
    token = emulated_token("m", seed, position, facts)
    assert token == emulated_token("m", seed, position, facts)
    assert 0 <= token < 256
    assert token not in ends


def test_tokens_differ_by_model_seed_and_position() -> None:
    facts = spec()
    assert len({emulated_token("m", 1, position, facts) for position in range(2000)}) == 256
    one = [emulated_token("m", 1, position, facts) for position in range(50)]
    assert one != [emulated_token("n", 1, position, facts) for position in range(50)]
    assert one != [emulated_token("m", 2, position, facts) for position in range(50)]
    assert one != [emulated_token("m", 1, position, facts, 1) for position in range(50)]


@pytest.mark.parametrize("device", sorted(DEVICES))
def test_every_device_has_costs_for_every_class_that_grow_with_its_weights(device: str) -> None:
    by_size = sorted(CLASSES, key=lambda name: CLASSES[name].weight_bytes)
    costs = [emulated_costs(device, emulated_spec(name), f"emulated:{name}", 16e9) for name in by_size]
    for small, large in pairwise(costs):
        assert small.prefill_s(1000) < large.prefill_s(1000)
    assert costs[0].step_s(8, 4000) < costs[-1].step_s(8, 4000)


def test_a_model_without_a_profile_costs_by_its_weight() -> None:
    known = emulated_costs("h800", emulated_spec("qwen2.5-7b"), "emulated:qwen2.5-7b", 16e9)
    other = emulated_costs("h800", spec(int(7.6 * GB)), "a directory", 16e9)
    assert other.step_s(4, 100) == pytest.approx(known.step_s(4, 100) / 2)


def test_an_unknown_class_or_device_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"gpt-9.*llama-2-13b"):
        emulated_spec("gpt-9")
    with pytest.raises(InvalidArgument, match=r"h900.*h800"):
        emulated_costs("h900", spec(), "", 16e9)
