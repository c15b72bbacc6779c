"""Two models a device: the one that runs and the next, loaded meanwhile. What the baselines do with device memory."""

from collections.abc import Iterable, Sequence

from hekaton.policy.types import Demand, RequestView, Turn, WorkerView

KV_RESERVE = 0.05
"""Share of the device that has to be left for KV beside two models, or else the next is not prefetched."""


def usable(view: WorkerView) -> dict[str, Demand]:
    """The demands that can be served: of models on the device, or that can be loaded."""
    known = view.resident | view.loading | view.ready
    return {model: demand for model, demand in view.demands.items() if model in known}


def by_arrival(demands: Iterable[Demand]) -> list[RequestView]:
    """All their requests, first come first."""
    requests = (request for demand in demands for request in demand.requests)
    return sorted(requests, key=lambda one: (one.arrival_s, one.request_id))


def paired_turn(
    view: WorkerView, model: str, request_ids: Sequence[str], budget_s: float, upcoming: Sequence[str]
) -> Turn:
    """Run `model`, and prefetch the first other model of `upcoming` if both fit. No others keep their weights.

    KV of other models leaves where the weights need its room, that of the model which runs last first.
    """
    following = next((other for other in upcoming if other != model), None)
    if following is not None and not _fits(view, model, following):
        following = None
    prefetch = () if following is None else (following,)
    present = view.resident | view.loading
    kept = (model, *prefetch)
    evict = tuple(sorted(present.difference(kept)))
    missing = _weights(view, [one for one in kept if one not in present]) - _weights(view, evict) - view.free_bytes
    release = _release(view, missing, model, upcoming)
    return Turn(model, tuple(request_ids), budget_s, evict, prefetch, release)


def _fits(view: WorkerView, model: str, following: str) -> bool:
    kv_bytes = view.kv_bytes.get(model, 0) + view.device_memory_bytes * KV_RESERVE
    return _weights(view, (model, following)) + kv_bytes <= view.device_memory_bytes


def _weights(view: WorkerView, models: Iterable[str]) -> int:
    return sum(view.costs[model].weight_bytes for model in models)


def _release(view: WorkerView, missing_bytes: int, model: str, upcoming: Sequence[str]) -> tuple[str, ...]:
    turns = {other: turn for turn, other in reversed(list(enumerate(upcoming)))}
    holders = sorted(other for other, held in view.kv_bytes.items() if held and other != model)
    release: list[str] = []
    for other in sorted(holders, key=lambda one: turns.get(one, len(upcoming)), reverse=True):
        if missing_bytes > 0:
            release.append(other)
            missing_bytes -= view.kv_bytes[other]
    return tuple(release)
