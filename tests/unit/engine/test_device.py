"""The device's books, under any sequence of allocations."""

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from hekaton.engine.device import Extent, Extents

DEVICE_BYTES = 4096
SIZES = st.integers(1, 1500)
ALIGNMENTS = st.sampled_from([1, 7, 256])


class AnyUse(RuleBasedStateMachine):
    extents: Bundle[Extent] = Bundle("extents")

    def __init__(self) -> None:
        super().__init__()
        self.memory = Extents(DEVICE_BYTES)
        self.used: list[Extent] = []

    @rule(target=extents, nbytes=SIZES, align=ALIGNMENTS, top=st.booleans())
    def allocate(self, nbytes: int, align: int, top: bool) -> Extent | MultipleResults[Extent]:
        extent = (self.memory.allocate_top if top else self.memory.allocate)(nbytes, align)
        first = DEVICE_BYTES % align if top else 0
        starts = range(first, DEVICE_BYTES - nbytes + 1, align)
        fits = [start for start in starts if self._is_free(start, start + nbytes)]
        if extent is None:
            assert not fits
            return multiple()
        start = fits[-1 if top else 0]
        assert extent == Extent(start, start + nbytes)
        self.used.append(extent)
        return extent

    @rule(extent=consumes(extents))
    def free(self, extent: Extent) -> None:
        self.memory.free(extent)
        self.used.remove(extent)

    @invariant()
    def books_balance(self) -> None:
        self.memory.check_integrity()
        assert self.memory.free_bytes == DEVICE_BYTES - sum(extent.nbytes for extent in self.used)
        assert all(a.end <= b.start for a, b in pairwise(sorted(self.used)))

    def teardown(self) -> None:
        for extent in self.used:
            self.memory.free(extent)
        self.memory.check_integrity()
        assert self.memory.allocate(DEVICE_BYTES, 1) == Extent(0, DEVICE_BYTES)

    def _is_free(self, start: int, end: int) -> bool:
        return all(end <= extent.start or extent.end <= start for extent in self.used)


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=60, stateful_step_count=30)


def test_an_extent_cannot_be_freed_twice() -> None:
    memory = Extents(100)
    extent = memory.allocate(10, 1)
    assert extent is not None
    memory.free(extent)
    with pytest.raises(KeyError):
        memory.free(extent)


def test_a_device_of_no_bytes_holds_nothing() -> None:
    memory = Extents(0)
    memory.check_integrity()
    assert memory.allocate(1, 1) is None


def test_a_lost_extent_is_noticed() -> None:
    memory = Extents(100)
    memory.allocate(10, 1)
    memory._used.clear()
    with pytest.raises(AssertionError, match="device memory"):
        memory.check_integrity()
