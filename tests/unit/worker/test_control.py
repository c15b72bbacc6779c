"""What a leader is told by a worker."""

import pytest

from hekaton.errors import InvalidArgument
from hekaton.store.leadership import MAX_TERM
from hekaton.v1 import worker_pb2 as pb
from hekaton_worker.control import Control

PARCEL = pb.Parcel(memory_address="host", tokens=40, bytes=1000)


@pytest.mark.parametrize(
    "released",
    [
        pb.Released(request_id="r", epoch=2, moved=True, parcel=PARCEL),
        pb.Released(request_id="r", epoch=2, handed_over=True, parcel=PARCEL),
        pb.Released(request_id="r", epoch=2, refused=True),
    ],
)
async def test_what_was_given_back_while_nobody_led_is_told_to_the_next_leader_once(released: pb.Released) -> None:
    control = Control(lambda is_first: pb.WorkerReport())
    control.open(1).close()
    control.released(released)
    control.released(pb.Released(request_id="ended", epoch=1))
    first = await control.open(2).get()
    assert first
    assert list(first.state.given_back) == [released]
    again = await control.open(2).get()
    assert again
    assert not again.state.given_back


async def test_a_term_that_no_leader_could_follow_is_refused_and_forgotten() -> None:
    """Else one wrong message would leave the worker without a leader for good."""
    control = Control(lambda is_first: pb.WorkerReport())
    with pytest.raises(InvalidArgument, match="the last that there can be"):
        control.open(MAX_TERM + 1)
    assert control.commands(control.open(1))
