"""Requests that move from worker to worker, as the placement says."""

from collections.abc import Callable

import structlog

from hekaton.policy.types import Placement
from hekaton_scheduler.chooser import Chooser
from hekaton_scheduler.pool import Placed, Pool

log = structlog.get_logger(__name__)
REBALANCE_S = 1.0

LetGo = Callable[[str, Placed], None]
"""Asks a worker to let go of a request, with its KV."""


class Mover:
    """Asks the placement once in REBALANCE_S and carries out what it says. No move is a failure.

    A request is its worker's until that says that it has let go: a leader that dies meanwhile leaves none to nobody.
    """

    def __init__(self, placement: Placement, chooser: Chooser, pool: Pool, let_go: LetGo) -> None:
        self._placement = placement
        self._chooser = chooser
        self._pool = pool
        self._let_go = let_go

    async def turn(self) -> float:
        """What is on its way is in no worker's view: nothing else moves until it has arrived."""
        moves = () if self._chooser.is_moving() else self._placement.rebalance(self._pool.views())
        for move in moves:
            log.info("moving", model=move.model, from_worker_id=move.from_worker_id, to_worker_id=move.to_worker_id)
            for placed in self._pool.held(move.from_worker_id, move.model):
                self._chooser.prefer(placed.request_id, move.to_worker_id)
                self._let_go(move.from_worker_id, placed)
        return REBALANCE_S
