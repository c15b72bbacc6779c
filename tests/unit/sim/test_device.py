"""The books of a simulated device."""

from dataclasses import replace

from fakes.simworlds import costs
from hekaton.sim.desk import Desk
from hekaton.sim.device import Device
from hekaton.sim.host import Host, HostSettings
from hekaton.sim.request import SimRequest, Stretch

BANDWIDTH_BYTES_PER_S = 100.0
KNOWN = {"a": costs(), "b": costs(), "c": costs()}


def device(settings: HostSettings, memory_bytes: int = 1000) -> Device:
    host = Host(settings, {name: one.weight_bytes for name, one in KNOWN.items()})
    return Device(memory_bytes, KNOWN, BANDWIDTH_BYTES_PER_S, host)


def test_a_load_that_is_broken_off_lets_the_next_come_sooner_but_not_before_the_disk() -> None:
    one = device(HostSettings(weights_bytes=200, disk_bytes_per_s=20))
    assert one.begin_load("a", 0.0)
    assert one.begin_load("c", 0.0), "five seconds from disk, then one of copying"
    one.evict("a", 0.5)
    assert one.next_copy_ends_s == 6.0
    assert one.copied_s == 0.5


def test_kv_goes_before_weights_that_are_on_their_way() -> None:
    one = device(HostSettings())
    request = SimRequest("r", "a", 0.0, 48, 10, 10.0, 0.1, produced=1, computed=48)
    assert one.set_kv(request, 48)
    one.drop_kv(request, 0.0)
    assert one.begin_load("b", 1.0)
    assert one.grow_kv(request, 48, 1.2)
    one.fetch_kv(request, 1.2)
    assert one.settle(1.68) == ["a"], "48 bytes at 100 a second"
    assert one.settle(2.47) == []
    assert one.settle(2.49) == ["b"]


def test_kv_takes_as_long_as_was_measured() -> None:
    measured = {"a": replace(costs(), swap_s_per_token=0.125)}
    one = Device(1000, measured, BANDWIDTH_BYTES_PER_S, Host(HostSettings(), {"a": 100}))
    request = SimRequest("r", "a", 0.0, 48, 10, 10.0, 0.1, produced=1, computed=48)
    assert one.set_kv(request, 48)
    one.drop_kv(request, 0.0)
    assert one.grow_kv(request, 48, 1.0)
    one.fetch_kv(request, 1.0)
    assert one.next_copy_ends_s == 12.0, "six seconds out, six in"


def test_what_waits_to_be_prefilled_is_counted_although_kv_is_lost() -> None:
    desk, one = Desk(), device(HostSettings(kv_bytes=0))
    request = SimRequest("r", "a", 0.0, 40, 10, 10.0, 0.1)
    desk.add(request)
    assert desk.prefill_tokens() == {"a": 40}
    one.set_kv(request, 40)
    desk.book(request, Stretch(0.0, 1.0, 0.0, 1))
    assert desk.prefill_tokens() == {}
    one.drop_kv(request, 1.0)
    assert desk.prefill_tokens() == {"a": 41}, "the prompt and the token that was made"
    desk.book(request, Stretch(2.0, 1.0, 0.0, 1))
    desk.remove(request)
    assert desk.prefill_tokens() == {}
