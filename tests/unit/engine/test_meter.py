"""Costs: a guess at first, then what is observed."""

import pytest

from hekaton.engine.meter import Meter
from hekaton.facts import ModelSpec
from hekaton.policy.types import ModelCosts

SPEC = ModelSpec("digest", "LlamaForCausalLM", "bfloat16", 400_000_000, 1000, 2048, 50_000)


def test_before_anything_was_seen_every_cost_is_a_positive_guess() -> None:
    costs = Meter(SPEC).costs()
    assert (costs.weight_bytes, costs.kv_bytes_per_token) == (400_000_000, 1000)
    assert min(costs.load_s, costs.step_s(1, 100), costs.prefill_s(1)) > 0
    assert costs.prefill_s(100) > costs.prefill_s(1)


def test_costs_approach_what_is_observed() -> None:
    meter = Meter(SPEC)
    for _ in range(50):
        meter.loaded(0.7)
        meter.stepped(tokens=3, requests=3, duration_s=0.02)
        meter.stepped(tokens=101, requests=2, duration_s=0.52)
    costs = meter.costs()
    assert costs.load_s == pytest.approx(0.7, rel=0.01)
    assert costs.step_s(3, 0) == pytest.approx(0.02, rel=0.01)
    assert costs.prefill_s_per_token == pytest.approx(0.005, rel=0.01)


def test_the_first_observation_replaces_the_guess() -> None:
    meter = Meter(SPEC)
    meter.stepped(tokens=3, requests=3, duration_s=0.02)
    assert meter.costs().step_base_s == 0.02


def test_what_each_request_and_token_of_context_takes_is_known_and_the_rest_follows() -> None:
    known = ModelCosts(400_000_000, 1000, 0.1, 0.03, 0.001, 0.02, 0.002, 1e-5)
    meter = Meter(SPEC, known)
    assert meter.measured
    assert meter.costs() == known
    for _ in range(50):
        meter.stepped(tokens=4, requests=4, duration_s=0.04 + 4 * 0.002 + 500 * 1e-5, context_tokens=500)
        meter.stepped(tokens=100, requests=1, duration_s=0.05 + 100 * 0.0005)
    costs = meter.costs()
    assert costs.step_s(4, 500) == pytest.approx(0.053, rel=0.01)
    assert costs.prefill_s(100) == pytest.approx(0.1, rel=0.01)
    assert (costs.step_s_per_request, costs.step_s_per_context_token) == (0.002, 1e-5)


def test_costs_that_were_measured_one_by_one_replace_what_was_observed() -> None:
    meter = Meter(SPEC)
    meter.stepped(tokens=3, requests=3, duration_s=0.02)
    assert not meter.measured
    learned = ModelCosts(400_000_000, 1000, 0.1, 0.03, 0.001, 0.02, 0.002, 1e-5)
    meter.learn(learned)
    assert (meter.measured, meter.costs()) == (True, learned)


def test_a_prefill_before_the_first_decode_is_not_taken_for_free() -> None:
    meter = Meter(SPEC)
    meter.stepped(tokens=100, requests=1, duration_s=0.05)
    assert meter.costs().prefill_s_per_token == pytest.approx(0.0005)


def test_one_outlier_hardly_moves_an_estimate_however_large_it_is() -> None:
    meter = Meter(SPEC)
    for _ in range(50):
        meter.loaded(0.1)
    meter.loaded(1000.0)
    assert meter.costs().load_s == pytest.approx(0.16)


def test_costs_that_have_changed_for_good_are_learnt() -> None:
    meter = Meter(SPEC)
    meter.loaded(0.001)
    for _ in range(50):
        meter.loaded(1.0)
    assert meter.costs().load_s == pytest.approx(1.0, rel=0.01)


def test_a_prefill_quicker_than_a_step_costs_nothing_more() -> None:
    meter = Meter(SPEC)
    for _ in range(100):
        meter.stepped(tokens=16, requests=1, duration_s=0.0)
    assert 0 <= meter.costs().prefill_s_per_token < 1e-6
