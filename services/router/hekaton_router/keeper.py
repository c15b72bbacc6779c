"""The life of a request between its acceptance and its end, as its router sees it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import NamedTuple

import structlog

from hekaton.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    HekatonError,
    NotResumable,
    RequestNotFound,
    StoreUnavailable,
    Unavailable,
)
from hekaton.facts import RequestRecord
from hekaton.store.records import Holder, StoredRequest
from hekaton.store.requests import Requests
from hekaton_router.choices import choice_id
from hekaton_router.chores import Chores
from hekaton_router.ends import cancelled, end_of
from hekaton_router.links import Links
from hekaton_router.live import LiveRequest, LiveRequests
from hekaton_router.patience import Patience

log = structlog.get_logger(__name__)


class Reading(NamedTuple):
    """A request, and which of its connections reads it here."""

    live: LiveRequest
    reader: int


class Keeper:
    def __init__(
        self,
        router_id: str,
        store: Requests,
        live: LiveRequests,
        links: Links,
        chores: Chores,
        patience: Patience,
        max_queued: int,
    ) -> None:
        self._router_id = router_id
        self._store = store
        self._live = live
        self._links = links
        self._chores = chores
        self._patience = patience
        self._max_queued = max_queued

    @contextmanager
    def hold(self, record: RequestRecord, ends_s: float) -> Iterator[Reading]:
        """Takes in a request's output until `ends_s` on the event loop's clock, or until its client is gone for good.

        A request that has not ended by then is cancelled wherever it is. Raises AlreadyExists.
        """
        live = self._live.add(record)
        self._expire_at(live, ends_s)
        with self._reading(live) as reading:
            yield reading

    @asynccontextmanager
    async def resume(self, request_id: str, budget_s: float) -> AsyncIterator[Reading]:
        """A request whose client has come back, here or from another router. Its older connection ends.

        Raises RequestNotFound, NotResumable, or StoreUnavailable when Redis stays away.
        """
        live = self._live.get(request_id)
        if live is None:
            live = await self._patience.run(partial(self._adopt, request_id), budget_s)
        if not live.record.resume_window_s:
            raise NotResumable(f"request {request_id} ends with its connection: send such with ON_DISCONNECT_KEEP")
        with self._reading(live) as reading:
            yield reading

    @contextmanager
    def _reading(self, live: LiveRequest) -> Iterator[Reading]:
        reader = live.attach()
        try:
            yield Reading(live, reader)
        finally:
            window_s = live.record.resume_window_s if live.accepted else 0.0
            if reader == live.reader and window_s:
                asyncio.get_running_loop().call_later(window_s, self._release, live, reader)
            else:
                self._release(live, reader)

    def _release(self, live: LiveRequest, reader: int) -> None:
        """Nobody reads it any more, unless somebody has come back."""
        if reader == live.reader:
            self._live.remove(live)
            self._end(live, cancelled(live.record.request_id))

    def _expire_at(self, live: LiveRequest, ends_s: float) -> None:
        live.timer = asyncio.get_running_loop().call_at(ends_s, self._expire, live)

    async def _adopt(self, request_id: str) -> LiveRequest:
        """A request of another router, or one that has ended."""
        stored = await self._store.load(request_id)
        if stored is None:
            raise RequestNotFound(f"request {request_id} is not known; it ended long ago or never was")
        summary = stored.summary
        if not summary.state.terminal and summary.record.resume_window_s:
            holder = await self._store.adopt(request_id, self._router_id)
            if holder.state.terminal:
                return await self._adopt(request_id)
            return self._live.get(request_id) or self._take_in(stored, holder)
        live = LiveRequest(summary.record, stored.produced)
        if summary.state.terminal:
            live.stop(end_of(live, stored))
        return live

    def _take_in(self, stored: StoredRequest, holder: Holder) -> LiveRequest:
        """A live request whose tokens come here from now on; those that are not in the store come from its worker."""
        summary = stored.summary
        # The store knows no log probabilities: where they are asked for, the worker tells everything anew.
        known = stored.produced if summary.record.sampling.logprobs is None else ()
        live = self._live.add(summary.record, known)
        now_s = asyncio.get_running_loop().time()
        live.accepted, live.prompt, live.accepted_s = True, stored.prompt, now_s - summary.age_s
        self._expire_at(live, live.accepted_s + summary.record.deadline_s)
        log.info("request resumed", request_id=summary.record.request_id, from_router_id=summary.router_id)
        self._links.adopt(summary.record.request_id, holder.worker_id)
        return live

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

    async def owner(self, request_id: str) -> str:
        """The tenant whose request it is. Raises RequestNotFound, StoreUnavailable."""
        if live := self._live.get(request_id):
            return live.record.tenant
        summaries = await self._store.peek([request_id])
        if request_id not in summaries:
            raise RequestNotFound(f"no request has the id {request_id}")
        return summaries[request_id].record.tenant

    async def cancel(self, request_id: str) -> bool:
        """Ends a request wherever it is; False if it had ended. Raises RequestNotFound.

        A router that holds its stream elsewhere learns it from the worker or the store, whichever tells it first.
        """
        live = self._live.get(request_id)
        try:
            result = await self._store.cancel(request_id, teller=self._router_id)
        except (RequestNotFound, StoreUnavailable):
            if live is None:
                raise
            self._end(live, cancelled(request_id))
            return True
        if result.state.terminal:
            return await self._cancel_choices(request_id)
        self._links.cancel(request_id, result.worker_id, own=False)
        if live:
            live.stop(cancelled(request_id))
        return True

    async def _cancel_choices(self, request_id: str) -> bool:
        """Ends what still lives of several outputs, of which the first has ended. Any one of them ends their stream."""
        summary = (await self._store.peek([request_id])).get(request_id)
        others = range(1, summary.record.choices) if summary else ()
        for choice in others:
            with suppress(RequestNotFound):
                if await self.cancel(choice_id(request_id, choice)):
                    return True
        return False

    def stop(self, live: LiveRequest, tokens: int) -> None:
        """A request's text is complete with so many tokens: its worker ends it well."""
        live.cut(tokens)
        if not live.end:
            self._links.stop(live)

    def abandon(self) -> None:
        """The router stops: ends every connection, and every request whose client cannot come back."""
        for live in self._live:
            if live.record.resume_window_s:
                self._live.remove(live)
                live.stop(Unavailable("the router stopped: resume at another one"))
            else:
                self._end(live, Cancelled("the router stopped: send the request again"))

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
            self._chores.add(partial(self._store.cancel, live.record.request_id, self._router_id))
