"""Placement by affinity: a request goes where its model is, unless that worker has enough to do."""

from collections.abc import Mapping
from types import MappingProxyType

from hekaton.policy.types import PlacementRequest, PoolWorker

NO_SHARES: Mapping[str, float] = MappingProxyType({})


class AffinityPlacement:
    """The default placement (`affinity`).

    A worker's utilisation is the sum over its active models of step time ÷ TBT (`step_shares`; `default_share` for a
    model without one), and a little for each request. Workers that run or hold the model come first as long as their
    utilisation is below `overload`; then the least utilised.
    """

    def __init__(
        self,
        overload: float = 2.0,
        step_shares: Mapping[str, float] = NO_SHARES,
        default_share: float = 0.1,
        request_share: float = 0.01,
    ) -> None:
        self._overload = overload
        self._step_shares = step_shares
        self._default_share = default_share
        self._request_share = request_share

    def place(self, request: PlacementRequest, workers: tuple[PoolWorker, ...]) -> str | None:
        able = [worker for worker in workers if not worker.draining and _holds(worker, request)]
        return min(able, key=lambda worker: self._rank(worker, request.model)).worker_id if able else None

    def utilisation(self, worker: PoolWorker) -> float:
        active = {model: count for model, count in worker.requests.items() if count > 0}
        models = sum(self._step_shares.get(model, self._default_share) for model in active)
        return models + self._request_share * sum(active.values())

    def _rank(self, worker: PoolWorker, model: str) -> tuple[int, float, str]:
        """Running, else holding, else any; then by utilisation. An overloaded worker has no affinity."""
        load = self.utilisation(worker)
        if load >= self._overload:
            return 2, load, worker.worker_id
        if worker.requests.get(model, 0) > 0:
            return 0, load, worker.worker_id
        return (1 if model in worker.resident | worker.loading else 2), load, worker.worker_id


def _holds(worker: PoolWorker, request: PlacementRequest) -> bool:
    kv_bytes = request.kv_bytes_per_token * (request.prompt_tokens + request.max_tokens)
    return request.weight_bytes + kv_bytes <= worker.device_memory_bytes
