from threading import Event

import pytest

from hekaton.errors import InvalidArgument
from hekaton.sim.abreast import abreast


def test_searches_run_at_the_same_time() -> None:
    met = Event()

    def first() -> bool:
        return met.wait(10)

    def second() -> bool:
        met.set()
        return True

    assert abreast({"first": first, "second": second}) == {"first": True, "second": True}


def test_an_error_does_not_wait_for_the_other_searches() -> None:
    release = Event()

    def fails() -> bool:
        raise InvalidArgument("no such policy")

    with pytest.raises(InvalidArgument, match="no such policy"):
        abreast({"slow": lambda: release.wait(60), "fails": fails})
    release.set()
