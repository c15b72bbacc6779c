"""ServerlessLLM: a worker serves one model at a time, each request to its end, in order of arrival."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from hekaton.policy.pair import by_arrival, paired_turn, usable
from hekaton.policy.types import Placement, PlacementRequest, PoolWorker, Turn, WorkerView, able

TO_THE_END_S = 3600.0
"""The budget of turns that nothing but an end of a request ends."""


class QueueTurns:
    """The head of the queue runs, and with it those right behind it of the same model, `slots` at a time."""

    def __init__(self, slots: int = 4) -> None:
        self._slots = slots

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        queue = by_arrival(usable(view).values())
        if not queue:
            return None
        model = queue[0].model
        run = list(takewhile(lambda one: one.model == model, queue))
        ids = [one.request_id for one in run[: self._slots]]
        return paired_turn(view, model, ids, TO_THE_END_S, ())


@dataclass(slots=True)
class _Run:
    """Requests in a row, of one model, in a worker's queue."""

    model: str
    count: int


class QueuePlacement(Placement):
    """To the worker whose queue ends with the model, with the fewest in that run and a slot free.

    Else to the end of the queue of the worker that was used least recently, an idle one if there is any. As in the
    artifact only steps are use: one that still loads a model is given the next as well.
    """

    def __init__(self, slots: int = 4) -> None:
        self._slots = slots
        self._queues: dict[str, list[_Run]] = {}
        """The last run stays when it has ended: its model is the one on the device."""
        self._placed = 0
        self._ran: dict[str, int] = {}
        """How many requests had been placed when a worker was last seen to run."""
        self._given: dict[str, int] = {}
        """How many when it was last given one."""

    def place(self, request: PlacementRequest, workers: Sequence[PoolWorker]) -> str | None:
        candidates = able(request, workers)
        if not candidates:
            return None
        self._placed += 1
        for worker in candidates:
            if worker.requests and not worker.loading:
                self._ran[worker.worker_id] = self._placed
        chosen = self._choose(request.model, candidates)
        self._given[chosen] = self._placed
        self._append(chosen, request.model)
        return chosen

    def _choose(self, model: str, workers: Sequence[PoolWorker]) -> str:
        tails = {worker.worker_id: self._tail(worker) for worker in workers}
        same = {name: run.count for name, run in tails.items() if run and run.model == model}
        others = [worker for worker in workers if worker.worker_id not in same]
        if others and min(same.values(), default=self._slots) >= self._slots:
            return min(others, key=self._last_use).worker_id
        return min(same, key=lambda name: (same[name], name))

    def _last_use(self, worker: PoolWorker) -> tuple[bool, int, int, str]:
        name = worker.worker_id
        return bool(worker.requests), self._ran.get(name, 0), self._given.get(name, 0), name

    def _append(self, worker_id: str, model: str) -> None:
        queue = self._queues[worker_id]
        if queue and queue[-1].model == model:
            queue[-1].count += 1
        else:
            queue.append(_Run(model, 1))

    def _tail(self, worker: PoolWorker) -> _Run | None:
        """The queue's last run, what has ended since taken off: the oldest of a model end first."""
        queue = self._queues.setdefault(worker.worker_id, [])
        left = dict(worker.requests)
        for run in reversed(queue):
            run.count = min(run.count, left.get(run.model, 0))
            left[run.model] = left.get(run.model, 0) - run.count
        queue[:-1] = [run for run in queue[:-1] if run.count]
        return queue[-1] if queue else None
