"""When a new request could be served at the earliest: a pool that cannot keep an objective should say so at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from hekaton.policy.load import OUTPUT_TOKENS, CostsOf, load_of
from hekaton.policy.types import PlacementRequest, PoolWorker, able


class Admission(Enum):
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


def outlook(request: PlacementRequest, workers: Iterable[PoolWorker], costs_of: CostsOf) -> Outlook | None:
    """The best that any worker offers to a request. None if none may have it."""
    return min(
        (_on(worker, request, costs_of) for worker in able(request, workers)),
        key=lambda one: one.ttft_s(request.tbt_s),
        default=None,
    )


def _on(worker: PoolWorker, request: PlacementRequest, costs_of: CostsOf) -> Outlook:
    costs = costs_of(request.model)
    there = request.model in worker.resident or request.model in worker.loading
    load_s = 0.0 if there else costs.load_s
    counts = {**worker.requests, request.model: worker.requests.get(request.model, 0) + 1}
    share = load_of(counts, costs_of).share(worker.device_memory_bytes, request.ttft_s, request.tbt_s)
    return Outlook(load_s + costs.prefill_s(request.prompt_tokens), share * request.tbt_s)
