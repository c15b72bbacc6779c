"""Ends that a worker could not write to the store.

A worker that the store does not hear is taken for lost, and its requests go on elsewhere. What it says of their ends
counts only if nobody has taken them back, and only the store knows: it is asked before the client hears.
"""

import asyncio
from functools import partial

import structlog

from hekaton.errors import Cancelled, HekatonError, RequestNotFound
from hekaton.facts import RequestState
from hekaton.rpc import convert
from hekaton.store.requests import Requests
from hekaton.v1.inference_pb2 import Finished
from hekaton_router.chores import Chores
from hekaton_router.live import LiveRequest

log = structlog.get_logger(__name__)


class Settler:
    """Where the store stays away for longer than `wait_s`, the worker's word counts."""

    def __init__(self, store: Requests, chores: Chores, wait_s: float) -> None:
        self._store = store
        self._chores = chores
        self._wait_s = wait_s

    def settle(self, live: LiveRequest, epoch: int, end: Finished | HekatonError) -> None:
        """Ends a request here once its end is in the store; leaves it if another attempt is under way."""
        timer = asyncio.get_running_loop().call_later(self._wait_s, self._accept, live, epoch, end)
        self._chores.add(partial(self._write, live, epoch, end, timer))

    async def _write(
        self, live: LiveRequest, epoch: int, end: Finished | HekatonError, timer: asyncio.TimerHandle
    ) -> None:
        if live.end and live.end is not end:
            timer.cancel()
            return
        request_id, state = live.record.request_id, _state(end)
        try:
            if isinstance(end, Finished):
                reason, stats = convert.finish_from_pb(end.reason), convert.stats_from_pb(end.stats)
                written = self._store.finish(
                    request_id, epoch, state, reason=reason, stats=stats, produced=live.token_ids
                )
            else:
                written = self._store.finish(request_id, epoch, state, reason=end.reason)
            holds = await written
        except RequestNotFound:
            holds = state
        timer.cancel()
        if holds is state:
            self._accept(live, epoch, end)
        else:
            log.warning("a worker's end comes too late", request_id=request_id, epoch=epoch, state=holds)

    def _accept(self, live: LiveRequest, epoch: int, end: Finished | HekatonError) -> None:
        if epoch >= live.epoch:
            live.stop(end)


def _state(end: Finished | HekatonError) -> RequestState:
    if isinstance(end, Finished):
        return RequestState.FINISHED
    return RequestState.CANCELLED if isinstance(end, Cancelled) else RequestState.FAILED
