"""Requests that move from worker to worker, as the placement says."""

from collections.abc import Callable

import structlog

from hekaton.policy.types import Move, Placement
from hekaton_scheduler.chooser import Chooser
from hekaton_scheduler.pool import Placed, Pool
from hekaton_scheduler.recovery import Recovery

log = structlog.get_logger(__name__)
REBALANCE_S = 1.0

Revoke = Callable[[str, Placed], None]
"""Takes a request away from a worker."""


class Mover:
    """Asks the placement once in REBALANCE_S and carries out what it says. No move is a failure."""

    def __init__(self, placement: Placement, chooser: Chooser, pool: Pool, recovery: Recovery, revoke: Revoke) -> None:
        self._placement = placement
        self._chooser = chooser
        self._pool = pool
        self._recovery = recovery
        self._revoke = revoke

    async def turn(self) -> float:
        """What is on its way is in no worker's view: nothing else moves until it has arrived."""
        moves = () if self._chooser.is_moving() else self._placement.rebalance(self._pool.views())
        for move in moves:
            log.info("moving", model=move.model, from_worker_id=move.from_worker_id, to_worker_id=move.to_worker_id)
            for placed in self._pool.held(move.from_worker_id, move.model):
                await self._move(placed, move)
        return REBALANCE_S

    async def _move(self, placed: Placed, move: Move) -> None:
        """Back into the queue, then away from its worker: a leader that dies in between leaves no request to nobody."""
        if self._pool.epoch(move.from_worker_id, placed.request_id) != placed.epoch:
            return
        self._chooser.prefer(placed.request_id, move.to_worker_id)
        self._pool.remove(move.from_worker_id, placed.request_id)
        await self._recovery.requeue(placed.request_id, placed.epoch)
        self._revoke(move.from_worker_id, placed)
