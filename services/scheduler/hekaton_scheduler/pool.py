"""What the leader knows of the workers that it commands: their reports, and its own placements."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from hekaton.policy.fairness import has_place
from hekaton.policy.types import PoolWorker, Role
from hekaton.rpc.convert import ROLE_FROM_PB
from hekaton.v1 import pool_pb2


class Placed(NamedTuple):
    request_id: str
    epoch: int
    model: str
    tenant: str = ""


@dataclass(slots=True)
class _Worker:
    status: pool_pb2.WorkerStatus
    requests: dict[str, Placed] = field(default_factory=dict)
    models: Counter[str] = field(default_factory=Counter)
    tenants: Counter[str] = field(default_factory=Counter)
    prefill_tokens: Counter[str] = field(default_factory=Counter)
    """As the worker said last, and what it was given since."""
    expected: set[str] = field(default_factory=set)
    """Requests that the store has not been heard to have placed here: they count, and cannot be taken away yet."""
    view: PoolWorker | None = None
    """As policies see it; None if something has changed since."""


class Pool:
    """Connected workers only."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self.yielding: frozenset[str] = frozenset()
        """Tenants that have had more than their shares."""

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._workers

    def connect(self, status: pool_pb2.WorkerStatus, held: Iterable[Placed]) -> None:
        self._workers[status.worker_id] = _Worker(status, prefill_tokens=Counter(status.prefill_tokens))
        for placed in held:
            self.add(status.worker_id, placed)

    def update(self, status: pool_pb2.WorkerStatus) -> None:
        if worker := self._workers.get(status.worker_id):
            worker.status, worker.view = status, None
            worker.prefill_tokens = Counter(status.prefill_tokens)

    def disconnect(self, worker_id: str) -> None:
        self._workers.pop(worker_id, None)

    def add(self, worker_id: str, placed: Placed, prefill_tokens: int = 0) -> None:
        """`prefill_tokens`: of its prompt, if that is still to be computed."""
        worker = self._workers[worker_id]
        self.remove(worker_id, placed.request_id)
        worker.requests[placed.request_id] = placed
        worker.models[placed.model] += 1
        worker.tenants[placed.tenant] += 1
        worker.prefill_tokens[placed.model] += prefill_tokens
        worker.view = None

    def expect(self, worker_id: str, placed: Placed, prefill_tokens: int) -> None:
        """Adds what is about to be placed there."""
        self.add(worker_id, placed, prefill_tokens)
        self._workers[worker_id].expected.add(placed.request_id)

    def confirm(self, worker_id: str, placed: Placed, prefill_tokens: int) -> None:
        """It has been placed; a worker that has connected anew since then is given it again."""
        if self.epoch(worker_id, placed.request_id) == placed.epoch:
            self._workers[worker_id].expected.discard(placed.request_id)
        else:
            self.add(worker_id, placed, prefill_tokens)

    def remove(self, worker_id: str, request_id: str) -> None:
        worker = self._workers.get(worker_id)
        if worker and (placed := worker.requests.pop(request_id, None)):
            worker.models[placed.model] -= 1
            worker.tenants = worker.tenants - Counter((placed.tenant,))
            worker.expected.discard(request_id)
            worker.view = None

    def epoch(self, worker_id: str, request_id: str) -> int | None:
        """Under which a worker holds a request."""
        worker = self._workers.get(worker_id)
        placed = worker.requests.get(request_id) if worker else None
        return placed.epoch if placed else None

    def role(self, worker_id: str) -> Role:
        worker = self._workers.get(worker_id)
        return ROLE_FROM_PB.get(worker.status.role, Role.ANY) if worker else Role.ANY

    def held(self, worker_id: str, model: str) -> list[Placed]:
        """What a worker holds of a model and can be taken from it."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return []
        return [one for one in worker.requests.values() if one.model == model and one.request_id not in worker.expected]

    def has_place(self, worker_id: str, tenant: str, most: int) -> bool:
        """Whether a worker that may hold `most` requests takes one more of this tenant's."""
        worker = self._workers[worker_id]
        return has_place(tenant, worker.tenants, len(worker.requests), self.yielding, most)

    def views_before(self) -> tuple[PoolWorker, ...]:
        """All workers, as somebody sees them who does not yield: those that do hold nothing that he waits for."""
        return tuple(_view_without(worker, self.yielding) for worker in self._workers.values())

    def views(self, but: str = "") -> tuple[PoolWorker, ...]:
        """All workers, or all `but` one."""
        return tuple(_view(worker) for name, worker in self._workers.items() if name != but)

    def worker_ids(self) -> list[str]:
        return sorted(self._workers)

    def placed(self) -> int:
        return sum(len(worker.requests) for worker in list(self._workers.values()))


def _view_without(worker: _Worker, tenants: frozenset[str]) -> PoolWorker:
    requests = Counter(one.model for one in worker.requests.values() if one.tenant not in tenants)
    return replace(_view(worker), requests=requests)


def _view(worker: _Worker) -> PoolWorker:
    if worker.view is None:
        status = worker.status
        worker.view = PoolWorker(
            worker_id=status.worker_id,
            device_memory_bytes=status.device_memory_bytes,
            resident=frozenset(status.resident_models),
            loading=frozenset(status.loading_models),
            requests=+worker.models,
            draining=status.draining,
            role=ROLE_FROM_PB.get(status.role, Role.ANY),
            prefill_tokens=+worker.prefill_tokens,
        )
    return worker.view
