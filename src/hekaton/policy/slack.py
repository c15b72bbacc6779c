"""Least slack first: the model whose next token is most in danger runs, and loads happen beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from hekaton.policy.types import ModelCosts, RequestView, Turn, WorkerView


@dataclass(frozen=True, slots=True)
class _Demand:
    """A model with requests."""

    model: str
    slack_s: float
    """Time to spare before its most urgent token is late: due − now − making it (− loading the weights)."""
    requests: tuple[RequestView, ...]
    """The most urgent first."""
    costs: ModelCosts

    def bytes_needed(self) -> int:
        """Weights, and KV to go on with the most urgent request."""
        first = self.requests[0]
        return self.costs.weight_bytes + self.costs.kv_bytes_per_token * max(first.pending_tokens, 1)


@dataclass(frozen=True, slots=True)
class _Room:
    """Models to evict for a load, and whether the load fits then."""

    evict: tuple[str, ...]
    fits: bool


class SlackTurns:
    """The default turn policy (`slack`).

    - Of the models on the device the one with the least slack runs, for `min_turn_s` at least.
    - One load at a time, of the most urgent model that is not on the device, while something else runs. It may take the
      room of idle models, and of models that would have more slack than it even after they had been evicted.
    - If the two do not fit beside each other, the running one gives way once it has run for as long as the load takes.
    """

    def __init__(self, min_turn_s: float = 0.4, max_turn_s: float = 4.0, kv_reserve: float = 0.1) -> None:
        self._min_turn_s = min_turn_s
        self._max_turn_s = max_turn_s
        """The longest that a model which is late already waits for the one that has its place."""
        self._kv_reserve = kv_reserve
        """Share of the device that a load beside a running model leaves free for KV."""

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        demands = _demands(view, now_s)
        if not demands:
            return None
        on_device = [demand for demand in demands if demand.model in view.resident]
        load = _next_load(view, demands)
        if not on_device:
            first = load or next(demand for demand in demands if demand.model in view.loading)
            evict = _room_for(view, load, demands).evict if load else ()
            return self._turn(view, first, evict, (), now_s)
        run = self._choose(view, on_device, now_s)
        if load is None:
            return self._turn(view, run, (), (), now_s)
        beside = self._room_beside(view, load, run, demands)
        if beside.fits:
            return self._turn(view, run, beside.evict, (load.model,), now_s)
        if self._gives_way(view, run, load, now_s):
            return self._turn(view, load, _room_for(view, load, demands).evict, (), now_s)
        return self._turn(view, run, (), (), now_s)

    def _choose(self, view: WorkerView, on_device: Sequence[_Demand], now_s: float) -> _Demand:
        """The current model within its minimum turn or while nobody's slack is worse, else the least slack."""
        best = on_device[0]
        current = next((demand for demand in on_device if demand.model == view.running), None)
        if current is None:
            return best
        fresh = now_s - view.turn_started_s < self._min_turn_s
        return current if fresh or current.slack_s <= best.slack_s else best

    def _room_beside(self, view: WorkerView, load: _Demand, run: _Demand, demands: Sequence[_Demand]) -> _Room:
        """What to evict so that `load` fits beside `run`: only what is less urgent than `load`."""
        keep = {run.model} | {other.model for other in demands if not _more_urgent(load, other)}
        reserve = int(view.device_memory_bytes * self._kv_reserve)
        return _room_for(view, load, demands, frozenset(keep), reserve)

    def _gives_way(self, view: WorkerView, run: _Demand, load: _Demand, now_s: float) -> bool:
        """Is it time to stop `run` so that `load` can have its place?"""
        if run.model != view.running:
            return _more_urgent(load, run)
        ran_s = now_s - view.turn_started_s
        if load.slack_s < 0 and ran_s >= max(self._max_turn_s, load.costs.load_s):
            return True
        return _more_urgent(load, run) and ran_s >= max(self._min_turn_s, load.costs.load_s)

    def _turn(
        self, view: WorkerView, run: _Demand, evict: tuple[str, ...], prefetch: tuple[str, ...], now_s: float
    ) -> Turn:
        rest_s = view.turn_started_s + self._min_turn_s - now_s if run.model == view.running else 0.0
        ids = tuple(request.request_id for request in run.requests)
        return Turn(run.model, ids, rest_s if rest_s > 0 else self._min_turn_s, evict, prefetch)


def _demands(view: WorkerView, now_s: float) -> list[_Demand]:
    """Models that can run or be loaded, least slack first; among equals those on the device, then by name."""
    by_model: dict[str, list[RequestView]] = {}
    for request in view.requests:
        if request.model in view.resident or request.model in view.loading or request.model in view.ready:
            by_model.setdefault(request.model, []).append(request)
    demands = [_demand(view, model, requests, now_s) for model, requests in by_model.items()]
    return sorted(demands, key=lambda demand: (demand.slack_s, demand.model not in view.resident, demand.model))


def _demand(view: WorkerView, model: str, requests: list[RequestView], now_s: float) -> _Demand:
    costs = view.costs[model]
    decoding = [request for request in requests if not request.pending_tokens]
    step_s = costs.step_s(len(decoding), sum(request.context_tokens for request in decoding))
    load_s = 0.0 if model in view.resident or model in view.loading else costs.load_s
    slack_s = min(
        request.due_s() - now_s - (costs.prefill_s(request.pending_tokens) if request.pending_tokens else step_s)
        for request in requests
    )
    ordered = sorted(requests, key=lambda request: (request.due_s(), request.arrival_s, request.request_id))
    return _Demand(model, slack_s - load_s, tuple(ordered), costs)


def _next_load(view: WorkerView, demands: Sequence[_Demand]) -> _Demand | None:
    """The model to load next: none while a load is under way that somebody waits for."""
    if any(demand.model in view.loading for demand in demands):
        return None
    return next((demand for demand in demands if demand.model not in view.resident), None)


def _more_urgent(load: _Demand, other: _Demand) -> bool:
    """Would `load` be more urgent than `other` even if `other` had to be loaded again?"""
    return load.slack_s < other.slack_s - other.costs.load_s


def _room_for(
    view: WorkerView,
    load: _Demand,
    demands: Sequence[_Demand],
    keep: frozenset[str] = frozenset(),
    reserve_bytes: int = 0,
) -> _Room:
    """What to evict so that `load` fits: idle models first, then those with the most slack."""
    waited_for = [demand.model for demand in reversed(demands)]
    idle = sorted((view.resident | view.loading) - set(waited_for))
    missing = load.bytes_needed() + reserve_bytes - view.free_bytes
    evict: list[str] = []
    for model in [*idle, *(model for model in waited_for if model in view.resident)]:
        if missing > 0 and model not in keep:
            evict.append(model)
            missing -= view.costs[model].weight_bytes
    return _Room(tuple(evict), missing <= 0)
