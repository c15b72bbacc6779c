"""How urgent each model of a worker is: by the most urgent of its requests that can still be in time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    return sorted(_yielding(view, rated), key=lambda one: (one.slack_s, one.model not in view.resident, one.model))


def slack_if_gone_s(view: WorkerView, one: Rated) -> float:
    """What would be left of a model's slack if its weights and KV had to be brought back."""
    costs, kv_bytes = one.costs, view.kv_bytes.get(one.model, 0)
    if not costs.swap_s_per_token:
        return one.slack_s - costs.load_s * (costs.weight_bytes + kv_bytes) / costs.weight_bytes
    return one.slack_s - costs.load_s - costs.swap_s_per_token * kv_bytes / costs.kv_bytes_per_token


def _yielding(view: WorkerView, rated: list[Rated]) -> list[Rated]:
    """Gives models of which every request yields more slack, all the same, where there are others.

    So much that none of them, even if it were gone, is before a new request of those others: that gets its first token
    at once. Later ones may then run ahead of their reader by as much as a first token has time, and no further.
    """
    behind = [one for one in rated if one.demand.yields]
    if not behind or len(behind) == len(rated):
        return rated
    longest_s = max(each.ttft_s for one in rated if not one.demand.yields for each in one.demand.urgent)
    more_s = max(longest_s - min(slack_if_gone_s(view, one) for one in behind), 0.0)
    return [replace(one, slack_s=one.slack_s + more_s) if one.demand.yields else one for one in rated]


def _rate(view: WorkerView, demand: Demand, now_s: float) -> Rated:
    costs = view.costs[demand.model]
    load_s = 0.0 if demand.model in view.resident or demand.model in view.loading else costs.load_s
    return Rated(demand.model, _slack_s(demand, costs, now_s + load_s), demand, costs)


def _slack_s(demand: Demand, costs: ModelCosts, start_s: float) -> float:
    """Of the most urgent request that can still be in time; of one that is lost only once it has waited for long.

    Under overload somebody is late. To run whoever is latest makes everybody late; to let the lost ones wait keeps the
    others in time. They run in their model's batches, and where nobody else is urgent.
    """
    slack_s, first = demand.latest_start_s - start_s, demand.urgent[0]
    if slack_s >= -GRACE * first.ttft_s:
        return slack_s
    back_s = slack_s + RETURN * first.ttft_s
    in_time = next((one for one in demand.urgent if not _lost(one, start_s)), None)
    if in_time is None:
        return back_s
    own_s = costs.prefill_s(in_time.pending_tokens) if in_time.pending_tokens else demand.step_s
    return min(back_s, in_time.due_s() - start_s - own_s)


def most_urgent_first(requests: Sequence[RequestView], now_s: float) -> tuple[str, ...]:
    """The ids of a demand's requests in their order, lost ones last, since KV may not be there for all.

    A lost one that does not yield still goes before all that do.
    """
    return tuple(one.request_id for one in sorted(requests, key=lambda one: (one.yields, _lost(one, now_s))))


def _lost(request: RequestView, start_s: float) -> bool:
    return request.due_s() - start_s < -GRACE * request.ttft_s
