"""Random histories of requests against a small model of the state machine."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis

from fakes.records import record
from hekaton.errors import RequestNotFound, StaleTerm
from hekaton.facts import RequestState
from hekaton.store.connect import connect
from hekaton.store.embedded import EmbeddedRedis
from hekaton.store.keys import Keys
from hekaton.store.queue import Entry, Queue
from hekaton.store.requests import Requests
from hekaton.store.scripts import convert

T = TypeVar("T")
MAX_ATTEMPTS = 2
QUEUED, PLACED, RUNNING = RequestState.QUEUED, RequestState.PLACED, RequestState.RUNNING
IDS = ("r0", "r1", "r2")
WORKERS = ("w0", "w1")
ids = st.sampled_from(IDS)
workers = st.sampled_from(WORKERS)
ends = st.sampled_from([RequestState.FINISHED, RequestState.FAILED])
lags = st.sampled_from([0, 0, 0, 1])
"""How many epochs the caller is behind."""


@dataclass
class Model:
    """What a request should be."""

    state: RequestState = QUEUED
    epoch: int = 0
    failures: int = 0
    worker_id: str = ""
    entry_id: str | None = None
    """None until the leader has read it."""


class RequestMachine(RuleBasedStateMachine):
    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis: Redis = connect(self.url)
        self.run(self.redis.flushall())
        self.requests = Requests(self.redis)
        self.queue = Queue(self.redis, "s1")
        self.term = 1
        self.models: dict[str, Model] = {}

    def run(self, call: Awaitable[T]) -> T:

        async def awaited() -> T:
            return await call

        return self.runner.run(awaited())

    def learn(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            assert self.models[entry.request_id].state is QUEUED
            self.models[entry.request_id].entry_id = entry.entry_id

    @rule(request_id=ids)
    def accept(self, request_id: str) -> None:
        created = self.run(self.requests.accept(record(request_id), (1, 2), len(IDS)))
        assert created == (request_id not in self.models)
        self.models.setdefault(request_id, Model())

    @rule(request_id=ids, worker_id=workers)
    def advance(self, request_id: str, worker_id: str) -> None:
        """The next step of a life without trouble; without it few histories come far."""
        model = self.models.get(request_id)
        if model is None:
            self.accept(request_id=request_id)
        elif model.state is QUEUED:
            self.read(count=len(IDS))
            self.place(request_id=request_id, worker_id=worker_id)
        elif model.state is PLACED:
            self.start(request_id=request_id, lag=0)

    @rule(count=st.integers(1, 3))
    def read(self, count: int) -> None:
        self.learn(self.run(self.queue.read(self.term, count, 0)))

    @rule()
    def take_over(self) -> None:
        self.term += 1
        self.queue = Queue(self.redis, f"s{self.term}")
        known = {model.entry_id for model in self.models.values() if model.entry_id is not None}
        entries = self.run(self.queue.claim_all(self.term))
        assert {entry.entry_id for entry in entries} == known
        self.learn(entries)

    @rule(request_id=ids, worker_id=workers)
    def place(self, request_id: str, worker_id: str) -> None:
        model = self.models.get(request_id, Model(state=RequestState.FAILED))
        epoch = self.run(self.requests.place(request_id, model.entry_id or "1-1", worker_id, self.term))
        if model.state is not QUEUED or model.entry_id is None:
            assert epoch is None
            return
        assert epoch == model.epoch + 1
        self.models[request_id] = Model(PLACED, epoch, model.failures, worker_id)

    @rule(request_id=ids)
    def a_replaced_leader_acts(self, request_id: str) -> None:
        """One that a newer term has been seen of in Redis."""
        self.run(self.requests.place("nobody", "1-1", "w0", self.term))
        with pytest.raises(StaleTerm):
            self.run(self.requests.place(request_id, "1-1", "w0", self.term - 1))
        with pytest.raises(StaleTerm):
            self.run(self.requests.requeue(request_id, 1, term=self.term - 1, lost=True, max_attempts=1))
        with pytest.raises(StaleTerm):
            self.run(self.queue.read(self.term - 1, 1, 0))

    @rule(request_id=ids, lag=lags)
    def start(self, request_id: str, lag: int) -> None:
        model = self.models.get(request_id, Model())
        started = self.run(self.requests.start(request_id, model.epoch - lag))
        assert started == (lag == 0 and model.state in (PLACED, RUNNING))
        if started:
            model.state = RUNNING

    @rule(request_id=ids, lag=lags, lost=st.booleans())
    def requeue(self, request_id: str, lag: int, lost: bool) -> None:
        model = self.models.get(request_id, Model())
        call = self.requests.requeue(
            request_id, model.epoch - lag, term=self.term, lost=lost, max_attempts=MAX_ATTEMPTS
        )
        holds = self.run(call)
        if lag or request_id not in self.models:
            assert holds is None
        elif model.state in (PLACED, RUNNING):
            model.failures += lost
            model.state = RequestState.FAILED if lost and model.failures >= MAX_ATTEMPTS else QUEUED
            model.worker_id = model.worker_id if model.state.terminal else ""
            assert holds is model.state
        else:
            assert holds is model.state

    @rule(request_id=ids, lag=lags, state=ends)
    def finish(self, request_id: str, lag: int, state: RequestState) -> None:
        model = self.models.get(request_id)
        if model is None:
            with pytest.raises(RequestNotFound):
                self.run(self.requests.finish(request_id, 0, state, reason="stop"))
            return
        holds = self.run(self.requests.finish(request_id, model.epoch - lag, state, reason="stop"))
        if lag == 0 and not model.state.terminal:
            self.end(model, state)
        assert holds is model.state

    @rule(request_id=ids)
    def cancel(self, request_id: str) -> None:
        model = self.models.get(request_id)
        if model is None:
            return
        assert self.run(self.requests.cancel(request_id)).state is model.state
        if not model.state.terminal:
            self.end(model, RequestState.CANCELLED)

    @staticmethod
    def end(model: Model, state: RequestState) -> None:
        model.state, model.entry_id = state, None

    @invariant()
    def redis_holds_what_the_model_says(self) -> None:
        stored = self.run(self.requests.peek(IDS))
        assert {name: (s.state, s.epoch, s.failures, s.worker_id) for name, s in stored.items()} == {
            name: (m.state, m.epoch, m.failures, m.worker_id) for name, m in self.models.items()
        }

    @invariant()
    def the_queue_and_the_workers_hold_each_live_request_once(self) -> None:
        assert self.run(self.requests.queued()) == sum(model.state is QUEUED for model in self.models.values())
        for worker_id in WORKERS:
            assert dict(self.run(self.requests.held_by(worker_id))) == {
                name: model.epoch
                for name, model in self.models.items()
                if model.state in (PLACED, RUNNING) and model.worker_id == worker_id
            }

    def teardown(self) -> None:
        try:
            for request_id in self.models:
                self.run(self.requests.cancel(request_id))
            self.run(self.nothing_is_left())
        finally:
            self.run(self.redis.aclose())
            self.runner.close()

    async def nothing_is_left(self) -> None:
        keys = Keys()
        left = set(convert(await self.redis.keys("*"), tuple[str, ...]))
        assert left <= {keys.queue, keys.term, *map(keys.request, IDS)}
        assert await self.redis.xlen(keys.queue) == 0
        if keys.queue in left and await self.redis.xinfo_groups(keys.queue):
            assert (await self.redis.xpending(keys.queue, "schedulers"))["pending"] == 0
        for request_id in self.models:
            assert await self.redis.pttl(keys.request(request_id)) > 0


def test_random_histories_keep_the_state_machine(redis_server: EmbeddedRedis) -> None:
    class Machine(RequestMachine):
        url = redis_server.url

    run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=40))
