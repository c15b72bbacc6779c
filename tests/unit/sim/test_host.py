import math

import pytest

from hekaton.errors import InvalidArgument
from hekaton.sim.arrivals import Poisson
from hekaton.sim.catalog import names
from hekaton.sim.host import Host, HostSettings
from hekaton.sim.lengths import LogNormal
from hekaton.sim.report import Report
from hekaton.sim.run import Settings, simulate
from hekaton.sim.workload import generate

WEIGHTS = {"a": 100, "b": 100, "c": 100}


def test_weights_that_are_there_need_no_disk() -> None:
    host = Host(HostSettings(), WEIGHTS)
    assert [host.weights_at_s(model, 5.0) for model in WEIGHTS] == [0.0, 0.0, 0.0]
    assert host.misses == 0


def test_weights_that_are_not_there_are_read_one_after_the_other() -> None:
    host = Host(HostSettings(weights_bytes=200, disk_bytes_per_s=50), WEIGHTS)
    assert host.weights_at_s("c", 5.0) == 7.0, "a and b were there"
    assert host.weights_at_s("a", 5.0) == 9.0, "it had to go for c"
    assert host.weights_at_s("c", 20.0) == 7.0
    assert host.weights_at_s("a", 20.0) == 9.0
    assert host.misses == 2


def test_the_weights_asked_for_longest_ago_go() -> None:
    host = Host(HostSettings(weights_bytes=200, disk_bytes_per_s=50), WEIGHTS)
    host.weights_at_s("a", 0.0)
    host.weights_at_s("c", 0.0)
    assert host.weights_at_s("a", 50.0) == 0.0
    assert host.weights_at_s("b", 50.0) == 52.0


def test_kv_is_taken_up_to_the_room_there_is() -> None:
    host = Host(HostSettings(kv_bytes=100), {})
    assert host.take(60)
    assert not host.take(60)
    host.free(60)
    assert host.take(100)


@pytest.mark.parametrize("kwargs", [{"kv_bytes": -1}, {"weights_bytes": math.nan}, {"disk_bytes_per_s": 0}])
def test_a_host_that_cannot_be_is_refused(kwargs: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match="a host has"):
        HostSettings(**kwargs)


def run(settings: Settings) -> Report:
    rates = dict.fromkeys(names(12), 0.1)
    return simulate(generate(rates, 30.0, Poisson(), LogNormal(), 0), settings)


def test_a_slow_disk_and_an_overhead_of_switching_are_felt() -> None:
    usual = run(Settings(gpus=1))
    from_disk = run(Settings(gpus=1, host=HostSettings(weights_bytes=60e9)))
    overhead = run(Settings(gpus=1, switch_overhead_s=0.3))
    assert from_disk.token_attainment < usual.token_attainment
    assert overhead.exposed_switch_s > usual.exposed_switch_s + 0.3 * usual.switches / 2
