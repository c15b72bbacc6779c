"""The device's books, under any sequence of allocations."""

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from hekaton.engine.device import Extent, Extents

DEVICE_BYTES = 4096
SIZES = st.integers(1, 1500)


class AnyUse(RuleBasedStateMachine):
    extents: Bundle[Extent] = Bundle("extents")

    def __init__(self) -> None:
        super().__init__()
        self.memory = Extents(DEVICE_BYTES)
        self.used: list[Extent] = []

    @rule(target=extents, nbytes=SIZES, top=st.booleans())
    def allocate(self, nbytes: int, top: bool) -> Extent | MultipleResults[Extent]:
        fits = self._fits(nbytes)
        extent = (self.memory.allocate_top if top else self.memory.allocate)(nbytes)
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

    @rule(target=extents, extent=consumes(extents))
    def lower(self, extent: Extent) -> Extent:
        self.used.remove(extent)
        start = self._fits(extent.nbytes)[0]
        place = self.memory.lower(extent)
        assert place == Extent(start, start + extent.nbytes)
        assert start <= extent.start
        self.used.append(place)
        return place

    @rule(target=extents, extent=consumes(extents), cut=st.integers(0, 1499))
    def lift(self, extent: Extent, cut: int) -> Extent:
        nbytes = max(extent.nbytes - cut, 1)
        self.used.remove(extent)
        start = self._fits(nbytes)[-1]
        place = self.memory.lift(extent, nbytes)
        assert place == Extent(start, start + nbytes)
        self.used.append(place)
        return place

    @invariant()
    def books_balance(self) -> None:
        self.memory.check_integrity()
        assert self.memory.free_bytes == DEVICE_BYTES - sum(extent.nbytes for extent in self.used)
        assert all(a.end <= b.start for a, b in pairwise(sorted(self.used)))
        largest = self.memory.largest_free_bytes
        assert not largest or self._fits(largest)
        assert not self._fits(largest + 1)

    def teardown(self) -> None:
        for extent in self.used:
            self.memory.free(extent)
        self.memory.check_integrity()
        assert self.memory.allocate(DEVICE_BYTES) == Extent(0, DEVICE_BYTES)

    def _fits(self, nbytes: int) -> list[int]:
        """Where so many bytes are free."""
        ends = [0, *(extent.end for extent in sorted(self.used))]
        starts = [*(extent.start for extent in sorted(self.used)), DEVICE_BYTES]
        return [start for end, limit in zip(ends, starts, strict=True) for start in range(end, limit - nbytes + 1)]


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=60, stateful_step_count=30)


def test_an_extent_cannot_be_freed_twice() -> None:
    memory = Extents(100)
    extent = memory.allocate(10)
    assert extent is not None
    memory.free(extent)
    with pytest.raises(KeyError):
        memory.free(extent)


def test_a_device_of_no_bytes_holds_nothing() -> None:
    memory = Extents(0)
    memory.check_integrity()
    assert memory.allocate(1) is None


def test_a_lost_extent_is_noticed() -> None:
    memory = Extents(100)
    memory.allocate(10)
    memory._used.clear()
    with pytest.raises(AssertionError, match="device memory"):
        memory.check_integrity()
