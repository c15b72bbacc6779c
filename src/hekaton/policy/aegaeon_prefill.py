"""Aegaeon's Algorithm 1 on a prefill worker: groups of one model, first come first served, one request at a time."""

from collections.abc import Iterable
from dataclasses import dataclass

from hekaton.policy.pair import by_arrival, paired_turn, usable
from hekaton.policy.types import RequestView, Turn, WorkerView


@dataclass(slots=True)
class _Group:
    model: str
    waiting: list[RequestView]
    added: int = 0
    """How many it has ever been given; what has run still counts."""


class GroupedPrefillTurns:
    """Runs the first group to its end, one request a batch: prefill time is linear in tokens, so batches only delay."""

    def __init__(self, group_size: int = 8) -> None:
        self._group_size = group_size
        self._groups: list[_Group] = []

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        self._update(by_arrival(usable(view).values()))
        if not self._groups:
            return None
        head = self._groups[0]
        request = head.waiting[0]
        budget_s = view.costs[head.model].prefill_s(request.pending_tokens)
        return paired_turn(view, head.model, [request.request_id], budget_s, [group.model for group in self._groups])

    def _update(self, requests: Iterable[RequestView]) -> None:
        """Requests that have gone leave their groups, new ones join the first with room or open another."""
        current = {request.request_id: request for request in requests}
        for group in self._groups:
            known = (one.request_id for one in group.waiting)
            group.waiting = [current.pop(name) for name in known if name in current]
        self._groups = [group for group in self._groups if group.waiting]
        for request in current.values():
            self._group_for(request.model).waiting.append(request)

    def _group_for(self, model: str) -> _Group:
        for group in self._groups:
            if group.model == model and group.added < self._group_size:
                break
        else:
            group = _Group(model, [])
            self._groups.append(group)
        group.added += 1
        return group
