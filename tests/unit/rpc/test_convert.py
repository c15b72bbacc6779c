import pytest

from hekaton.errors import HekatonError
from hekaton.facts import FinishReason
from hekaton.rpc import convert
from hekaton.v1 import common_pb2


def test_every_finish_reason_comes_back_and_an_unknown_one_is_an_error() -> None:
    assert {convert.finish_from_pb(convert.FINISH_TO_PB[reason]) for reason in FinishReason} == set(FinishReason)
    with pytest.raises(HekatonError, match="update this side"):
        convert.finish_from_pb(common_pb2.FINISH_REASON_UNSPECIFIED)
