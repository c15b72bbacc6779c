"""What the store and a router tell each other of the router's requests: tokens once a second, and ends in silence."""

import asyncio

import structlog

from hekaton.errors import ResumedElsewhere, StoreUnavailable
from hekaton.facts import RequestState
from hekaton.store.records import StoredRequest, Unreadable
from hekaton.store.requests import Requests
from hekaton.tasks import forever
from hekaton_router.ends import cancelled, end_of
from hekaton_router.links import Links
from hekaton_router.live import LiveRequest, LiveRequests

log = structlog.get_logger(__name__)
CHECKPOINT_S = 1.0


class Checkpoints:
    def __init__(self, router_id: str, store: Requests, live: LiveRequests, links: Links) -> None:
        self._router_id = router_id
        self._store = store
        self._live = live
        self._links = links

    async def run(self) -> None:
        """Until cancelled: once a second stores what was produced, and asks for those that produce nothing."""
        await forever(self._turn)

    async def _turn(self) -> float:
        try:
            await self._checkpoint()
        except StoreUnavailable as error:
            log.warning("no checkpoint", why=error.message)
        return CHECKPOINT_S

    async def _checkpoint(self) -> None:
        grown = [live for live in self._live if _has_grown(live)]
        quiet = [live for live in self._live if live.accepted and not live.end and not _has_grown(live)]
        lengths = [len(live.token_ids) for live in grown]
        await self._store.checkpoint([(live.record.request_id, live.epoch, tuple(live.token_ids)) for live in grown])
        for live, stored in zip(grown, lengths, strict=True):
            live.stored_tokens = stored
        await self._ask(quiet)

    async def _ask(self, quiet: list[LiveRequest]) -> None:
        """Asks the store for requests that have produced nothing for a while."""
        known = await self._store.states([live.record.request_id for live in quiet])
        for live in quiet:
            state, router_id = known.get(live.record.request_id, (None, ""))
            if state is None:
                await self._put_back(live)
            elif state.terminal:
                await self._take_over(live, state)
            elif router_id != self._router_id:
                self._live.remove(live)
                live.stop(ResumedElsewhere(f"request {live.record.request_id} goes on at router {router_id}"))
            elif not live.epoch and live.record.router_id != self._router_id:
                await self._ask_again(live)

    async def _ask_again(self, live: LiveRequest) -> None:
        """An adopted request that was moving when its worker was asked for it."""
        request_id = live.record.request_id
        if summary := (await self._store.peek([request_id])).get(request_id):
            self._links.adopt(request_id, summary.worker_id)

    async def _put_back(self, live: LiveRequest) -> None:
        """Redis has come back without this request."""
        if live.end:
            return
        age_s = asyncio.get_running_loop().time() - live.accepted_s
        log.warning("put back into an emptied store", request_id=live.record.request_id, epoch=live.epoch)
        await self._store.put_back(
            live.record, live.prompt, live.token_ids, epoch=live.epoch, age_s=age_s, router_id=self._router_id
        )

    async def _take_over(self, live: LiveRequest, state: RequestState) -> None:
        """An end that no worker told: cancelled at another router, or given up by the scheduler."""
        request_id = live.record.request_id
        if state is RequestState.CANCELLED:
            self.cancelled_elsewhere(request_id)
        elif live.seen_ended:
            live.stop(end_of(live, await self._read(request_id)))
        # A worker that ended it says so soon, and says more than the store knows.
        live.seen_ended = True

    def cancelled_elsewhere(self, request_id: str) -> None:
        """Another router has ended it in the store."""
        if live := self._live.get(request_id):
            self._links.cancel(request_id, live.worker_id)
            live.stop(cancelled(request_id))

    async def _read(self, request_id: str) -> StoredRequest | None:
        try:
            return await self._store.load(request_id)
        except Unreadable as error:
            log.error(error.message, request_id=request_id)
            return None


def _has_grown(live: LiveRequest) -> bool:
    """Since the last checkpoint."""
    return bool(live.epoch) and len(live.token_ids) > live.stored_tokens
