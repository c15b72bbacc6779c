"""Which attempt is told of a parcel."""

from hekaton.v1 import worker_pb2 as pb
from hekaton_scheduler.parcels import Parcels


def left(request_id: str, epoch: int, tokens: int = 40) -> pb.Released:
    return pb.Released(request_id=request_id, epoch=epoch, parcel=pb.Parcel(tokens=tokens))


def test_the_next_attempt_is_told_once() -> None:
    parcels = Parcels()
    parcels.put(left("r", 3))
    assert parcels.take("r", 4) == pb.Parcel(tokens=40)
    assert parcels.take("r", 4) is None


def test_no_other_attempt_is_told() -> None:
    parcels = Parcels()
    for epoch in (2, 3, 5):
        parcels.put(left("r", 3))
        assert parcels.take("r", epoch) is None


def test_a_release_without_kv_takes_the_place_of_an_older_one_with_it() -> None:
    parcels = Parcels()
    parcels.put(left("r", 3))
    parcels.put(pb.Released(request_id="r", epoch=4))
    assert parcels.take("r", 4) is None


def test_the_oldest_are_forgotten() -> None:
    parcels = Parcels(most=2)
    for name in "abc":
        parcels.put(left(name, 1))
    assert [parcels.take(name, 2) is None for name in "abc"] == [True, False, False]
