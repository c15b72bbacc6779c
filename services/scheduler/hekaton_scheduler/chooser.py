"""Which worker gets a request: the placement's choice, within what is known of that request."""

import asyncio

from hekaton.facts import ModelSpec
from hekaton.policy.types import Placement, PlacementRequest, Role, able
from hekaton.store.records import RequestSummary
from hekaton_scheduler.pool import Pool

MAX_PLACED = 1024
LASTING_S = 1.0
"""How long a request stays away from a worker that refused it, or waits for the one that it moves to."""
LETTING_GO_S = 10.0
"""How long a worker may take to let go of a request, which it does between two steps."""


class _Wishes:
    """One worker's id for each of some requests, for a while."""

    def __init__(self) -> None:
        self._wishes: dict[str, tuple[str, float]] = {}

    def put(self, request_id: str, worker_id: str, lasting_s: float = LASTING_S) -> None:
        self._wishes[request_id] = (worker_id, asyncio.get_running_loop().time() + lasting_s)

    def get(self, request_id: str) -> str:
        """Empty if there is none, or none any more."""
        worker_id, until_s = self._wishes.get(request_id, ("", 0.0))
        return worker_id if until_s > asyncio.get_running_loop().time() else ""

    def drop(self, request_id: str) -> None:
        self._wishes.pop(request_id, None)

    def ends_s(self) -> dict[str, float]:
        """When each of them ends; those that have ended are forgotten."""
        now_s = asyncio.get_running_loop().time()
        self._wishes = {name: wish for name, wish in self._wishes.items() if wish[1] > now_s}
        return {name: until_s for name, (_, until_s) in self._wishes.items()}


class Chooser:
    """`has_roles`: a request is placed for PREFILL first, and for DECODE once its prompt has been computed.

    A worker that holds `max_placed` requests gets no more, and of one tenant's fewer (`hekaton.policy.fairness`): what
    waits, waits in the store.
    """

    def __init__(self, pool: Pool, policy: Placement, *, has_roles: bool = False, max_placed: int = MAX_PLACED) -> None:
        self._max_placed = max_placed
        self._pool = pool
        self._policy = policy
        self._has_roles = has_roles
        self._refused = _Wishes()
        self._moving = _Wishes()
        self._prefilled: set[str] = set()

    def choose(self, summary: RequestSummary, spec: ModelSpec) -> str | None:
        """A worker's id, or None if none can take it now."""
        request_id = summary.record.request_id
        request = _request(summary, spec, self._phase(summary))
        refused = self._refused.get(request_id)
        tenant = summary.record.tenant
        views = tuple(
            one
            for one in self._pool.views(but=refused)
            if self._pool.has_place(one.worker_id, tenant, self._max_placed)
        )
        target = self._moving.get(request_id)
        if target and any(one.worker_id == target for one in able(request, views)):
            return target
        return self._policy.place(request, views)

    def avoid(self, request_id: str, worker_id: str) -> None:
        """A worker has refused a request: another one is better, for a while."""
        self._refused.put(request_id, worker_id)

    def prefer(self, request_id: str, worker_id: str) -> None:
        """A request moves to a worker, once the one that has it lets go."""
        self._moving.put(request_id, worker_id, LETTING_GO_S)

    def let_go(self, request_id: str) -> None:
        """It may be placed where it moves to."""
        if target := self._moving.get(request_id):
            self._moving.put(request_id, target)

    def prefilled(self, request_id: str) -> None:
        """Its prompt has been computed."""
        self._prefilled.add(request_id)

    def forget(self, request_id: str) -> None:
        """It is placed, or has ended."""
        self._refused.drop(request_id)
        self._moving.drop(request_id)
        self._prefilled.discard(request_id)

    def is_moving(self) -> bool:
        """Some request is on its way from worker to worker, and so in no worker's view."""
        return bool(self._moving.ends_s())

    def ends_s(self) -> dict[str, float]:
        """When requests may go again to the worker that refused them."""
        return self._refused.ends_s()

    def _phase(self, summary: RequestSummary) -> Role:
        if not self._has_roles:
            return Role.ANY
        begun = summary.produced_tokens > 0 or summary.record.request_id in self._prefilled
        return Role.DECODE if begun else Role.PREFILL


def _request(summary: RequestSummary, spec: ModelSpec, phase: Role) -> PlacementRequest:
    record = summary.record
    return PlacementRequest(
        request_id=record.request_id,
        model=record.model,
        prompt_tokens=record.prompt_tokens,
        max_tokens=record.sampling.max_tokens,
        weight_bytes=spec.weight_bytes,
        kv_bytes_per_token=spec.kv_bytes_per_token,
        ttft_s=record.slo.ttft_s,
        tbt_s=record.slo.tbt_s,
        phase=phase,
    )
