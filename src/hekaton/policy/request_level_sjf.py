"""ServerlessLLM+: request level, with an oracle of lengths. The batch that is done soonest runs first."""

from collections.abc import Sequence
from dataclasses import dataclass

from hekaton.policy.pair import by_arrival, paired_turn, usable
from hekaton.policy.request_level import TO_THE_END_S
from hekaton.policy.types import Placement, PlacementRequest, PoolWorker, RequestView, Turn, WorkerView, able


@dataclass(slots=True)
class _Batch:
    model: str
    requests: list[RequestView]

    def remaining_s(self, view: WorkerView) -> float:
        """Its prefills, and as many steps as its longest request has left."""
        costs = view.costs[self.model]
        prefill_s = sum(costs.prefill_s(one.pending_tokens) for one in self.requests if one.pending_tokens)
        context_tokens = sum(one.context_tokens + one.pending_tokens for one in self.requests)
        steps = max((one.output_tokens or 0) - one.produced_tokens for one in self.requests)
        return prefill_s + steps * costs.step_s(len(self.requests), context_tokens)


class ShortestFirstTurns:
    """Of batches of up to `slots` requests of a model the shortest runs, to its end.

    The artifact's also gives way to any shorter one that comes, prefills above all, and computes again what it had of
    the others: it collapses as soon as it has to switch. This one is the stronger baseline.
    """

    def __init__(self, slots: int = 4) -> None:
        self._slots = slots
        self._batches: list[_Batch] = []
        """The first one runs."""

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        running = self._batches[0] if self._batches else None
        self._update(by_arrival(usable(view).values()))
        if not self._batches:
            return None
        self._batches.sort(key=lambda one: (one is not running, one.remaining_s(view), one.requests[0].request_id))
        head = self._batches[0]
        return paired_turn(view, head.model, [one.request_id for one in head.requests], TO_THE_END_S, ())

    def _update(self, requests: Sequence[RequestView]) -> None:
        current = {request.request_id: request for request in requests}
        for batch in self._batches:
            known = (one.request_id for one in batch.requests)
            batch.requests = [current.pop(name) for name in known if name in current]
        self._batches = [batch for batch in self._batches if batch.requests]
        for request in current.values():
            self._batch_for(request.model).requests.append(request)

    def _batch_for(self, model: str) -> _Batch:
        for batch in self._batches:
            if batch.model == model and len(batch.requests) < self._slots:
                return batch
        self._batches.append(_Batch(model, []))
        return self._batches[-1]


class FewestBatchesPlacement(Placement):
    """To a worker with a batch of the model that is not full; else to the one with the fewest batches."""

    def __init__(self, slots: int = 4) -> None:
        self._slots = slots

    def place(self, request: PlacementRequest, workers: Sequence[PoolWorker]) -> str | None:
        candidates = able(request, workers)
        for worker in candidates:
            if worker.requests.get(request.model, 0) % self._slots:
                return worker.worker_id
        fewest = min(candidates, key=lambda worker: (self._batches(worker), worker.worker_id), default=None)
        return fewest.worker_id if fewest else None

    def _batches(self, worker: PoolWorker) -> int:
        return sum(-(-count // self._slots) for count in worker.requests.values())
