"""The life of a request between its acceptance and its end, as its router sees it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import structlog

from hekaton.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    HekatonError,
    ModelNotFound,
    RequestNotFound,
    StoreUnavailable,
    WorkerLost,
)
from hekaton.facts import FinishReason, RequestRecord, RequestState
from hekaton.rpc import convert
from hekaton.rpc.errors import from_reason
from hekaton.store.records import RequestSummary
from hekaton.store.requests import Requests
from hekaton.tasks import forever
from hekaton.v1.inference_pb2 import Finished
from hekaton_router.chores import Chores
from hekaton_router.links import Links
from hekaton_router.live import LiveRequest, LiveRequests
from hekaton_router.patience import Patience

log = structlog.get_logger(__name__)
CHECKPOINT_S = 1.0


class Keeper:
    def __init__(
        self, store: Requests, live: LiveRequests, links: Links, chores: Chores, patience: Patience, max_queued: int
    ) -> None:
        self._store = store
        self._live = live
        self._links = links
        self._chores = chores
        self._patience = patience
        self._max_queued = max_queued

    @contextmanager
    def hold(self, record: RequestRecord, ends_s: float) -> Iterator[LiveRequest]:
        """Takes in a request's output until the end of the block or `ends_s` on the event loop's clock.

        A request that has not ended by then is cancelled wherever it is. Raises AlreadyExists.
        """
        live = self._live.add(record)
        timer = asyncio.get_running_loop().call_at(ends_s, self._expire, live)
        try:
            yield live
        finally:
            timer.cancel()
            self._live.remove(live)
            if not live.end:
                self._give_up(live)

    async def accept(self, live: LiveRequest, prompt: list[int], budget_s: float) -> None:
        """Puts a request that is held into the store; from then on it is not lost.

        Raises AlreadyExists, ResourceExhausted, or StoreUnavailable when Redis stays away.
        """
        unsure = False

        async def create() -> None:
            nonlocal unsure
            try:
                created = await self._store.accept(live.record, prompt, self._max_queued)
            except StoreUnavailable:
                unsure = True
                raise
            if not created and not (unsure and await self._is_stored(live.record)):
                raise AlreadyExists(f"request {live.record.request_id} exists: choose another request_id")

        await self._patience.run(create, budget_s)
        live.accepted = True
        live.prompt = prompt
        live.accepted_s = asyncio.get_running_loop().time()
        if live.end:
            self._give_up(live)

    async def cancel(self, request_id: str) -> bool:
        """Ends a request wherever it is; False if it had ended. Raises RequestNotFound.

        A router that holds its stream elsewhere learns it from the worker, or from the store if no worker has it.
        """
        live = self._live.get(request_id)
        try:
            result = await self._store.cancel(request_id)
        except (RequestNotFound, StoreUnavailable):
            if live is None:
                raise
            self._end(live, _cancelled(request_id))
            return True
        if result.previous.terminal:
            return False
        self._links.cancel(request_id, result.worker_id)
        if live:
            live.stop(_cancelled(request_id))
        return True

    async def run(self) -> None:
        """Until cancelled: once a second stores what was produced, and asks for those that produce nothing."""
        await forever(self._turn)

    async def _turn(self) -> float:
        try:
            await self._checkpoint()
        except StoreUnavailable as error:
            log.warning("no checkpoint", why=error.message)
        return CHECKPOINT_S

    def abandon(self) -> None:
        """Cancels every request that is still held: the router stops."""
        for live in self._live:
            self._end(live, Cancelled("the router stopped: send the request again"))

    async def _checkpoint(self) -> None:
        grown = [live for live in self._live if live.epoch and len(live.token_ids) > live.stored_tokens]
        quiet = [live for live in self._live if live.accepted and not live.end and live not in grown]
        lengths = [len(live.token_ids) for live in grown]
        await self._store.checkpoint([(live.record.request_id, live.epoch, tuple(live.token_ids)) for live in grown])
        for live, stored in zip(grown, lengths, strict=True):
            live.stored_tokens = stored
        await self._ask(quiet)

    async def _ask(self, quiet: list[LiveRequest]) -> None:
        """Asks the store for requests that have produced nothing for a while."""
        states = await self._store.states([live.record.request_id for live in quiet])
        ended = [name for name, state in states.items() if state.terminal]
        summaries = await self._store.peek(ended) if ended else {}
        for live in quiet:
            state = states.get(live.record.request_id)
            if state is None:
                await self._put_back(live)
            elif state.terminal:
                self._take_over(live, state, summaries.get(live.record.request_id))
            else:
                live.seen_ended = False

    async def _put_back(self, live: LiveRequest) -> None:
        """Redis has come back without this request."""
        if live.end:
            return
        age_s = asyncio.get_running_loop().time() - live.accepted_s
        log.warning("put back into an emptied store", request_id=live.record.request_id, epoch=live.epoch)
        await self._store.put_back(live.record, live.prompt, live.token_ids, epoch=live.epoch, age_s=age_s)

    def _take_over(self, live: LiveRequest, state: RequestState, summary: RequestSummary | None) -> None:
        """An end that no worker told: cancelled at another router, or given up by the scheduler."""
        if state is RequestState.CANCELLED:
            self._links.cancel(live.record.request_id, summary.worker_id if summary else live.worker_id)
            live.stop(_cancelled(live.record.request_id))
        elif live.seen_ended:
            live.stop(_end_of(live, summary))
        # A worker that ended it says so soon, and says more than the store knows.
        live.seen_ended = True

    async def _is_stored(self, record: RequestRecord) -> bool:
        """Whether an acceptance whose reply was lost has happened."""
        summary = (await self._store.peek([record.request_id])).get(record.request_id)
        return summary is not None and summary.record == record and not summary.state.terminal

    def _expire(self, live: LiveRequest) -> None:
        self._end(live, DeadlineExceeded(f"request {live.record.request_id} did not end within its deadline"))

    def _end(self, live: LiveRequest, error: HekatonError) -> None:
        if not live.end:
            live.stop(error)
            self._give_up(live)

    def _give_up(self, live: LiveRequest) -> None:
        """Cancels in the pool what this router does not want any more. Never waits: the caller may be cancelled."""
        self._links.cancel(live.record.request_id, live.worker_id)
        if live.accepted:
            self._chores.add(partial(self._store.cancel, live.record.request_id))


def _cancelled(request_id: str) -> Cancelled:
    return Cancelled(f"request {request_id} was cancelled")


def _end_of(live: LiveRequest, summary: RequestSummary | None) -> Finished | HekatonError:
    if summary is None:
        return HekatonError(f"request {live.record.request_id} failed: its record cannot be read; send it again")
    return _failure(summary) if summary.state is RequestState.FAILED else _finished(live, summary)


def _finished(live: LiveRequest, summary: RequestSummary) -> Finished | HekatonError:
    """An end that the worker wrote and could not tell."""
    stats = summary.stats
    if stats is None or stats.completion_tokens != len(live.token_ids):
        return WorkerLost(f"request {live.record.request_id}: its last tokens were lost with the worker: send it again")
    reason = convert.FINISH_TO_PB[FinishReason(summary.reason)]
    return Finished(reason=reason, stats=convert.stats_to_pb(stats))


def _failure(summary: RequestSummary) -> HekatonError:
    """What the scheduler gave up, or a worker whose own words were lost."""
    request_id = summary.record.request_id
    messages = {
        WorkerLost.reason: f"request {request_id} lost {summary.failures} workers: send it again",
        DeadlineExceeded.reason: f"request {request_id} did not end within its deadline",
        ModelNotFound.reason: f"model {summary.record.model} was removed while request {request_id} waited",
    }
    return from_reason(summary.reason, messages.get(summary.reason, f"request {request_id} failed; see the logs"))
