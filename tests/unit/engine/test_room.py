"""Who gives way for KV on a device that is full: the simulator's device under the room that the live engine shares."""

from fakes.simworlds import BANDWIDTH_BYTES_PER_S, costs
from hekaton.engine.room import KV_MARGIN, Room
from hekaton.sim.desk import Desk
from hekaton.sim.device import Device
from hekaton.sim.host import Host, HostSettings
from hekaton.sim.request import SimRequest

TTFT_S = 10.0
TBT_S = 0.1
KV_TOKENS = 48


class World:
    """A device with model "a" and room for the KV of three requests of 48 tokens; a token is a byte."""

    def __init__(self) -> None:
        known = {"a": costs()}
        weights = {name: one.weight_bytes for name, one in known.items()}
        memory_bytes = known["a"].weight_bytes + 3 * KV_TOKENS
        self.device = Device(memory_bytes, known, BANDWIDTH_BYTES_PER_S, Host(HostSettings(), weights))
        self.desk = Desk()
        self.room: Room[SimRequest] = Room(self.device, self.desk.live, self.desk.demands)
        assert self.device.begin_load("a", -10.0)
        self.device.settle(0.0)

    def request(self, name: str, arrival_s: float, produced: int = 1, kv: bool = True) -> SimRequest:
        one = SimRequest(name, "a", arrival_s, KV_TOKENS, 500, TTFT_S, TBT_S, produced=produced)
        self.desk.add(one)
        if kv:
            assert self.device.set_kv(one, KV_TOKENS)
            one.computed = KV_TOKENS
        return one


def test_kv_is_taken_from_one_with_clearly_more_slack_only() -> None:
    world = World()
    world.request("oldest", 0.0)
    ahead = world.request("ahead", 1.0, produced=100)
    little_ahead = world.request("little ahead", 1.0, produced=int(KV_MARGIN * TTFT_S / TBT_S) - 2)
    assert world.room.for_kv(world.request("new", 1.0, kv=False), KV_TOKENS, 1.0)
    assert not ahead.holds_kv
    assert little_ahead.holds_kv
    assert not world.room.for_kv(world.request("newer", 1.0, kv=False), KV_TOKENS, 1.0)


def test_a_lost_request_keeps_its_kv_from_one_that_can_still_be_in_time() -> None:
    world = World()
    holders = [world.request(name, arrival_s) for name, arrival_s in (("oldest", 0.0), ("b", 0.5), ("lost", 1.0))]
    now_s = 30.0
    assert not world.room.for_kv(world.request("new", now_s, kv=False), KV_TOKENS, now_s)
    assert all(one.holds_kv for one in holders), "to bring it back would cost the bus more"


def test_of_lost_requests_the_older_keep_their_kv() -> None:
    world = World()
    holders = [world.request(name, arrival_s) for name, arrival_s in (("oldest", 0.0), ("b", 1.0), ("c", 2.0))]
    newer = world.request("newer", 3.0, kv=False)
    assert not world.room.for_kv(newer, KV_TOKENS, 60.0)
    assert all(one.holds_kv for one in holders)
    assert newer.parked_until_s > 60.0


def test_a_request_that_cannot_grow_gives_up_its_kv_to_those_before_it() -> None:
    world = World()
    oldest, second, last = (world.request(name, at_s) for name, at_s in (("oldest", 0.0), ("b", 1.0), ("c", 2.0)))
    assert not world.room.for_kv(last, KV_TOKENS + 1, 60.0)
    assert not last.holds_kv
    assert last.host_tokens == KV_TOKENS, "its KV waits in host memory"
    assert world.room.for_kv(second, KV_TOKENS + 1, 60.0)
    assert world.room.for_kv(oldest, KV_TOKENS + 1, 60.0)
