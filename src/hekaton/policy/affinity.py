"""Placement by affinity: a request goes where its model is, unless that worker has clearly more to do than another."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest

from hekaton.policy.load import COPY_WEIGHT, CostsOf, Load, load_of
from hekaton.policy.types import Move, Placement, PlacementRequest, PoolWorker, able

CANDIDATES = 8
"""Of the workers without the model, so many of the least loaded are looked at closely."""
WORKERS_A_MOVE = 16
"""One model at most moves at a time for each so many workers: a move is seen in the loads before the next is made."""
SPREAD = 0.9
"""Load up to which a worker is given requests of a model that runs elsewhere: one that floods the pool takes no more
than what the others leave."""
FULL = 0.8
"""Load below which nothing moves away from a worker."""
SLO_WEIGHT = 0.05
"""Of the newest request in what is taken for the pool's usual SLO."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A worker's load, as of this view of it, and its share at this SLO."""

    worker: PoolWorker
    load: Load
    ttft_s: float
    tbt_s: float
    share: float


@dataclass(slots=True)
class _Slo:
    ttft_s: float
    tbt_s: float

    def saw(self, request: PlacementRequest) -> None:
        self.ttft_s += SLO_WEIGHT * (request.ttft_s - self.ttft_s)
        self.tbt_s += SLO_WEIGHT * (request.tbt_s - self.tbt_s)


class AffinityPlacement(Placement):
    """The default placement (`affinity`): the least load (`Load.share`), where a model that moves pays for it.

    A worker on which nothing of the model runs adds `affinity` times the share of a TBT that the model's step takes,
    since two requests of one model in one batch cost little more than one; where the weights are missing too,
    `load_weight` times the share of a TTFT that loading them takes. A model that runs somewhere goes to another worker
    only where that has time for it. A model moves from the most to the least loaded worker if that makes the worse of
    the two better by `hysteresis`.
    """

    def __init__(
        self,
        costs: CostsOf,
        affinity: float = 3.0,
        load_weight: float = 0.3,
        copy_weight: float = COPY_WEIGHT,
        hysteresis: float = 0.02,
    ) -> None:
        self._costs = costs
        self._affinity = affinity
        self._load_weight = load_weight
        self._copy_weight = copy_weight
        self._hysteresis = hysteresis
        self._slo: _Slo | None = None
        self._known: dict[str, _Known] = {}

    def place(self, request: PlacementRequest, workers: Sequence[PoolWorker]) -> str | None:
        if self._slo is None:
            self._slo = _Slo(request.ttft_s, request.tbt_s)
        self._slo.saw(request)
        costs = self._costs(request.model)
        elsewhere = self._affinity * costs.step_base_s / request.tbt_s
        absent = elsewhere + self._load_weight * costs.load_s / request.ttft_s

        candidates = self._candidates(request, workers)
        spreads = any(request.model in worker.requests for worker in candidates)

        def rank(worker: PoolWorker) -> tuple[bool, float, str]:
            load = self._look(worker, request.ttft_s, request.tbt_s).load
            if request.model in worker.requests:
                after, moved = load.with_request(costs, worker.requests[request.model]), 0.0
            else:
                after, moved = load.with_model(costs, 1), elsewhere if _holds(worker, request.model) else absent
            share = after.share(worker.device_memory_bytes, request.ttft_s, request.tbt_s, self._copy_weight)
            crowds_out = spreads and request.model not in worker.requests and share > SPREAD
            return crowds_out, share + moved, worker.worker_id

        chosen = min(candidates, key=rank, default=None)
        return chosen.worker_id if chosen else None

    def _candidates(self, request: PlacementRequest, workers: Sequence[PoolWorker]) -> list[PoolWorker]:
        """Those with the model, and the least loaded of the others."""
        with_model: list[PoolWorker] = []
        others: list[PoolWorker] = []
        for worker in able(request, workers):
            there = request.model in worker.requests or _holds(worker, request.model)
            (with_model if there else others).append(worker)

        def share(worker: PoolWorker) -> float:
            return self._look(worker, request.ttft_s, request.tbt_s).share

        return with_model + nsmallest(CANDIDATES, others, key=share)

    def rebalance(self, workers: Sequence[PoolWorker]) -> tuple[Move, ...]:
        """The most with the least loaded worker, the next with the next, and so on."""
        slo = self._slo
        if slo is None:
            return ()
        serving = [worker for worker in workers if not worker.draining]
        ordered = sorted(serving, key=lambda one: (self._look(one, slo.ttft_s, slo.tbt_s).share, one.worker_id))
        pairs = zip(reversed(ordered), ordered, strict=True)
        count = min(-(-len(serving) // WORKERS_A_MOVE), len(serving) // 2)
        moves = (self._move(full, spare, slo) for (full, spare), _ in zip(pairs, range(count), strict=False))
        return tuple(move for move in moves if move)

    def _move(self, full: PoolWorker, spare: PoolWorker, slo: _Slo) -> Move | None:
        """The model whose move makes the worse of the two best."""
        now = self._look(full, slo.ttft_s, slo.tbt_s).share
        if now < FULL:
            return None
        worst = now - self._hysteresis
        chosen: str | None = None
        for model in sorted(full.requests):
            rest = load_of({name: count for name, count in full.requests.items() if name != model}, self._costs)
            merged = dict(spare.requests)
            merged[model] = merged.get(model, 0) + full.requests[model]
            spare_share = self._share(load_of(merged, self._costs), spare, slo)
            after = max(self._share(rest, full, slo), spare_share)
            if after < worst and self._costs(model).weight_bytes <= spare.device_memory_bytes:
                worst, chosen = after, model
        return Move(chosen, full.worker_id, spare.worker_id) if chosen else None

    def _share(self, load: Load, worker: PoolWorker, slo: _Slo) -> float:
        return load.share(worker.device_memory_bytes, slo.ttft_s, slo.tbt_s, self._copy_weight)

    def _look(self, worker: PoolWorker, ttft_s: float, tbt_s: float) -> _Known:
        known = self._known.get(worker.worker_id)
        if known is None or known.worker is not worker or known.ttft_s != ttft_s or known.tbt_s != tbt_s:
            same = known is not None and known.worker.requests == worker.requests
            load = known.load if known is not None and same else load_of(worker.requests, self._costs)
            share = load.share(worker.device_memory_bytes, ttft_s, tbt_s, self._copy_weight)
            known = self._known[worker.worker_id] = _Known(worker, load, ttft_s, tbt_s, share)
        return known


def _holds(worker: PoolWorker, model: str) -> bool:
    return model in worker.resident or model in worker.loading
