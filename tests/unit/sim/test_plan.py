from concurrent.futures import Executor
from dataclasses import replace

import pytest

from hekaton.errors import InvalidArgument, ModelTooLarge
from hekaton.sim.classes import STAND_IN, ServedClass, served
from hekaton.sim.lengths import Sampled
from hekaton.sim.market import Market
from hekaton.sim.plan import Plan, assumptions, plan
from hekaton.sim.run import Settings
from hekaton.sim.trials import Traffic, measure

TRAFFIC = Traffic(duration_s=20.0, lengths=Sampled([(300, 100), (500, 200)]), seeds=(0, 1))
SETTINGS = Settings()
LARGE = ServedClass(145_000_000_000, 327_680, STAND_IN, tensor_parallel=4)


def market(models: int, known: ServedClass, rate: float = 0.3) -> Market:
    names = [f"x{index}" for index in range(models)]
    return Market(dict.fromkeys(names, known), dict.fromkeys(names, rate))


def test_a_plan_needs_a_pool_for_each_degree_and_dedicated_an_instance_for_each_model(executor: Executor) -> None:
    small = market(6, served("qwen2.5-7b"))
    both = Market({**small.catalog, "big": LARGE}, {**small.rates_per_s, "big": 0.2})
    ours, dedicated = plan(both, SETTINGS, TRAFFIC, executor, policies=["slack", "dedicated"])
    assert [(pool.devices, pool.gpus) for pool in dedicated.pools] == [(1, 6), (4, 4)]
    assert dedicated.gpus == 10
    assert ours.gpus is not None
    assert ours.gpus < 10
    assert ours.saving(dedicated) == pytest.approx(1 - ours.gpus / 10)


def test_one_worker_less_than_planned_is_too_few(executor: Executor) -> None:
    busy = market(30, served("qwen2.5-7b"), rate=0.5)
    (found,) = plan(busy, SETTINGS, TRAFFIC, executor, policies=["slack"])
    workers = found.pools[0].workers
    assert workers is not None
    for count, enough in ((workers, True), (workers - 1, False)):
        settings = replace(SETTINGS, gpus=count, catalog=busy.catalog)
        assert measure(count, busy.rates_per_s, settings, TRAFFIC, executor).is_sustained is enough


def test_a_plan_that_cannot_be_has_no_saving(executor: Executor) -> None:
    hasty = replace(SETTINGS, tbt_s=0.001, ttft_s=0.001)
    (found,) = plan(market(2, served("qwen2.5-7b")), hasty, TRAFFIC, executor, policies=["slack"])
    assert found.gpus is None
    assert found.saving(Plan("dedicated", 1.0, ())) is None


def test_what_cannot_be_planned_is_refused(executor: Executor) -> None:
    with pytest.raises(InvalidArgument, match="unknown policy 'none'"):
        plan(market(2, served("qwen2.5-7b")), SETTINGS, TRAFFIC, executor, policies=["none"])
    with pytest.raises(ModelTooLarge, match="model x0"):
        plan(market(2, ServedClass(10**12, 1)), SETTINGS, TRAFFIC, executor, policies=["slack"])


def test_the_stand_in_is_named_where_it_is_used() -> None:
    without, having = (assumptions(market(2, known), SETTINGS, TRAFFIC) for known in (served("qwen2.5-7b"), LARGE))
    assert not any("OPT-66B" in note for note in without)
    assert any("OPT-66B" in note for note in having)
