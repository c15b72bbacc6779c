"""The requests that wait for a worker, and their placement."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from opentelemetry.trace import Span

from hekaton import telemetry
from hekaton.errors import DeadlineExceeded, HekatonError, ModelNotFound, RequestNotFound, StoreUnavailable
from hekaton.facts import RequestState
from hekaton.store.queue import Entry
from hekaton.store.records import RequestSummary
from hekaton.store.requests import Requests
from hekaton_scheduler.chooser import Chooser
from hekaton_scheduler.models import Models
from hekaton_scheduler.patience import patiently
from hekaton_scheduler.pool import Placed, Pool

log = structlog.get_logger(__name__)
Assign = Callable[[str, Placed], None]
"""Gets a worker's id and what it now holds."""
BATCH = 16
"""Requests that are placed in one exchange with the store."""
GiveBack = Callable[[str, int], Awaitable[object]]
"""Puts a request back into the queue: its id and epoch."""


@dataclass(slots=True)
class Waiting:
    """Times are on the event loop's clock."""

    entry_id: str
    summary: RequestSummary
    read_s: float
    unsure: bool = False
    """A placement was tried whose reply was lost."""

    @property
    def request_id(self) -> str:
        return self.summary.record.request_id

    @property
    def expires_s(self) -> float:
        return self.read_s + self.summary.record.deadline_s - self.summary.age_s


class Chosen(NamedTuple):
    """A waiting request and its worker."""

    waiting: Waiting
    worker_id: str


