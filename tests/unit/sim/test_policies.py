"""Every policy by its name, in small random pools and on the paper's workloads."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.simworlds import arrivals, costs
from hekaton.errors import InvalidArgument
from hekaton.policy.registry import POLICIES, policy
from hekaton.policy.types import Role
from hekaton.sim import workload
from hekaton.sim.host import HostSettings
from hekaton.sim.outcome import Outcome
from hekaton.sim.run import Settings, Simulation, simulate
from hekaton.sim.workload import Arrival

DATA = Path(__file__).parents[3] / "bench" / "data"
MODELS = {"a": costs(), "b": costs(), "c": costs(weight_bytes=150)}
FOREVER = {"patience_s": 1e9}
OPTIONS: Mapping[str, Mapping[str, float]] = {"request-level": FOREVER, "request-level-sjf": FOREVER}
"""Under which a policy refuses nobody for waiting."""
STATIC = {"multiplex", "dedicated"}


def outcomes(name: str, asked: list[Arrival], memory_bytes: int, gpus: int, host_kv_bytes: float) -> list[Outcome]:
    chosen = Settings(name, OPTIONS.get(name, {}), gpus, bandwidth_bytes_per_s=1000.0, host=HostSettings(host_kv_bytes))
    pool = Simulation(chosen, MODELS, memory_bytes)
    pool.run(asked)
    for worker in pool.workers.values():
        assert worker.device.kv_bytes == 0
        assert worker.device.weights_bytes == sum(MODELS[model].weight_bytes for model in worker.device.present())
    return pool.outcomes


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=40, deadline=None)
@given(arrivals(sorted(MODELS), 60), st.integers(150 + 128, 700), st.integers(2, 4), st.sampled_from([0.0, 100.0, 1e6]))
def test_every_policy_ends_every_request_once_and_decides_the_same_again(
    name: str, asked: list[Arrival], memory_bytes: int, gpus: int, host_kv_bytes: float
) -> None:
    ended = outcomes(name, asked, memory_bytes, gpus, host_kv_bytes)
    assert len(ended) == len(asked)
    assert sum(one.tokens for one in ended) == sum(one.output_tokens for one in asked)
    assert name in STATIC or all(one.finished for one in ended)
    assert ended == outcomes(name, asked, memory_bytes, gpus, host_kv_bytes)


def test_crowded_pools_end_every_request_under_every_policy() -> None:
    draw = random.Random(5)
    for _ in range(15):
        count, memory_bytes = draw.randint(20, 40), draw.randint(406, 500)
        times_s = sorted(draw.uniform(0, 10) for _ in range(count))
        asked = [Arrival(t, draw.choice("abc"), draw.randint(1, 120), draw.randint(1, 120)) for t in times_s]
        for name in sorted(POLICIES):
            ended = outcomes(name, asked, memory_bytes, 2, host_kv_bytes=100.0)
            assert len(ended) == count
            assert name in STATIC or all(one.finished for one in ended)


def test_static_sharing_refuses_surplus_models_and_serves_the_rest() -> None:
    asked = [Arrival(float(index), model, 10, 10) for index, model in enumerate("abcabc")]
    assert [one.finished for one in outcomes("dedicated", asked, 700, 2, 1e6)].count(True) == 4
    assert {one.model for one in outcomes("dedicated", asked, 700, 2, 1e6) if not one.finished} == {"c"}
    assert all(one.finished for one in outcomes("multiplex", asked, 700, 2, 1e6))


def test_who_has_waited_longer_than_the_patience_is_refused_when_another_comes() -> None:
    asked = [Arrival(0.0, "a", 10, 2000), Arrival(0.1, "b", 10, 10), Arrival(15.2, "a", 10, 10)]
    pool = Simulation(Settings("request-level", gpus=1), MODELS, 10_000)
    pool.run(asked)
    assert [(one.model, one.finished) for one in pool.outcomes] == [("b", False), ("a", True), ("a", True)]
    assert all(one.finished for one in outcomes("request-level", asked, 10_000, 1, 1e6))


def test_prefill_workers_are_as_many_in_proportion_and_both_roles_are_served() -> None:
    def prefill(workers: int, **options: float) -> int:
        return policy("aegaeon", options).roles(workers).count(Role.PREFILL)

    assert [prefill(workers) for workers in (2, 3, 8, 16, 32)] == [1, 1, 3, 6, 12]
    assert prefill(16, prefill_workers=5.0) == 5
    assert prefill(16, prefill_workers=0.0) == 1
    assert prefill(16, prefill_workers=100.0) == 15
    with pytest.raises(InvalidArgument, match="at least two workers"):
        policy("aegaeon", {}).roles(1)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("aegaeon", "q_max_s", 0.0),
        ("aegaeon", "q_max_s", float("inf")),
        ("aegaeon", "group_size", 0.0),
        ("request-level", "slots", 1.5),
        ("request-level-sjf", "slots", 0.0),
        ("multiplex", "models", float("inf")),
        ("multiplex", "slice_s", -1.0),
        ("dedicated", "slots", 1.0),
        ("aegaeon", "load_factor", float("nan")),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(name: str, option: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match=option):
        simulate([Arrival(0.0, "m00", 10, 10)], Settings(name, {option: value}))


def test_the_papers_policy_reproduces_the_artifacts_simulator() -> None:
    asked = workload.read(DATA / "workloads" / "sharegpt-80models-0.1rps.csv")
    assert simulate(asked, Settings("aegaeon", device="h100")).token_attainment == pytest.approx(0.869, abs=0.04)
