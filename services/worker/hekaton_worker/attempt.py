"""One attempt at a request: what this worker knows of it from Assign to the end of its retention."""

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from grpc import StatusCode
from opentelemetry import trace

from hekaton import facts
from hekaton.engine import messages
from hekaton.errors import Cancelled, HekatonError
from hekaton.facts import FinishReason, Logprobs, Parcel, RequestRecord, RequestState
from hekaton.rpc.errors import CODES, from_status
from hekaton.store.records import StoredRequest
from hekaton.v1 import worker_pb2 as pb


class Left(StrEnum):
    """Ways to end an attempt without ending its request."""

    REVOKED = "revoked"
    """The scheduler took it away, or a newer attempt has come."""
    DRAINED = "drained"
    """This worker stops: the request goes elsewhere."""
    MOVED = "moved"
    """The scheduler wants it elsewhere."""
    HANDED_OVER = "handed over"
    """This worker has computed the prompt: another one decodes."""


Result = FinishReason | HekatonError | Left


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    result: Result
    completion_tokens: int
    preemptions: int
    parcel: Parcel | None = None
    """KV that the engine has left."""

    @property
    def travels(self) -> bool:
        """Its KV is of use elsewhere."""
        return isinstance(self.result, Left) and self.result is not Left.REVOKED

    @property
    def state(self) -> RequestState:
        """The request's terminal state, for results that have one."""
        if isinstance(self.result, FinishReason):
            return RequestState.FINISHED
        return RequestState.CANCELLED if isinstance(self.result, Cancelled) else RequestState.FAILED

    @property
    def reason(self) -> str:
        return self.result.reason if isinstance(self.result, HekatonError) else self.result.value


@dataclass(slots=True, eq=False)
class Attempt:
    """Times are on the event loop's clock."""

    record: RequestRecord
    router_id: str
    """Where its tokens go."""
    epoch: int
    failures: int
    prompt: tuple[int, ...]
    ids: list[int]
    """All tokens of the request, those of earlier attempts included."""
    accepted_s: float
    strikes: int = 0
    """Engines that died by themselves in a step with it."""
    span: trace.Span = trace.INVALID_SPAN
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """The router has said what it has, or nothing is left to wait for."""
    following: bool = False
    """The router's present stream has said what it has: tokens are sent as they come."""
    submitted: bool = False
    """The engine has it."""
    leaving: Result | None = None
    """Why the engine was asked to cancel it."""
    logprobs: dict[int, Logprobs] = field(default_factory=dict)
    """By index of their token, if the request asks for them; not those of earlier attempts."""
    outcome: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: pb.Ended | None = None
    """What the router is told."""
    written: bool = False
    """The store knows how it ended, or need not."""
    parcel: Parcel | None = None
    """KV that has come with it and that the engine has not been given yet."""
    last_turn: int = -1
    """The worker's turn in which it had its latest token."""

    @classmethod
    def of(cls, stored: StoredRequest, now_s: float) -> "Attempt":
        summary = stored.summary
        ids = list(stored.produced)
        return cls(
            record=summary.record,
            router_id=summary.router_id,
            epoch=summary.epoch,
            failures=summary.failures,
            prompt=stored.prompt,
            ids=ids,
            accepted_s=now_s - summary.age_s,
            strikes=summary.strikes,
        )

    @property
    def request_id(self) -> str:
        return self.record.request_id

    @property
    def kept(self) -> bool:
        """It goes on without a client for a while."""
        return self.record.resume_window_s > 0

    @property
    def live(self) -> bool:
        return not self.outcome.done()

    @property
    def stopped(self) -> bool:
        """Its text is complete: what the engine still produces is not of its output."""
        return isinstance(self.leaving, FinishReason)

    @property
    def ends_s(self) -> float:
        return self.accepted_s + self.record.deadline_s

    def submit(self, now_s: float) -> messages.Submit:
        """The command that starts it, or starts it again in a new engine process."""
        return messages.Submit(
            request_id=self.request_id,
            epoch=self.epoch,
            failures=self.failures,
            model=self.record.model,
            prompt=self.prompt,
            produced=tuple(self.ids),
            sampling=self.record.sampling,
            slo=self.record.slo,
            age_s=now_s - self.accepted_s,
            suspect=self.strikes > 0,
            parcel=self.parcel,
            tenant=self.record.tenant,
        )

    def settle(self, result: Result, preemptions: int = 0, parcel: Parcel | None = None) -> None:
        """Sets the outcome, once."""
        if self.live:
            self.outcome.set_result(Outcome(result, len(self.ids), preemptions, parcel))
            self.answered.set()

    def end(self, event: messages.Ended) -> None:
        """Takes the engine's last word."""
        if self.leaving and (event.cancelled or event.handed_over or self.stopped):
            result: Result = self.leaving
        elif event.cancelled:
            result = Cancelled(f"request {self.request_id} was cancelled")
        elif event.finish is not None:
            result = event.finish
        elif event.handed_over:
            result = Left.HANDED_OVER
        else:
            result = from_status(CODES.get(event.error_code, StatusCode.INTERNAL), event.error_reason, event.error)
        self.settle(result, event.preemptions, event.parcel)

    def stats(self, outcome: Outcome, worker_id: str) -> facts.RequestStats:
        return facts.RequestStats(
            prompt_tokens=self.record.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            preemptions=outcome.preemptions,
            epoch=self.epoch,
            failures=self.failures,
            worker_id=worker_id,
        )