class Placer:
    """Places what can be placed whenever something has changed."""

    def __init__(
        self, store: Requests, models: Models, pool: Pool, chooser: Chooser, *, term: int, give_back: GiveBack
    ) -> None:
        self._term = term
        self._store = store
        self._give_back = give_back
        self._models = models
        self._pool = pool
        self._chooser = chooser
        self._waiting: dict[str, Waiting] = {}
        self._changed = asyncio.Event()
        self.placements = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def pool_changed(self) -> None:
        self._changed.set()

    async def take(self, entries: Sequence[Entry]) -> None:
        """Queue entries to place. Those whose requests do not wait any more leave the queue here."""
        summaries = await self._store.peek([entry.request_id for entry in entries])
        now_s = asyncio.get_running_loop().time()
        for entry in entries:
            summary = summaries.get(entry.request_id)
            if summary is None or summary.state is not RequestState.QUEUED:
                self._chooser.forget(entry.request_id)
            if summary is None:
                await self._store.discard(entry.request_id, entry.entry_id, self._term)
            elif summary.state is RequestState.QUEUED:
                self._waiting[entry.request_id] = Waiting(entry.entry_id, summary, now_s)
            else:
                await self._store.place(entry.request_id, entry.entry_id, "", self._term)
        self._changed.set()

    async def run(self, assign: Assign) -> None:
        """Until cancelled; `assign` hands a placed request to its worker. Raises StaleTerm."""
        while True:
            self._changed.clear()
            for batch in _batches(self._in_order()):
                await self._place([one for waiting in batch if (one := await patiently(self._choose, waiting))], assign)
            await self._something()

    def _in_order(self) -> list[Waiting]:
        """First come, first served, but those after all others that yield."""
        waiting, yielding = list(self._waiting.values()), self._pool.yielding
        return sorted(waiting, key=lambda one: one.summary.record.tenant in yielding) if yielding else waiting

    async def _something(self) -> None:
        """Waits for a change, a deadline, or the end of an avoidance."""
        times = [waiting.expires_s for waiting in self._waiting.values()]
        times += [end_s for name, end_s in self._chooser.ends_s().items() if name in self._waiting]
        try:
            async with asyncio.timeout_at(min(times, default=None)):
                await self._changed.wait()
        except TimeoutError:
            return

    # ---- one request

    async def _choose(self, waiting: Waiting) -> Chosen | None:
        """A worker for it, which counts as loaded from now on; None if it fails, or if none can take it now."""
        record = waiting.summary.record
        spec = await self._models.spec(record.model)
        if asyncio.get_running_loop().time() >= waiting.expires_s:
            await self._fail(waiting, DeadlineExceeded("no worker was free before the deadline"))
        elif spec is None:
            await self._fail(waiting, ModelNotFound(f"model {record.model} is not registered any more"))
        elif worker_id := self._chooser.choose(waiting.summary, spec):
            taken = Placed(record.request_id, waiting.summary.epoch + 1, record.model, record.tenant)
            self._pool.expect(worker_id, taken, record.prompt_tokens)
            return Chosen(waiting, worker_id)
        return None

    async def _place(self, chosen: Sequence[Chosen], assign: Assign) -> None:
        epochs = await patiently(self._placed, chosen) if chosen else []
        for one, epoch in zip(chosen, epochs, strict=True):
            holds = epoch or (await patiently(self._found, one) if one.waiting.unsure else None)
            self._forget(one.waiting)
            if holds is None:
                self._pool.remove(one.worker_id, one.waiting.request_id)
            else:
                await self._hand_over(one, holds, assign)

    async def _placed(self, chosen: Sequence[Chosen]) -> list[int | None]:
        """Their epochs; None for those that do not wait any more, and may have been placed by an earlier try."""
        try:
            placements = [(one.waiting.request_id, one.waiting.entry_id, one.worker_id) for one in chosen]
            return await self._store.place_all(placements, self._term)
        except StoreUnavailable:
            for one in chosen:
                one.waiting.unsure = True
            raise

    async def _found(self, one: Chosen) -> int | None:
        """The epoch under which a try placed it whose reply was lost; None if none did."""
        request_id = one.waiting.request_id
        now = (await self._store.peek([request_id])).get(request_id)
        placed = now and now.state is RequestState.PLACED and now.worker_id == one.worker_id
        return now.epoch if now and placed and now.epoch == one.waiting.summary.epoch + 1 else None

    async def _hand_over(self, one: Chosen, epoch: int, assign: Assign) -> None:
        record = one.waiting.summary.record
        with _span(one.waiting, one.worker_id) as span:
            span.set_attribute(telemetry.EPOCH, epoch)
        self.placements += 1
        if one.worker_id not in self._pool:
            # The worker left while the store was asked.
            await patiently(self._give_back, record.request_id, epoch)
            return
        taken = Placed(record.request_id, epoch, record.model, record.tenant)
        self._pool.confirm(one.worker_id, taken, record.prompt_tokens)
        assign(one.worker_id, taken)

    async def _fail(self, waiting: Waiting, error: HekatonError) -> None:
        log.warning("request failed", request_id=waiting.request_id, why=error.message)
        try:
            await self._store.finish(
                waiting.request_id, waiting.summary.epoch, RequestState.FAILED, reason=error.reason
            )
        except RequestNotFound:
            log.info("its record is gone", request_id=waiting.request_id)
        self._forget(waiting)

    def _forget(self, waiting: Waiting) -> None:
        if self._waiting.get(waiting.request_id) is waiting:
            del self._waiting[waiting.request_id]
            self._chooser.forget(waiting.request_id)


def _batches(waiting: Sequence[Waiting]) -> Iterator[Sequence[Waiting]]:
    return (waiting[start : start + BATCH] for start in range(0, len(waiting), BATCH))


def _span(waiting: Waiting, worker_id: str) -> AbstractContextManager[Span]:
    record = waiting.summary.record
    return telemetry.tracer().start_as_current_span(
        f"place {record.model}",
        telemetry.context_from(record.trace_context),
        start_time=telemetry.epoch_ns(waiting.read_s),
        attributes={
            telemetry.REQUEST_ID: record.request_id,
            telemetry.GEN_AI_MODEL: record.model,
            telemetry.WORKER_ID: worker_id,
        },
    )
