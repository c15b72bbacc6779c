"""The requests of this worker, from Assign to the end of their retention."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import structlog
from opentelemetry import trace

from hekaton.engine.messages import Cancel, Command, Ended, HandOver, Step
from hekaton.errors import Cancelled, EngineFailed, HekatonError, PoisonRequest
from hekaton.facts import FinishReason, TurnRecord
from hekaton.v1 import worker_pb2 as pb
from hekaton_worker.attempt import Attempt, Left, Result
from hekaton_worker.tokens import TokenStreams

log = structlog.get_logger(__name__)
MAX_STRIKES = 2
RETAINED = 10_000
RETENTION_S = 60.0


class Desk:
    """At most one attempt of each request: the newest. Ended ones are kept a while for routers that ask again."""

    def __init__(
        self,
        streams: TokenStreams,
        post: Callable[[Command], None],
        router_lease_s: float,
        may_export: Callable[[], bool],
    ) -> None:
        """`may_export`: KV may leave with a request, since this worker still counts as its holder."""
        self._streams = streams
        self._post = post
        self._may_export = may_export
        self._router_lease_s = router_lease_s
        self._attempts: dict[str, Attempt] = {}
        self._retained: deque[tuple[float, Attempt]] = deque()
        self._busy: set[Attempt] = set()
        self._concluded = asyncio.Event()

    def get(self, request_id: str) -> Attempt | None:
        return self._attempts.get(request_id)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(list(self._attempts.values()))

    def live(self) -> list[Attempt]:
        return [attempt for attempt in self._attempts.values() if attempt.live]

    def held(self) -> list[pb.HeldRequest]:
        """What the store may believe to be here."""
        unwritten = (attempt for attempt in self._attempts.values() if not attempt.written)
        return [
            pb.HeldRequest(request_id=one.request_id, epoch=one.epoch, model=one.record.model, tenant=one.record.tenant)
            for one in unwritten
        ]

    def waiting_span(self, model: str) -> trace.Span | None:
        """The span of a live request of a model."""
        return next((one.span for one in self._attempts.values() if one.live and one.record.model == model), None)

    async def idle(self) -> None:
        """Returns when every request has ended and is told of."""
        while self._busy:
            self._concluded.clear()
            await self._concluded.wait()

    # ---- in and out

    def add(self, attempt: Attempt) -> None:
        """Takes a request in; an older attempt at it ends here."""
        if older := self._attempts.pop(attempt.request_id, None):
            self.leave(older, Left.REVOKED)
            older.settle(Left.REVOKED)
        self._attempts[attempt.request_id] = attempt
        self._busy.add(attempt)
        self.await_router(attempt.router_id)
        self._await_client(attempt)

    def submit(self, attempt: Attempt) -> None:
        """Gives a live request to the engine."""
        attempt.submitted = True
        self._post(attempt.submit(asyncio.get_running_loop().time()))
        # The engine that takes it removes it: a second one would not find it.
        attempt.parcel = None

    def resubmit(self) -> None:
        """The engine process is a new one: everything live starts again after its last token."""
        for attempt in self.live():
            if attempt.leaving:
                attempt.settle(attempt.leaving)
            elif attempt.submitted:
                self.submit(attempt)

    def strike(self, request_ids: Sequence[str]) -> list[Attempt]:
        """An engine died by itself in a step with these requests: the live ones. A second time ends a request."""
        struck = [one for one in self.live() if one.submitted and one.request_id in request_ids]
        for attempt in struck:
            attempt.strikes += 1
            log.error("an engine died with this request", request_id=attempt.request_id, strikes=attempt.strikes)
            if attempt.strikes >= MAX_STRIKES:
                attempt.settle(PoisonRequest(f"{attempt.strikes} engines died computing request {attempt.request_id}"))
        return struck

    def leave(self, attempt: Attempt, why: Result) -> None:
        """Ends a live request for this reason, at once or as soon as the engine has let go of it."""
        if not attempt.submitted:
            attempt.settle(why)
        elif attempt.live and attempt.leaving is None:
            attempt.leaving = why
            takes_kv = why in (Left.MOVED, Left.DRAINED) and self._may_export()
            self._post((HandOver if takes_kv else Cancel)(attempt.request_id, attempt.epoch))

    def retain(self, attempt: Attempt) -> None:
        """Keeps an ended request for a while, within bounds."""
        now_s = asyncio.get_running_loop().time()
        self._conclude(attempt)
        self._retained.append((now_s, attempt))
        while len(self._retained) > RETAINED or self._retained[0][0] < now_s - RETENTION_S:
            _, oldest = self._retained.popleft()
            self.forget(oldest)

    def forget(self, attempt: Attempt) -> None:
        """Keeps nothing of an ended request."""
        self._conclude(attempt)
        if self._attempts.get(attempt.request_id) is attempt and not attempt.live:
            del self._attempts[attempt.request_id]

    # ---- what routers say

    def await_router(self, router_id: str) -> None:
        """A router that has no stream gets the time of a lease for a new one; then nobody waits for its requests.

        Unless their clients may come back at another one.
        """
        if router_id not in self._streams:
            self._streams.absent_s(router_id)
            asyncio.get_running_loop().call_later(self._router_lease_s, self._abandon, router_id)

    def _abandon(self, router_id: str) -> None:
        absent_s = self._streams.absent_s(router_id)
        left_s = []
        for attempt in self.live():
            if attempt.router_id == router_id and absent_s > 0:
                left_s.append(self._router_lease_s + attempt.record.resume_window_s - absent_s)
                if left_s[-1] <= 0:
                    log.warning("its router is gone", request_id=attempt.request_id, router_id=router_id)
                    self.leave(attempt, Cancelled(f"the router of request {attempt.request_id} is gone"))
        if later_s := [one for one in left_s if one > 0]:
            asyncio.get_running_loop().call_later(min(later_s), self._abandon, router_id)
        else:
            self._streams.await_no_more(router_id)

    def adopt(self, request_id: str, router_id: str) -> None:
        """A request's client has come back at this router."""
        attempt = self._attempts.get(request_id)
        if attempt is None:
            return
        attempt.router_id, attempt.following = router_id, False
        self._streams.announce(attempt)
        self._await_client(attempt)

    def announced(self, router_id: str) -> None:
        """A router has a new stream, and knows what it held. One that was started anew knows of nobody."""
        for attempt in self.live():
            if attempt.router_id == router_id:
                self._await_client(attempt)

    def _await_client(self, attempt: Attempt) -> None:
        """A request that is kept ends if no router wants its tokens until its window has passed."""
        if attempt.kept:
            asyncio.get_running_loop().call_later(attempt.record.resume_window_s, self._unwanted, attempt)

    def _unwanted(self, attempt: Attempt) -> None:
        if not attempt.following and attempt.router_id in self._streams:
            self.leave(attempt, Cancelled(f"nobody came back for request {attempt.request_id}"))

    def produced(self, message: pb.Produced, router_id: str) -> None:
        """A router says what it has of a request, in answer to Assigned."""
        attempt = self._attempts.get(message.request_id)
        if attempt is None or (attempt.epoch, attempt.router_id) != (message.epoch, router_id):
            return
        known = list(message.token_ids)
        attempt.following = True
        if len(known) > attempt.record.sampling.max_tokens:
            self.leave(attempt, HekatonError(f"its router has {len(known)} tokens of request {attempt.request_id}"))
            return
        if not attempt.submitted and attempt.live:
            attempt.ids = known
        elif attempt.ids[: len(known)] != known[: len(attempt.ids)]:
            self.leave(attempt, EngineFailed(f"request {attempt.request_id} does not continue what was delivered"))
            return
        attempt.answered.set()
        self._streams.follow(attempt, len(known))

    def cancel(self, message: pb.CancelOnWorker, router_id: str) -> None:
        """A router does not want a request, or has its end already."""
        attempt, request_id = self._attempts.get(message.request_id), message.request_id
        if attempt is None or (message.own and attempt.router_id != router_id):
            return
        if attempt.live:
            self.leave(attempt, Cancelled(f"request {request_id} was cancelled"))
        elif attempt.written:
            self.forget(attempt)

    def stop(self, message: pb.StopOnWorker, router_id: str) -> None:
        """A router has found the end of a request's text: with so many tokens it has ended well."""
        attempt = self._attempts.get(message.request_id)
        if attempt and attempt.live and (attempt.epoch, attempt.router_id) == (message.epoch, router_id):
            del attempt.ids[message.tokens :]
            self.leave(attempt, FinishReason.STOP)

    def revoke(self, message: pb.Revoke) -> None:
        """The scheduler takes a request away."""
        attempt = self._attempts.get(message.request_id)
        if attempt and attempt.epoch == message.epoch:
            self.leave(attempt, Left.MOVED if message.hand_over else Left.REVOKED)

    # ---- what the engine says

    def step(self, event: Step, turn: int) -> None:
        """Keeps and forwards what a step produced."""
        fresh = []
        for output in event.outputs:
            attempt = self._of(output.request_id, output.epoch)
            if attempt is None or attempt.stopped:
                continue
            if output.first_index != len(attempt.ids):
                raise EngineFailed(f"token {output.first_index} of {output.request_id} follows {len(attempt.ids)}")
            attempt.ids += output.token_ids
            attempt.logprobs.update(enumerate(output.logprobs, output.first_index))
            fresh.append((attempt, output.first_index, output.token_ids))
            if attempt.last_turn != turn:
                attempt.last_turn = turn
                attempt.span.add_event("turn", {"hekaton.turn": turn, "hekaton.first_index": output.first_index})
        self._streams.step(fresh)

    def ended(self, event: Ended) -> None:
        if attempt := self._of(event.request_id, event.epoch):
            attempt.end(event)

    def turn_ended(self, turn: TurnRecord) -> None:
        for request_id in turn.preempted_request_ids:
            attempt = self._attempts.get(request_id)
            if attempt and attempt.live:
                attempt.span.add_event("preempted", {"hekaton.tokens": len(attempt.ids)})

    def _conclude(self, attempt: Attempt) -> None:
        self._busy.discard(attempt)
        self._concluded.set()

    def _of(self, request_id: str, epoch: int) -> Attempt | None:
        attempt = self._attempts.get(request_id)
        return attempt if attempt and attempt.epoch == epoch and attempt.live else None
