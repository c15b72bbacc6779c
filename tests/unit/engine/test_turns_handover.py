"""Requests that leave one turn loop with their KV and go on in another."""

import msgspec

from fakes.turnloop import GB, LoopDriver, expected, submit
from hekaton.engine.messages import Ended, HandOver, ParcelsAt
from hekaton.facts import Parcel


def begun(host_kv_memory_bytes: int = 10 * GB) -> tuple[LoopDriver, LoopDriver]:
    """Two loops, with a request that has got ten of its tokens from the first."""
    giver, taker = (LoopDriver(host_kv_memory_bytes=host_kv_memory_bytes) for _ in range(2))
    for driver in (giver, taker):
        driver.add("a")
        driver.send(ParcelsAt("/nowhere"))
    giver.send(submit("r", "a"))
    giver.run(lambda: len(giver.tokens("r")) == 10)
    return giver, taker


def handed_over(giver: LoopDriver) -> Ended:
    giver.send(HandOver("r", 1))
    giver.run(lambda: bool(giver.of(Ended)))
    return giver.ended("r")


def go_on(taker: LoopDriver, produced: list[int], parcel: Parcel | None) -> None:
    taker.send(msgspec.structs.replace(submit("r", "a", epoch=2, produced=tuple(produced)), parcel=parcel))
    taker.run()
    assert produced + taker.tokens("r", 2) == expected("r", "a", 30)


def test_a_request_leaves_with_its_kv_and_is_not_computed_again() -> None:
    giver, taker = begun()
    ended = handed_over(giver)
    assert (ended.handed_over, ended.parcel and ended.parcel.tokens) == (True, 29)
    assert giver.engine.kv_bytes() == giver.engine.host_kv_bytes() == 0
    go_on(taker, giver.tokens("r"), ended.parcel)
    assert taker.engine.recomputed == []
    assert taker.loop._desk.travels.received == 1


def test_a_parcel_that_finds_no_room_is_computed_again() -> None:
    giver, taker = begun(0)
    ended = handed_over(giver)
    go_on(taker, giver.tokens("r"), ended.parcel)
    assert taker.engine.recomputed == ["r"]
    assert taker.loop._desk.travels.lost == 1


def test_without_a_place_for_parcels_a_request_leaves_alone() -> None:
    giver = LoopDriver(host_kv_memory_bytes=10 * GB)
    giver.add("a")
    giver.send(submit("r", "a"))
    giver.run(lambda: len(giver.tokens("r")) == 10)
    assert handed_over(giver).parcel is None
