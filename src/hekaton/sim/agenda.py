"""Virtual time: what happens next, in order of time and then of being asked for."""

import heapq
from collections.abc import Callable


class Agenda:
    """A heap of events. Nothing here reads a clock, so a run is the same every time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Calls `action` at `time_s`, or now if that is past."""
        heapq.heappush(self._heap, (max(time_s, self.now_s), self._asked, action))
        self._asked += 1

    def run(self) -> None:
        """Runs events until there are none left."""
        while self._heap:
            self.now_s, _, action = heapq.heappop(self._heap)
            action()
