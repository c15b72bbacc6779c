from dataclasses import replace
from pathlib import Path

import pytest

from hekaton.errors import InvalidArgument, ModelTooLarge
from hekaton.policy.admission import Admission
from hekaton.sim import workload
from hekaton.sim.arrivals import Poisson
from hekaton.sim.catalog import names
from hekaton.sim.lengths import LogNormal
from hekaton.sim.run import Settings, simulate
from hekaton.sim.workload import Arrival

DATA = Path(__file__).parents[3] / "bench" / "data"
SMALL = workload.generate(dict.fromkeys(names(20), 0.1), 30.0, Poisson(), LogNormal(), seed=1)


def test_the_papers_80_models_on_16_h800_are_all_on_time_in_a_few_seconds() -> None:
    result = simulate(workload.read(DATA / "workloads" / "sharegpt-80models-0.1rps.csv"), Settings())
    assert (result.models, result.requests, result.unfinished) == (80, 839, 0)
    assert result.token_attainment >= 0.995
    assert 0 < result.copy_busy_fraction < result.gpu_busy_fraction < 1


def test_equal_inputs_give_equal_reports() -> None:
    first, second = (simulate(SMALL, Settings(gpus=2)) for _ in range(2))
    assert replace(first, wall_s=0.0) == replace(second, wall_s=0.0)


def test_fewer_devices_make_more_tokens_late() -> None:
    many, few = (simulate(SMALL, Settings(gpus=gpus)) for gpus in (4, 1))
    assert many.token_attainment > few.token_attainment
    assert few.unfinished == 0


def test_a_request_that_no_empty_device_can_hold_is_refused_and_late() -> None:
    result = simulate([Arrival(0.0, "m08", 100_000, 10), Arrival(0.0, "m00", 10, 10)], Settings(gpus=1))
    assert result.unfinished == 1
    assert result.token_attainment == 0.5
    assert result.min_model_attainment == 0.0


def test_a_model_larger_than_the_device_is_refused() -> None:
    with pytest.raises(ModelTooLarge, match=r"m08 needs 26\.0 GB"):
        simulate([Arrival(0.0, "m08", 10, 10)], Settings(device="a10"))


@pytest.mark.parametrize(
    "settings",
    [
        Settings(gpus=0),
        Settings(tbt_s=0),
        Settings(policy="none"),
        Settings(device="none"),
        Settings(policy_options={"min_turn_s": -1}),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Settings) -> None:
    with pytest.raises(InvalidArgument):
        simulate([Arrival(0.0, "m00", 10, 10)], settings)


def test_a_pool_that_sheds_serves_in_time_what_it_accepts() -> None:
    asked = workload.generate(dict.fromkeys(names(18), 0.5), 30.0, Poisson(), LogNormal(), seed=1)
    queued, shed = (simulate(asked, Settings(gpus=1, admission=mode)) for mode in (Admission.QUEUE, Admission.SHED))
    assert queued.unfinished == 0
    assert 0 < shed.unfinished < shed.requests
    assert shed.token_attainment / (1 - shed.unfinished / shed.requests) > queued.token_attainment + 0.2
    assert shed.ttft_p99_s is not None
    assert queued.ttft_p99_s is not None
    assert shed.ttft_p99_s < queued.ttft_p99_s


def test_a_pool_that_sheds_refuses_nobody_while_it_can_serve_all() -> None:
    result = simulate(SMALL, Settings(gpus=4, admission=Admission.SHED))
    assert (result.unfinished, result.token_attainment) == (0, 1.0)


def test_a_run_gives_what_it_gave_before() -> None:
    """A change here is a change of what every published figure rests on: measure them again."""
    golden = {"slack": (582, 356, 0.9997), "aegaeon": (242, 200, 0.1909), "request-level": (107, 0, 0.3061)}
    asked = workload.read(DATA / "workloads" / "sharegpt-48models-0.1rps.csv")[:200]
    for policy, expected in golden.items():
        run = simulate(asked, Settings(policy, gpus=4))
        assert (run.switches, run.kv_swaps, round(run.token_attainment, 4)) == expected, policy
