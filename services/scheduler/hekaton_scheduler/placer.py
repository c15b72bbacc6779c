"""The requests that wait for a worker, and their placement."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

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
            for waiting in list(self._waiting.values()):
                await patiently(self._handle, waiting, assign)
            await self._something()

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

    async def _handle(self, waiting: Waiting, assign: Assign) -> None:
        """Places, fails or leaves a waiting request. May be tried again after StoreUnavailable."""
        record = waiting.summary.record
        spec = await self._models.spec(record.model)
        if asyncio.get_running_loop().time() >= waiting.expires_s:
            await self._fail(waiting, DeadlineExceeded("no worker was free before the deadline"))
        elif spec is None:
            await self._fail(waiting, ModelNotFound(f"model {record.model} is not registered any more"))
        elif worker_id := self._chooser.choose(waiting.summary, spec):
            await self._place(waiting, worker_id, assign)

    async def _place(self, waiting: Waiting, worker_id: str, assign: Assign) -> None:
        record = waiting.summary.record
        with _span(waiting, worker_id) as span:
            placed = await self._placed(waiting, worker_id)
            self._forget(waiting)
            if placed is None:
                return
            holder, epoch = placed
            span.set_attribute(telemetry.EPOCH, epoch)
        self.placements += 1
        if holder in self._pool:
            taken = Placed(record.request_id, epoch, record.model)
            self._pool.add(holder, taken, record.prompt_tokens)
            assign(holder, taken)
        else:
            # The worker left while the store was asked.
            await patiently(self._give_back, record.request_id, epoch)

    async def _placed(self, waiting: Waiting, worker_id: str) -> tuple[str, int] | None:
        """The worker and epoch that hold; None if the request does not wait any more."""
        before = waiting.summary
        try:
            epoch = await self._store.place(waiting.request_id, waiting.entry_id, worker_id, self._term)
        except StoreUnavailable:
            waiting.unsure = True
            raise
        if epoch is not None:
            return worker_id, epoch
        if waiting.unsure:
            now = (await self._store.peek([waiting.request_id])).get(waiting.request_id)
            if now and now.state is RequestState.PLACED and now.epoch == before.epoch + 1:
                return now.worker_id, now.epoch
        return None

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
