"""When a new request could be served at the earliest: a pool that cannot keep an objective should say so at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hekaton.policy.load import OUTPUT_TOKENS, CostsOf, Load, load_of
from hekaton.policy.types import ModelCosts, PlacementRequest, PoolWorker, able


class Admission(StrEnum):
    """What becomes of a request whose objective cannot be kept."""

    QUEUE = "queue"
    """It waits, and may be late."""
    SHED = "shed"
    """It is refused, so that others are in time."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a new request may hope for, on the worker where that is most."""

    start_s: float
    """Loading the weights if they are not there, and computing a prompt."""
    round_s: float
    """One step of every active model: the time between two tokens, where it is longer than what is asked for."""

    def ttft_s(self, tbt_s: float) -> float:
        """The shortest objective for which a typical answer would be in time to its end.

        Tokens that come slower than they are due use up what the first one had to spare.
        """
        return self.start_s + max(self.round_s - tbt_s, 0.0) * OUTPUT_TOKENS


@dataclass(frozen=True, slots=True)
class Promise:
    """What the pool can promise to new requests, by model. Of what is not in it nobody knows."""

    outlooks: Mapping[str, Outlook]
    behind: Mapping[str, Outlook] = field(default_factory=dict)
    """To tenants that yield: they wait for all that there is, the others only for each other."""
    yielding: frozenset[str] = frozenset()

    def of(self, model: str, tenant: str) -> Outlook | None:
        return (self.behind if tenant in self.yielding else self.outlooks).get(model)


def outlooks(
    requests: Iterable[PlacementRequest], workers: Sequence[PoolWorker], costs_of: CostsOf
) -> dict[str, Outlook]:
    """The best that any worker offers to each of some requests, by model. None to one that no worker may have."""
    loads = {worker.worker_id: load_of(worker.requests, costs_of) for worker in workers}
    best: dict[str, Outlook] = {}
    for request in requests:
        costs, tbt_s = costs_of(request.model), request.tbt_s
        offers = [_offer(request, costs, worker, loads[worker.worker_id]) for worker in able(request, workers)]
        if offers:
            best[request.model] = min(offers, key=lambda one: one.ttft_s(tbt_s))
    return best


def _offer(request: PlacementRequest, costs: ModelCosts, worker: PoolWorker, load: Load) -> Outlook:
    there = request.model in worker.resident or request.model in worker.loading
    after = (
        load.with_request(costs, worker.requests[request.model])
        if request.model in worker.requests
        else load.with_model(costs, 1)
    )
    share = after.share(worker.device_memory_bytes, request.ttft_s, request.tbt_s)
    prefill_s = costs.prefill_s(request.prompt_tokens)
    return Outlook(prefill_s if there else costs.load_s + prefill_s, share * request.tbt_s)
