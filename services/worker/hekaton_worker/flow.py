"""The course of one request on this worker: fetched, announced, run, written, told."""

import asyncio
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from hekaton import telemetry
from hekaton.errors import Cancelled, DeadlineExceeded, HekatonError, RequestNotFound, StoreUnavailable, Unavailable
from hekaton.facts import FinishReason, RequestState
from hekaton.rpc import convert
from hekaton.store.records import Unreadable
from hekaton.store.requests import Requests
from hekaton.tasks import dismiss
from hekaton.v1 import worker_pb2 as pb
from hekaton_worker.attempt import Attempt, Left, Outcome
from hekaton_worker.control import Control
from hekaton_worker.crew import Crew
from hekaton_worker.desk import Desk
from hekaton_worker.engine import EngineKeeper
from hekaton_worker.models import KnownModels
from hekaton_worker.parcels import Parcels
from hekaton_worker.tokens import TokenStreams

log = structlog.get_logger(__name__)
ANSWER_TIMEOUT_S = 1.0
"""How long a later attempt waits for the router to say what earlier ones delivered."""
WRITE_TIMEOUT_S = 1.0
"""How long a terminal event waits for the store. After that the router writes it: it may reach the store."""


@dataclass
class Flow:
    worker_id: str
    store: Requests
    models: KnownModels
    desk: Desk
    streams: TokenStreams
    control: Control
    engine: EngineKeeper
    crew: Crew
    parcels: Parcels
    draining: bool = False
    _arriving: dict[str, pb.HeldRequest] = field(default_factory=dict, init=False)
    _revoked: dict[str, pb.Revoke] = field(default_factory=dict, init=False)
    """While they arrive."""

    def assign(self, message: pb.Assign) -> None:
        """Takes a request that the scheduler gives, or gives it back. One that is here already is left alone."""
        arriving, known = self._arriving.get(message.request_id), self.desk.get(message.request_id)
        if (arriving and arriving.epoch >= message.epoch) or (known and known.live and known.epoch >= message.epoch):
            return
        if known and known.epoch >= message.epoch:
            self.control.released(pb.Released(request_id=message.request_id, epoch=message.epoch))
        elif self.draining:
            self._refuse(message, Unavailable("this worker stops"))
        else:
            self._arriving[message.request_id] = pb.HeldRequest(
                request_id=message.request_id, epoch=message.epoch, model=message.model
            )
            self.crew.start(self._serve(message), f"request {message.request_id}")

    def revoke(self, message: pb.Revoke) -> None:
        """Takes a request away, as soon as it is here."""
        if message.request_id in self._arriving:
            self._revoked[message.request_id] = message
        else:
            self.desk.revoke(message)

    def held(self) -> list[pb.HeldRequest]:
        return [*self._arriving.values(), *self.desk.held()]

    # ---- one request

    async def _serve(self, message: pb.Assign) -> None:
        assigned_s = asyncio.get_running_loop().time()
        try:
            attempt = await self._fetch(message)
        except HekatonError as error:
            self._refuse(message, error)
            return
        finally:
            arriving = self._arriving.get(message.request_id)
            if arriving and arriving.epoch == message.epoch:
                del self._arriving[message.request_id]
                if revoked := self._revoked.pop(message.request_id, None):
                    self.desk.revoke(revoked)
        if attempt is None:
            self.control.released(pb.Released(request_id=message.request_id, epoch=message.epoch))
            return
        with self._span(attempt, assigned_s) as attempt.span:
            outcome = await self._run(attempt, message)
            await self._conclude(attempt, outcome)
            _describe(attempt.span, outcome)

    async def _fetch(self, message: pb.Assign) -> Attempt | None:
        """The request as the store has it; None if it is not this worker's any more."""
        try:
            stored = await self.store.load(message.request_id)
        except Unreadable as error:
            log.error(error.message, request_id=message.request_id)
            await self.store.finish(message.request_id, message.epoch, RequestState.FAILED, reason=error.reason)
            return None
        if stored is None or stored.summary.state not in (RequestState.PLACED, RequestState.RUNNING):
            return None
        if (stored.summary.epoch, stored.summary.worker_id) != (message.epoch, self.worker_id):
            return None
        await self.models.ensure(message.model, self.engine.post)
        if self.draining:
            raise Unavailable("this worker stops")
        attempt = Attempt.of(stored, asyncio.get_running_loop().time())
        self.desk.add(attempt)
        return attempt

    async def _run(self, attempt: Attempt, message: pb.Assign) -> Outcome:
        late = DeadlineExceeded(f"request {attempt.request_id} did not end within its deadline")
        timer = asyncio.get_running_loop().call_at(attempt.ends_s, self.desk.leave, attempt, late)
        try:
            self.streams.announce(attempt)
            if attempt.epoch > 1:
                await self._prepare(attempt, message)
            if attempt.live:
                self.desk.submit(attempt)
            return await attempt.outcome
        finally:
            timer.cancel()
            if attempt.parcel:
                self.parcels.discard(attempt.parcel)

    async def _prepare(self, attempt: Attempt, message: pb.Assign) -> None:
        """Waits for what earlier attempts have left, tokens and KV, as long as the attempt lives."""
        claim = self.crew.start(self.parcels.claim(message), f"claim {attempt.request_id}")
        try:
            await _answer(attempt)
            either: tuple[asyncio.Future[Any], ...] = (claim, attempt.outcome)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if claim.done():
                attempt.parcel = claim.result()
        finally:
            dismiss(claim)

    async def started(self, request_id: str, epoch: int) -> None:
        """The engine's first step of a request begins: PLACED → RUNNING, unless it was taken away meanwhile."""
        attempt = self.desk.get(request_id)
        if attempt is None or attempt.epoch != epoch:
            return
        try:
            ours = await self.store.start(request_id, epoch)
        except StoreUnavailable:
            log.warning("not marked as running; its end will be", request_id=request_id)
            return
        if not ours:
            await self._taken_away(attempt)

    async def _taken_away(self, attempt: Attempt) -> None:
        """The store says that this attempt does not count. A store that forgot the request says nothing."""
        try:
            known = await self.store.peek([attempt.request_id])
        except StoreUnavailable:
            return
        if summary := known.get(attempt.request_id):
            cancelled = summary.state is RequestState.CANCELLED
            self.desk.leave(attempt, Cancelled("cancelled before it began") if cancelled else Left.REVOKED)

    async def struck(self, attempt: Attempt) -> None:
        """Other workers know that an engine died with it."""
        try:
            await self.store.strike(attempt.request_id, attempt.epoch)
        except StoreUnavailable:
            log.warning("strike not stored", request_id=attempt.request_id)

    # ---- its end

    async def _conclude(self, attempt: Attempt, outcome: Outcome) -> None:
        """Writes the end, tells the router what holds, and the scheduler that it is over."""
        released = pb.Released(
            request_id=attempt.request_id, epoch=attempt.epoch, parcel=await self.parcels.offer(attempt, outcome)
        )
        if isinstance(outcome.result, Left):
            attempt.written = True
            self.desk.forget(attempt)
            released.refused = outcome.result is Left.DRAINED
            released.handed_over = outcome.result is Left.HANDED_OVER
            released.moved = outcome.result is Left.MOVED
            released.reason = outcome.reason
            self.control.released(released)
            return
        write = self.crew.start(self._write(attempt, outcome), f"end {attempt.request_id}")
        done, _ = await asyncio.wait([write], timeout=WRITE_TIMEOUT_S)
        holds = write.result() if done else outcome.state
        attempt.ended = self._ended(attempt, outcome, holds, unwritten=not done)
        self.streams.end(attempt)
        self.desk.retain(attempt)
        self.control.released(released)

    async def _write(self, attempt: Attempt, outcome: Outcome) -> RequestState:
        """The state that holds; waits for a store that is away. One that forgot the request agrees."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable), wait=wait_random_exponential(multiplier=0.05, max=1.0)
        )
        stats = attempt.stats(outcome, self.worker_id)
        try:
            return await retrying(
                self.store.finish,
                attempt.request_id,
                attempt.epoch,
                outcome.state,
                reason=outcome.reason,
                stats=stats,
                produced=attempt.ids,
            )
        except RequestNotFound:
            return outcome.state
        finally:
            attempt.written = True

    def _ended(self, attempt: Attempt, outcome: Outcome, holds: RequestState, *, unwritten: bool) -> pb.Ended | None:
        """What the router is told; None if somebody else ended or moved the request, and tells it."""
        ended = pb.Ended(
            request_id=attempt.request_id,
            epoch=attempt.epoch,
            stats=convert.stats_to_pb(attempt.stats(outcome, self.worker_id)),
            unwritten=unwritten,
        )
        result = outcome.result
        if holds is RequestState.CANCELLED and outcome.state is not RequestState.CANCELLED:
            result = Cancelled(f"request {attempt.request_id} was cancelled")
        elif holds is not outcome.state:
            return None
        if isinstance(result, FinishReason):
            ended.reason = convert.FINISH_TO_PB[result]
        elif isinstance(result, HekatonError):
            ended.code = result.code.value[0]
            ended.error, ended.error_reason = result.message, result.reason
        return ended

    def _refuse(self, message: pb.Assign, error: HekatonError) -> None:
        log.warning("request refused", request_id=message.request_id, why=error.message)
        released = pb.Released(request_id=message.request_id, epoch=message.epoch, refused=True, reason=error.reason)
        self.control.released(released)

    def _span(self, attempt: Attempt, assigned_s: float) -> AbstractContextManager[trace.Span]:
        record = attempt.record
        return telemetry.tracer().start_as_current_span(
            f"run {record.model}",
            telemetry.context_from(record.trace_context),
            start_time=telemetry.epoch_ns(assigned_s),
            attributes={
                telemetry.REQUEST_ID: record.request_id,
                telemetry.WORKER_ID: self.worker_id,
                telemetry.EPOCH: attempt.epoch,
                telemetry.GEN_AI_MODEL: record.model,
                telemetry.GEN_AI_INPUT_TOKENS: record.prompt_tokens,
            },
        )


async def _answer(attempt: Attempt) -> None:
    """Waits for the router; without it, the store's checkpoint is what earlier attempts produced."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await attempt.answered.wait()
    except TimeoutError:
        log.warning("router silent, going on from the checkpoint", request_id=attempt.request_id)


def _describe(span: trace.Span, outcome: Outcome) -> None:
    span.set_attribute(telemetry.GEN_AI_OUTPUT_TOKENS, outcome.completion_tokens)
    span.set_attribute(telemetry.GEN_AI_FINISH_REASONS, [outcome.reason])
    if not isinstance(outcome.result, FinishReason):
        span.set_status(Status(StatusCode.ERROR, outcome.reason))
