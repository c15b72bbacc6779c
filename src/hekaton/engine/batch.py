"""Steps: which requests take part, what each feeds, and what to do when one of them breaks the step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hekaton.engine.interface import Engine, Sampled, StepItem
from hekaton.engine.live import LiveRequest
from hekaton.engine.room import Room
from hekaton.engine.stepmark import StepMark
from hekaton.errors import EngineFailed


@dataclass(frozen=True, slots=True)
class Share:
    """One request's part of a step."""

    request: LiveRequest
    item: StepItem


class Stepper:
    """Continuous batching: every step is composed anew, of decodes and of chunks of prompts."""

    def __init__(
        self,
        engine: Engine,
        room: Room[LiveRequest],
        max_batch: int,
        prefill_chunk_tokens: int,
        mark: StepMark | None = None,
    ) -> None:
        self._engine = engine
        self._mark = mark
        self._suspects_turn = False
        self._room = room
        self._max_batch = max_batch
        self._prefill_chunk_tokens = prefill_chunk_tokens

    def compose(self, requests: Iterable[LiveRequest], now_s: float) -> list[Share]:
        """The next step of requests of one model, the most urgent first. Those without room are parked."""
        requests = self._without_suspects(list(requests))
        budget = self._prefill_chunk_tokens
        taken: list[tuple[LiveRequest, int]] = []
        coming = 0
        for request in requests:
            if len(taken) + coming == self._max_batch:
                break
            if request.host_tokens:
                coming += request.fetching or self._room.for_kv(request, request.host_tokens, now_s)
                continue
            count = 1 if request.decoding else min(request.pending, budget)
            if count and self._room.for_kv(request, request.computed + count, now_s):
                budget -= 0 if request.decoding else count
                taken.append((request, count))
        # A request that was taken may have lost its KV to one that came after it.
        return [Share(one, _item(one, count)) for one, count in taken if one.kv_tokens >= one.computed + count]

    def run(self, model: str, shares: Sequence[Share]) -> list[Sampled | EngineFailed | None]:
        """Sampled tokens, one result a share. A step that fails is made again one request at a time."""
        items = [share.item for share in shares]
        try:
            return self._step(model, items)
        except EngineFailed as error:
            return [error] if len(items) == 1 else [self._alone(model, item) for item in items]

    def _alone(self, model: str, item: StepItem) -> Sampled | EngineFailed | None:
        try:
            return self._step(model, [item])[0]
        except EngineFailed as error:
            return error

    def _step(self, model: str, items: Sequence[StepItem]) -> list[Sampled | EngineFailed | None]:
        if self._mark is None:
            return list(self._engine.step(model, items))
        with self._mark.step([item.request_id for item in items]):
            return list(self._engine.step(model, items))

    def _without_suspects(self, requests: list[LiveRequest]) -> list[LiveRequest]:
        """Requests in whose step an engine died run alone, one after the other, in every other step of their model."""
        suspects = [one for one in requests if one.suspect]
        if not suspects:
            return requests
        others = [one for one in requests if not one.suspect]
        self._suspects_turn = not self._suspects_turn or not others
        if not self._suspects_turn:
            return others
        alone = min(suspects, key=lambda one: one.steps_alone)
        alone.steps_alone += 1
        return [alone]


def _item(request: LiveRequest, count: int) -> StepItem:
    return StepItem(
        request_id=request.request_id,
        token_ids=request.tokens(count),
        start=request.computed,
        sampling=request.sampling if count == request.pending else None,
        position=len(request.produced),
        prompt=request.prompt,
        produced=request.produced,
    )
