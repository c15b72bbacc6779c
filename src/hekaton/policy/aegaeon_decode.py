"""Aegaeon's Algorithm 2 on a decode worker: rounds in which every batch runs once, for a quota of time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hekaton.policy.pair import by_arrival, paired_turn, usable
from hekaton.policy.types import Demand, RequestView, Turn, WorkerView

ALPHA_FLOOR = 0.5
LOOKAHEAD_TOKENS = 64
"""KV that a batch must have room for beyond what its requests hold."""
EPSILON_S = 1e-9


def alpha(steps_per_tbt: Sequence[float], switch_s: float, q_max_s: float) -> float:
    """Length of a round over the reading time of what it makes: 1 / alpha is the attainment to expect.

    `steps_per_tbt` are the n of all batches: TBT over step time. `switch_s` is the round's c, all switches together.
    """
    return sum(1 / n for n in steps_per_tbt) + _spare(steps_per_tbt, switch_s, q_max_s)


def quotas_s(steps_per_tbt: Sequence[float], switch_s: float, q_max_s: float) -> list[float]:
    """Every batch's turn: equal n·q, none longer than `q_max_s`. Where nothing is switched a turn has all of that."""
    if switch_s <= 0:
        return [q_max_s] * len(steps_per_tbt)
    spare = _spare(steps_per_tbt, switch_s, q_max_s)
    return [switch_s / (n * spare) for n in steps_per_tbt]


def _spare(steps_per_tbt: Sequence[float], switch_s: float, q_max_s: float) -> float:
    """Alpha less the sum of all 1 / n."""
    needed = sum(1 / n for n in steps_per_tbt)
    return max(switch_s / (min(steps_per_tbt) * q_max_s), ALPHA_FLOOR - needed)


@dataclass(slots=True)
class _Batch:
    model: str
    ids: list[str]
    kv_bytes: int
    quota_s: float = 0.0


class RoundTurns:
    """Quotas are made when a round begins; whoever comes later joins its model's batch, or waits for the next round.

    `load_factor` multiplies the costs of loading in c. The paper's rule is 1.
    """

    def __init__(self, q_max_s: float = 4.0, load_factor: float = 1.0) -> None:
        self._q_max_s = q_max_s
        self._load_factor = load_factor
        self._round: list[_Batch] = []
        """What is left of it; the first batch has the turn."""
        self._current: _Batch | None = None
        self._turn_since_s = 0.0
        """When the current batch became the first."""

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        demands = usable(view)
        requests = by_arrival(demands.values())
        self._update(view, requests)
        if self._round and self._rest_s(view, now_s) <= EPSILON_S:
            del self._round[0]
        if not requests:
            return None
        if not self._round:
            self._round = self._new_round(view, demands, requests)
        head = self._round[0]
        upcoming = [*(batch.model for batch in self._round), *sorted(demands)]
        return paired_turn(view, head.model, head.ids, self._rest_s(view, now_s), upcoming)

    def _rest_s(self, view: WorkerView, now_s: float) -> float:
        """What the first batch has left of its quota, which counts from its first step."""
        head = self._round[0]
        if head is not self._current:
            self._current, self._turn_since_s = head, now_s
        if view.running != head.model:
            return head.quota_s
        return head.quota_s - (now_s - max(view.turn_started_s, self._turn_since_s))

    def _update(self, view: WorkerView, requests: Sequence[RequestView]) -> None:
        current = {request.request_id: request for request in requests}
        for batch in self._round:
            batch.ids = [name for name in batch.ids if name in current]
            batch.kv_bytes = sum(_kv_bytes(view, current.pop(name)) for name in batch.ids)
        self._round = [batch for batch in self._round if batch.ids]
        for request in current.values():
            _join(self._round, view, request)

    def _new_round(
        self, view: WorkerView, demands: Mapping[str, Demand], requests: Iterable[RequestView]
    ) -> list[_Batch]:
        batches: list[_Batch] = []
        for request in requests:
            if not _join(batches, view, request):
                batches.append(_Batch(request.model, [request.request_id], _kv_bytes(view, request)))
        batches.sort(key=lambda batch: batch.model)
        steps = [_tbt_s(demands[batch.model]) / demands[batch.model].step_s for batch in batches]
        switch_s = self._load_factor * sum(view.costs[model].load_s for model in demands)
        for batch, quota_s in zip(batches, quotas_s(steps, switch_s, self._q_max_s), strict=True):
            batch.quota_s = quota_s
        return batches


def _tbt_s(demand: Demand) -> float:
    return min(request.tbt_s for request in demand.requests)


def _kv_bytes(view: WorkerView, request: RequestView) -> int:
    tokens = request.context_tokens + request.pending_tokens + LOOKAHEAD_TOKENS
    return tokens * view.costs[request.model].kv_bytes_per_token


def _join(batches: Iterable[_Batch], view: WorkerView, request: RequestView) -> bool:
    """Puts a request into the first batch of its model with room for its KV, beside the weights of two such models."""
    nbytes = _kv_bytes(view, request)
    room = view.device_memory_bytes - 2 * view.costs[request.model].weight_bytes
    for batch in batches:
        if batch.model == request.model and batch.kv_bytes + nbytes <= room:
            batch.ids.append(request.request_id)
            batch.kv_bytes += nbytes
            return True
    return False
