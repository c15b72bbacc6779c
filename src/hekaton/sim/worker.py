"""A simulated worker: carries out what the turn policy decides, a stretch of steps at a time.

The live turn loop makes one step a pass. Here the steps up to the next event are made at once, in closed form: until
the turn or a request ends, or something happens to the worker, which cuts the stretch at its next step boundary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hekaton.policy.types import ModelCosts, PoolWorker, Turn, TurnPolicy, WorkerView
from hekaton.sim.agenda import Agenda
from hekaton.sim.device import Device
from hekaton.sim.request import SimRequest, Stretch
from hekaton.sim.room import Room

MAX_BATCH = 64


@dataclass(slots=True)
class Tally:
    """What a worker has done."""

    busy_s: float = 0.0
    switches: int = 0
    """Turns of another model than the last."""
    exposed_switch_s: float = 0.0
    """Seconds from the decision for another model to its first step."""


@dataclass(slots=True)
class _OpenTurn:
    model: str
    opened_s: float
    order: tuple[str, ...] = ()
    budget_s: float = 0.0
    until_s: float = 0.0
    first_step_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    """A stretch under way."""

    stretch: Stretch
    requests: tuple[SimRequest, ...]


class Worker:
    """One device under one policy. `finished` is called with every request that ends, at its end.

    `max_steps` bounds a stretch; 1 makes every step an event.
    """

    def __init__(
        self,
        worker_id: str,
        device: Device,
        costs: Mapping[str, ModelCosts],
        policy: TurnPolicy,
        agenda: Agenda,
        finished: Callable[[SimRequest], None],
        max_steps: int = 1 << 20,
    ) -> None:
        self.worker_id = worker_id
        self.device = device
        self.tally = Tally()
        self._costs = costs
        self._ready = frozenset(costs)
        self._policy = policy
        self._agenda = agenda
        self._finished = finished
        self._max_steps = max_steps
        self._live: dict[str, SimRequest] = {}
        """In order of arrival."""
        self._counts: dict[str, int] = {}
        self._room = Room(device, self._live)
        self._turn: _OpenTurn | None = None
        self._last_model: str | None = None
        self._run: _Run | None = None
        self._undecided = False
        self._ended = False
        self._copy_watch_s: float | None = None
        self._retry_s: float | None = None

    def pool_view(self) -> PoolWorker:
        device = self.device
        return PoolWorker(self.worker_id, device.memory_bytes, device.resident, device.loading, self._counts)

    def submit(self, request: SimRequest) -> None:
        self._live[request.request_id] = request
        self._counts[request.model] = self._counts.get(request.model, 0) + 1
        self._wake()

    # ---- events

    def _wake(self) -> None:
        """Something happened that a policy decides about: at once, or at the end of the step under way."""
        self._undecided = True
        if self._run is None:
            self._advance()
            return
        stretch = self._run.stretch
        steps = stretch.steps_by(self._agenda.now_s)
        if steps < stretch.steps:
            self._begin(_Run(Stretch(stretch.start_s, stretch.step_s, stretch.growth_s, steps), self._run.requests))

    def _copy_ended(self) -> None:
        self._copy_watch_s = None
        if self.device.settle(self._agenda.now_s):
            self._wake()
        self._watch_copies()

    def _watch_copies(self) -> None:
        end_s = self.device.next_copy_ends_s
        if end_s is not None and (self._copy_watch_s is None or end_s < self._copy_watch_s):
            self._copy_watch_s = end_s
            self._agenda.at(end_s, self._copy_ended)

    def _retry(self) -> None:
        self._retry_s = None
        self._wake()

    def _watch_parked(self) -> None:
        now_s = self._agenda.now_s
        parked = [request.parked_until_s for request in self._live.values() if request.parked_until_s > now_s]
        if parked and (self._retry_s is None or min(parked) < self._retry_s):
            self._retry_s = min(parked)
            self._agenda.at(self._retry_s, self._retry)

    # ---- decisions

    def _advance(self) -> None:
        """Decides if there is something to decide, and begins the next stretch, if anything can run."""
        turn = self._turn
        self._undecided |= turn is not None and turn.first_step_s is not None and self._agenda.now_s >= turn.until_s
        while self._undecided or not self._goes_on():
            self._decide()
        self._watch_copies()
        self._watch_parked()

    def _goes_on(self) -> bool:
        """Begins a stretch of the open turn if it can. False if its weights are there but none of its requests runs."""
        turn = self._turn
        return turn is None or turn.model not in self.device.resident or self._compose(turn)

    def _decide(self) -> None:
        now_s = self._agenda.now_s
        self._undecided = False
        if self._ended:
            self._room.unpark_all()
            self._ended = False
        decided = self._policy.next_turn(self._view(now_s), now_s)
        if decided is None:
            self._turn = None
            return
        if self._turn is None or self._turn.model != decided.model:
            self._turn = _OpenTurn(decided.model, now_s)
        self._turn.order = decided.request_ids
        self._turn.budget_s = decided.budget_s
        self._turn.until_s = now_s + decided.budget_s
        self._load(decided, now_s)

    def _load(self, turn: Turn, now_s: float) -> None:
        """Evicts and begins loads as the turn says. A model that finds no room is left out of the next decision."""
        for model in turn.evict:
            self.device.evict(model, now_s)
        for model in (turn.model, *turn.prefetch):
            present = model in self.device.resident or model in self.device.loading
            running = turn.model if turn.model != model else ""
            if not present and not self._room.for_weights(model, now_s, running):
                self._undecided = True

    def _view(self, now_s: float) -> WorkerView:
        turn = self._turn
        started_s = turn.first_step_s if turn else None
        # A model whose weights have just come runs already, lest it be displaced before its first step.
        runs = turn is not None and (started_s is not None or turn.model in self.device.resident)
        return WorkerView(
            running=turn.model if turn and runs else None,
            turn_started_s=now_s if started_s is None else started_s,
            resident=self.device.resident,
            loading=self.device.loading,
            ready=self._ready,
            requests=tuple(one.view() for one in self._live.values() if one.parked_until_s <= now_s),
            costs=self._costs,
            device_memory_bytes=self.device.memory_bytes,
            free_bytes=self.device.free_bytes,
        )

    # ---- stretches

    def _compose(self, turn: _OpenTurn) -> bool:
        """Begins a prefill if one waits, else decode steps. False if none of the turn's requests can run."""
        now_s = self._agenda.now_s
        members = [self._live[one] for one in turn.order if one in self._live]
        runnable = [one for one in members if one.model == turn.model and one.parked_until_s <= now_s]
        for request in runnable:
            if request.pending and self._room.for_kv(request, request.pending, now_s):
                step_s = self._costs[turn.model].prefill_s(request.pending)
                self._first_step(turn, now_s)
                self._begin(_Run(Stretch(now_s, step_s, 0.0, 1), (request,)))
                return True
        batch = self._with_kv([one for one in runnable if not one.pending][:MAX_BATCH], now_s)
        if not batch:
            return False
        self._first_step(turn, now_s)
        self._begin(self._decode(turn, batch, now_s))
        return True

    def _with_kv(self, batch: list[SimRequest], now_s: float) -> list[SimRequest]:
        """Those with room for one more token. One that was taken may lose its KV to one that comes after it."""
        grown = [one for one in batch if one.computed and self._room.for_kv(one, one.computed + 1, now_s)]
        return [one for one in grown if one.computed]

    def _decode(self, turn: _OpenTurn, batch: list[SimRequest], now_s: float) -> _Run:
        """Decode steps until the first request or the turn ends. KV is set aside for all of them."""
        costs = self._costs[turn.model]
        step_s = costs.step_s(len(batch), sum(one.computed for one in batch))
        most = min(self._max_steps, *(one.output_tokens - one.produced for one in batch))
        stretch = Stretch(now_s, step_s, costs.step_s_per_context_token * len(batch), most)
        steps = self._set_aside(batch, stretch.steps_by(turn.until_s))
        return _Run(Stretch(now_s, step_s, stretch.growth_s, steps), tuple(batch))

    def _set_aside(self, batch: list[SimRequest], steps: int) -> int:
        """Takes KV for as many of `steps` steps as there is free room for, halving until it fits."""
        while sum(self.device.growth_bytes(one, one.computed + steps) for one in batch) > self.device.free_bytes:
            steps = max(steps // 2, 1)
        for one in batch:
            self.device.set_kv(one, one.computed + steps)
        return steps

    def _first_step(self, turn: _OpenTurn, now_s: float) -> None:
        """The turn's budget, and what its switch cost, count from here."""
        if turn.first_step_s is not None:
            return
        turn.first_step_s = now_s
        turn.until_s = now_s + turn.budget_s
        if turn.model != self._last_model:
            self._last_model = turn.model
            self.tally.switches += 1
            self.tally.exposed_switch_s += now_s - turn.opened_s

    def _begin(self, run: _Run) -> None:
        self._run = run
        self._agenda.at(run.stretch.end_s, lambda: self._stretch_ended(run))

    def _stretch_ended(self, run: _Run) -> None:
        """Books the stretch, unless it has been cut since, and goes on."""
        if self._run is not run:
            return
        self._run = None
        self.tally.busy_s += run.stretch.end_s - run.stretch.start_s
        for request in run.requests:
            self._book(request, run.stretch)
        self._undecided |= self._ended
        self._advance()

    def _book(self, request: SimRequest, stretch: Stretch) -> None:
        request.book(stretch)
        if request.produced < request.output_tokens:
            self.device.set_kv(request, request.computed)
            return
        self.device.set_kv(request, 0)
        del self._live[request.request_id]
        self._counts[request.model] -= 1
        self._ended = True
        self._finished(request)
