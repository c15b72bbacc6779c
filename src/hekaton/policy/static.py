"""Static sharing: a model gets a place on one device for good. `multiplex` (MuxServe) and `dedicated`."""

from collections.abc import Sequence

from hekaton.policy.pair import usable
from hekaton.policy.types import Placement, PlacementRequest, PoolWorker, Turn, WorkerView, able


class StaticPlacement(Placement):
    """First come, first served: a model's first request gives it a place, where models are fewest.

    A device takes up to `models` whose weights leave `kv_share` of its memory free. A model that finds no place is
    refused.
    """

    def __init__(self, models: int = 2, kv_share: float = 0.25) -> None:
        self._models = models
        self._kv_share = kv_share
        self._places: dict[str, dict[str, int]] = {}
        """Weights in bytes by model, by worker."""

    def place(self, request: PlacementRequest, workers: Sequence[PoolWorker]) -> str | None:
        known = {worker.worker_id for worker in workers}
        self._places = {name: held for name, held in self._places.items() if name in known}
        candidates = able(request, workers)
        home = next((name for name, held in self._places.items() if request.model in held), None)
        if home is not None:
            return home if any(worker.worker_id == home for worker in candidates) else None
        free = [worker for worker in candidates if self._has_place(request, worker)]
        chosen = min(free, key=lambda worker: self._rank(request.model, worker), default=None)
        if chosen is None:
            return None
        self._places.setdefault(chosen.worker_id, {})[request.model] = request.weight_bytes
        return chosen.worker_id

    def _has_place(self, request: PlacementRequest, worker: PoolWorker) -> bool:
        held = self._places.get(worker.worker_id, {})
        weights = sum(held.values()) + request.weight_bytes
        return len(held) < self._models and weights <= worker.device_memory_bytes * (1 - self._kv_share)

    def _rank(self, model: str, worker: PoolWorker) -> tuple[bool, int, int, str]:
        """Where it is already, else where models are fewest, and of those the smallest."""
        held = self._places.get(worker.worker_id, {})
        return model not in worker.resident, len(held), sum(held.values()), worker.worker_id


class SharedTurns:
    """The models of a device take turns of `slice_s`, in the order of their names: each has its share of the compute.

    All stay on the device.
    """

    def __init__(self, slice_s: float = 0.1) -> None:
        self._slice_s = slice_s
        self._last = ""

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        demands = usable(view)
        waiting = sorted(demands)
        if not waiting:
            return None
        here = [model for model in waiting if model in view.resident]
        absent = tuple(model for model in waiting if model not in view.resident)
        model, budget_s = self._choose(view, here, now_s) if here else (waiting[0], self._slice_s)
        self._last = model
        ids = tuple(request.request_id for request in demands[model].requests)
        return Turn(model, ids, budget_s, prefetch=tuple(one for one in absent if one != model))

    def _choose(self, view: WorkerView, here: Sequence[str], now_s: float) -> tuple[str, float]:
        rest_s = view.turn_started_s + self._slice_s - now_s
        running = view.running
        if running is not None and running in here and rest_s > 0:
            return running, rest_s
        return next((model for model in here if model > self._last), here[0]), self._slice_s
