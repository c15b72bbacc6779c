from concurrent.futures import Executor

import pytest

from hekaton.errors import InvalidArgument
from hekaton.policy.registry import POLICIES, policy
from hekaton.sim.compare import Case, compare
from hekaton.sim.lengths import Sampled
from hekaton.sim.run import Settings
from hekaton.sim.trials import Traffic
from hekaton.sim.variants import ceiling, contenders

TRAFFIC = Traffic(duration_s=10.0, lengths=Sampled([(300, 100), (500, 200)]), seeds=(0,))
SETTINGS = Settings(gpus=2)


def test_every_policy_is_compared_with_its_share_of_the_ceiling(executor: Executor) -> None:
    (row,) = compare([Case(0.3)], SETTINGS, TRAFFIC, executor, hint=10)
    assert row.policies.keys() == POLICIES.keys()
    assert row.ceiling.models >= max(found.models for found in row.policies.values()) - 1
    assert row.share("slack") == row.policies["slack"].models / row.ceiling.models
    assert row.policies["aegaeon"].variant.options.keys() == {"q_max_s", "prefill_workers"}


def test_a_scale_tightens_both_objectives() -> None:
    scaled = Case(0.1, 0.5).apply(SETTINGS)
    assert (scaled.ttft_s, scaled.tbt_s) == (5.0, 0.05)
    with pytest.raises(InvalidArgument):
        Case(0.1, 0.0)


def test_every_variant_is_one_that_can_be_run() -> None:
    for variants in (*contenders().values(), ceiling()):
        for variant in variants:
            settings = variant.apply(SETTINGS)
            assert len(policy(settings.policy, settings.policy_options).roles(variant.least_workers)) >= 1
