"""The copies of weights to an emulated device, one after the other in the order in which they were asked for."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Load:
    model: str
    load_s: float
    """What it takes by itself."""
    asked_s: float
    start_s: float
    end_s: float


class EmulatedLoads:
    """`free_s` is when the KV that has been asked for so far is back: it goes first on the same copy engine."""

    def __init__(self) -> None:
        self._queue: list[Load] = []

    @property
    def models(self) -> list[str]:
        return [load.model for load in self._queue]

    def ends_s(self) -> list[float]:
        """When the next load ends, if there is one."""
        return [load.end_s for load in self._queue[:1]]

    def add(self, model: str, load_s: float, free_s: float, now_s: float) -> None:
        self._append(model, load_s, now_s, free_s, now_s)

    def cancel(self, model: str, free_s: float, now_s: float) -> None:
        """Takes a load off the copy engine; those behind it move up, one that has begun keeps its times."""
        waiting, self._queue = self._queue, []
        for load in waiting:
            if load.model == model:
                continue
            if load.start_s <= now_s:
                self._queue.append(load)
            else:
                self._append(load.model, load.load_s, load.asked_s, free_s, now_s)

    def delay(self, took_s: float, now_s: float) -> None:
        """Weights wait for KV, which a request waits for."""
        self._queue = [
            replace(load, start_s=load.start_s + took_s * (load.start_s > now_s), end_s=load.end_s + took_s)
            for load in self._queue
        ]

    def ended(self, now_s: float) -> list[Load]:
        """Those that have ended since the last call."""
        ended = []
        while self._queue and self._queue[0].end_s <= now_s:
            ended.append(self._queue.pop(0))
        return ended

    def _append(self, model: str, load_s: float, asked_s: float, free_s: float, now_s: float) -> None:
        """Behind those that are queued, or from now on if the copy engine is idle."""
        start_s = max(asked_s, free_s, self._queue[-1].end_s if self._queue else now_s)
        self._queue.append(Load(model, load_s, asked_s, start_s, start_s + load_s))
