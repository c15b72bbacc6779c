"""Two tenants on one pool, in virtual time: what one asks for too much is not the other's loss."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from hekaton.sim import lengths, workload
from hekaton.sim.arrivals import Poisson
from hekaton.sim.catalog import hardware
from hekaton.sim.run import Settings, Simulation
from hekaton.sim.workload import Arrival

LENGTHS = lengths.read(Path(__file__).parents[3] / "bench" / "data" / "sharegpt_lengths_sample.csv")
DURATION_S = 60.0


def asked(tenant: str, models: range, rate_per_s: float, seed: int) -> list[Arrival]:
    rates = {f"m{index:02d}": rate_per_s for index in models}
    return [replace(one, tenant=tenant) for one in workload.generate(rates, DURATION_S, Poisson(), LENGTHS, seed)]


def ttfts_s(arrivals: list[Arrival], gpus: int, weights: Mapping[str, float] | None = None) -> dict[str, list[float]]:
    """By tenant."""
    ordered = sorted(arrivals, key=lambda one: one.arrival_s)
    have = hardware({one.model for one in ordered}, None, "h800", None, 16e9)
    pool = Simulation(Settings(gpus=gpus, weights=weights or {}), have.costs, have.memory_bytes)
    pool.run(ordered)
    found: dict[str, list[float]] = {}
    for outcome in pool.outcomes:
        assert outcome.finished
        assert outcome.ttft_s is not None
        found.setdefault(outcome.tenant, []).append(outcome.ttft_s)
    return found


def p95_s(times_s: list[float]) -> float:
    return float(np.percentile(times_s, 95))


def test_a_tenant_at_twenty_times_the_load_does_not_make_another_wait() -> None:
    """Over several runs: each has few requests of the quiet tenant."""
    before, beside, unfair = [], [], []
    for seed in range(0, 12, 2):
        quiet, loud = asked("quiet", range(4), 0.05, seed), asked("loud", range(4, 8), 20 * 0.05, seed + 1)
        before += ttfts_s([*quiet, *asked("loud", range(4, 8), 0.05, seed + 1)], 1)["quiet"]
        beside += ttfts_s([*quiet, *loud], 1)["quiet"]
        if seed < 4:
            unfair += ttfts_s([*quiet, *(replace(one, tenant="") for one in loud)], 1)["quiet"]
    assert p95_s(beside) <= 1.2 * p95_s(before)
    assert p95_s(unfair) > 1.5 * p95_s(before), "the load is one that hurts where nobody is charged"


def test_of_two_that_ask_for_too_much_the_one_with_the_greater_weight_is_served_sooner() -> None:
    both = [*asked("a", range(4), 1.0, 0), *asked("b", range(4), 1.0, 1)]
    a, b = ({name: float(np.median(each)) for name, each in ttfts_s(both, 1, {name: 3.0}).items()} for name in "ab")
    assert a["a"] < a["b"]
    assert b["b"] < b["a"]


def test_tenants_change_nothing_where_only_one_is_there() -> None:
    asking = asked("a", range(6), 0.5, 0)
    assert ttfts_s(asking, 1)["a"] == ttfts_s([replace(one, tenant="") for one in asking], 1)[""]
