from concurrent.futures import Executor
from dataclasses import replace

import pytest

from hekaton.errors import InvalidArgument
from hekaton.sim.lengths import Sampled
from hekaton.sim.run import Settings
from hekaton.sim.sustain import sustain
from hekaton.sim.trials import Point, Traffic, measure
from hekaton.sim.variants import Variant

TRAFFIC = Traffic(duration_s=20.0, lengths=Sampled([(300, 100), (500, 200)]), seeds=(0, 1))
SETTINGS = Settings(gpus=1)


def test_a_point_is_sustained_if_the_late_arrivals_are_too() -> None:
    assert Point(1, 0.95, 0.91).is_sustained
    assert not Point(1, 0.95, 0.89).is_sustained
    assert not Point(1, 0.89, 0.95).is_sustained


def test_a_point_is_the_mean_of_its_seeds(executor: Executor) -> None:
    rates = {f"m{index:02d}": 0.3 for index in range(20)}
    both = measure(20, rates, SETTINGS, TRAFFIC, executor)
    alone = [measure(20, rates, SETTINGS, replace(TRAFFIC, seeds=(seed,)), executor) for seed in (0, 1)]
    assert both.token_attainment == pytest.approx(sum(point.token_attainment for point in alone) / 2)
    assert alone[0] != alone[1]


def test_one_model_more_than_sustained_is_too_many(executor: Executor) -> None:
    found = sustain([Variant("slack")], SETTINGS, 0.3, TRAFFIC, executor, hint=10)
    by_size = {point.size: point for point in found.points}
    assert by_size[found.models].is_sustained
    assert not by_size[found.models + 1].is_sustained
    assert list(by_size) == sorted(by_size)


def test_where_to_begin_does_not_matter(executor: Executor) -> None:
    near, far = (sustain([Variant("slack")], SETTINGS, 0.3, TRAFFIC, executor, hint=hint).models for hint in (8, 32))
    assert near == far


def test_the_best_variant_is_named(executor: Executor) -> None:
    free = Variant("slack", is_free=True)
    found = sustain([Variant("request-level"), free], SETTINGS, 0.3, TRAFFIC, executor, hint=10)
    assert found.variant == free


def test_a_search_has_a_seed() -> None:
    with pytest.raises(InvalidArgument, match="seed"):
        Traffic(seeds=())
