"""One device's memory: a single buffer, taken once, cut into extents.

Weights grow from the bottom, KV slabs from the top; the border between them is wherever they meet. No torch in the
books; the buffer itself is the engine's.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Bytes [start, end) of the device."""

    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


class Extents:
    """Which bytes are free. Neighbouring free extents are always merged."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.free_bytes = nbytes
        self._free: list[Extent] = [Extent(0, nbytes)] if nbytes else []
        self._used: set[Extent] = set()

    @property
    def largest_free_bytes(self) -> int:
        """Of one piece."""
        return max((hole.nbytes for hole in self._free), default=0)

    def allocate(self, nbytes: int) -> Extent | None:
        """The lowest fit; None if there is none."""
        for hole in self._free:
            if nbytes <= hole.nbytes:
                return self._take(hole, Extent(hole.start, hole.start + nbytes))
        return None

    def allocate_top(self, nbytes: int) -> Extent | None:
        """The highest fit; None if there is none."""
        for hole in reversed(self._free):
            if nbytes <= hole.nbytes:
                return self._take(hole, Extent(hole.end - nbytes, hole.end))
        return None

    def lower(self, extent: Extent) -> Extent:
        """Books an extent anew at its lowest fit, which may overlap its old place. Its bytes are the caller's."""
        self.free(extent)
        return self.allocate(extent.nbytes) or extent

    def lift(self, extent: Extent, nbytes: int) -> Extent:
        """Books the last `nbytes` of an extent anew at their highest fit, and frees the rest."""
        self.free(extent)
        return self.allocate_top(nbytes) or extent

    def free(self, extent: Extent) -> None:
        """Raises KeyError if the extent is not allocated."""
        self._used.remove(extent)
        self.free_bytes += extent.nbytes
        index = bisect_left(self._free, extent)
        start, end = extent.start, extent.end
        if index < len(self._free) and self._free[index].start == end:
            end = self._free.pop(index).end
        if index > 0 and self._free[index - 1].end == start:
            start = self._free.pop(index - 1).start
        insort(self._free, Extent(start, end))

    def check_integrity(self) -> None:
        """Raises AssertionError unless used and free extents tile the device and free ones are merged."""
        at = 0
        previous_free = False
        free = set(self._free)
        for extent in sorted(free | self._used):
            if extent.start != at or extent.nbytes <= 0:
                raise AssertionError(f"device memory: {extent} does not follow {at}")
            if extent in free and previous_free:
                raise AssertionError(f"device memory: free extents meet at {at}")
            previous_free, at = extent in free, extent.end
        if at != self.nbytes or self.free_bytes != sum(extent.nbytes for extent in free):
            raise AssertionError("device memory: the books do not add up to the device")

    def _take(self, hole: Extent, extent: Extent) -> Extent:
        self._free.remove(hole)
        for rest in (Extent(hole.start, extent.start), Extent(extent.end, hole.end)):
            if rest.nbytes:
                insort(self._free, rest)
        self._used.add(extent)
        self.free_bytes -= extent.nbytes
        return extent
