"""Aegaeon's placement: the groups of Algorithm 1 for prefill, the batches of Algorithm 2 for decode."""

from collections.abc import Callable, Sequence

from hekaton.policy.types import ModelCosts, Placement, PlacementRequest, PoolWorker, Role, able


class GroupedPlacement(Placement):
    """Prefill: to the first group of the model with room, anywhere; else to a new group where the load is least.

    A worker's load is the time to prefill what waits there and to load a model for each group.
    """

    def __init__(self, costs: Callable[[str], ModelCosts], group_size: int = 8) -> None:
        self._costs = costs
        self._group_size = group_size
        self._added: dict[tuple[str, str], int] = {}
        """By worker and model: how many the newest group has ever been given."""

    def place(self, request: PlacementRequest, workers: Sequence[PoolWorker]) -> str | None:
        candidates = able(request, workers)
        if not candidates:
            return None
        open_groups = (worker for worker in candidates if self._has_room(worker, request.model))
        chosen = next(open_groups, None)
        if chosen is None:
            chosen = min(candidates, key=lambda worker: (self._load_s(worker, request.prompt_tokens), worker.worker_id))
            self._added[chosen.worker_id, request.model] = 0
        self._added[chosen.worker_id, request.model] += 1
        return chosen.worker_id

    def _has_room(self, worker: PoolWorker, model: str) -> bool:
        added = self._added.get((worker.worker_id, model), self._group_size)
        return model in worker.requests and added < self._group_size

    def _load_s(self, worker: PoolWorker, typical_tokens: int) -> float:
        return sum(self._model_load_s(worker, model, count, typical_tokens) for model, count in worker.requests.items())

    def _model_load_s(self, worker: PoolWorker, model: str, count: int, typical_tokens: int) -> float:
        """`typical_tokens` stands for prompts of which nothing is known."""
        costs = self._costs(model)
        known = worker.prefill_tokens
        tokens = count * typical_tokens if known is None else known.get(model, 0)
        groups = -(-count // self._group_size)
        return groups * costs.load_s + count * costs.prefill_base_s + tokens * costs.prefill_s_per_token


class BatchPlacement(Placement):
    """Decode: to the first worker with a batch of the model and room for the KV, else where batches are fewest.

    The paper leaves open which of equals; here the one with the fewest requests, which sustains some three models more.
    """

    def place(self, request: PlacementRequest, workers: Sequence[PoolWorker]) -> str | None:
        candidates = able(request, workers)
        for worker in candidates:
            if request.model in worker.requests and _kv_fits(request, worker):
                return worker.worker_id
        return min(candidates, key=_batches).worker_id if candidates else None


class AegaeonPlacement(Placement):
    """Both, by phase."""

    def __init__(self, prefill: Placement, decode: Placement) -> None:
        self._prefill = prefill
        self._decode = decode

    def place(self, request: PlacementRequest, workers: Sequence[PoolWorker]) -> str | None:
        return (self._prefill if request.phase is Role.PREFILL else self._decode).place(request, workers)


def _batches(worker: PoolWorker) -> tuple[int, int, str]:
    return len(worker.requests), sum(worker.requests.values()), worker.worker_id


def _kv_fits(request: PlacementRequest, worker: PoolWorker) -> bool:
    """Would a batch of requests like this one fit beside two such models?"""
    kv_bytes = (worker.requests[request.model] + 1) * request.prompt_tokens * request.kv_bytes_per_token
    return kv_bytes + 2 * request.weight_bytes <= worker.device_memory_bytes
