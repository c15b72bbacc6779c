"""How urgent each model of a worker is: by the most urgent of its requests that can still be in time."""

from collections.abc import Sequence
from dataclasses import dataclass

from hekaton.policy.types import Demand, ModelCosts, RequestView, WorkerView

GRACE = 0.1
"""Later than this share of its TTFT, a request is lost: it does not hurry its model any more."""
RETURN = 6.0
"""In TTFTs: a request this late is as urgent as one that is due now, so that everybody is served."""


@dataclass(frozen=True, slots=True)
class Rated:
    """A model with requests, and how urgent it is now."""

    model: str
    slack_s: float
    """Time to spare before its most urgent token is late: due − now − making it (− loading the weights)."""
    demand: Demand
    costs: ModelCosts

    def bytes_needed(self) -> int:
        """Weights, and KV to go on with the most urgent request."""
        first = self.demand.requests[0]
        return self.costs.weight_bytes + self.costs.kv_bytes_per_token * max(first.pending_tokens, 1)


def rate_all(view: WorkerView, now_s: float) -> list[Rated]:
    """Models that can run or be loaded, least slack first; among equals those on the device, then by name."""
    usable = view.resident | view.loading | view.ready
    rated = [_rate(view, demand, now_s) for demand in view.demands.values() if demand.model in usable]
    return sorted(rated, key=lambda one: (one.slack_s, one.model not in view.resident, one.model))


def _rate(view: WorkerView, demand: Demand, now_s: float) -> Rated:
    costs = view.costs[demand.model]
    load_s = 0.0 if demand.model in view.resident or demand.model in view.loading else costs.load_s
    return Rated(demand.model, _slack_s(demand, costs, now_s + load_s), demand, costs)


def _slack_s(demand: Demand, costs: ModelCosts, start_s: float) -> float:
    """Of the most urgent request that can still be in time; of one that is lost only once it has waited for long.

    Under overload somebody is late. To run whoever is latest makes everybody late; to let the lost ones wait keeps the
    others in time. They run in their model's batches, and where nobody else is urgent.
    """
    slack_s, first = demand.latest_start_s - start_s, demand.requests[0]
    if slack_s >= -GRACE * first.ttft_s:
        return slack_s
    back_s = slack_s + RETURN * first.ttft_s
    in_time = next((one for one in demand.requests if not _lost(one, start_s)), None)
    if in_time is None:
        return back_s
    own_s = costs.prefill_s(in_time.pending_tokens) if in_time.pending_tokens else demand.step_s
    return min(back_s, in_time.due_s() - start_s - own_s)


def most_urgent_first(requests: Sequence[RequestView], now_s: float) -> tuple[str, ...]:
    """The ids of requests in order of due time; lost ones last, since KV may not be there for all."""
    lost = frozenset(one.request_id for one in requests if _lost(one, now_s))
    return tuple(one.request_id for one in sorted(requests, key=lambda one: one.request_id in lost))


def _lost(request: RequestView, start_s: float) -> bool:
    return request.due_s() - start_s < -GRACE * request.ttft_s
