"""A simulated worker: carries out what the turn policy decides, a stretch of steps at a time.

The live turn loop makes one step a pass. Here the steps up to the next event are made at once, in closed form: until
the turn or a request ends, or something happens to the worker, which cuts the stretch at its next step boundary.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hekaton.engine.room import Room
from hekaton.policy.fairness import charges
from hekaton.policy.types import ModelCosts, PoolWorker, Role, Turn, TurnPolicy, WorkerView
from hekaton.sim.agenda import Agenda
from hekaton.sim.desk import Desk
from hekaton.sim.device import Device
from hekaton.sim.request import SimRequest
from hekaton.sim.stepper import Run, Stepper


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
    uncharged_s: float = 0.0
    """Waiting for its weights, until its first step is charged."""


class Worker:
    """One device under one policy.

    `ended` is called with every request that leaves: at its end, or, of a prefill worker, with its first token made and
    its KV on the way to the host. `believed` are the costs that policies are told. `max_steps` bounds a stretch; 1
    makes every step an event. `charge` is told what steps cost which tenant.
    """

    def __init__(
        self,
        worker_id: str,
        device: Device,
        costs: Mapping[str, ModelCosts],
        policy: TurnPolicy,
        agenda: Agenda,
        ended: Callable[[SimRequest], None],
        *,
        role: Role = Role.ANY,
        believed: Mapping[str, ModelCosts] | None = None,
        switch_overhead_s: float = 0.0,
        max_steps: int = 1 << 20,
        charge: Callable[[str, float], None] = lambda tenant, seconds: None,
    ) -> None:
        self.worker_id = worker_id
        self.device = device
        self.tally = Tally()
        self._costs = costs
        self._believed = costs if believed is None else believed
        self._ready = frozenset(costs)
        self._policy = policy
        self._agenda = agenda
        self._ended_request = ended
        self._role = role
        self._charge = charge
        self._switch_overhead_s = switch_overhead_s
        self._desk = Desk(counts_prefills=role is Role.PREFILL)
        self._room: Room[SimRequest] = Room(device, self._desk.live, self._desk.demands)
        self._stepper = Stepper(device, self._room, costs, max_steps)
        self._turn: _OpenTurn | None = None
        self._last_model: str | None = None
        self._run: Run | None = None
        self._undecided = False
        self._ended = False
        self._copy_watch_s: float | None = None
        self._retry_s: float | None = None
        self._pool_view: PoolWorker | None = None
        self._pool_view_version = -1

    def pool_view(self) -> PoolWorker:
        """As placements see it; the same object until something changes."""
        device, desk, view = self.device, self._desk, self._pool_view
        fresh = view is not None and view.resident is device.resident and view.loading is device.loading
        if view is None or not fresh or self._pool_view_version != desk.version:
            self._pool_view_version = desk.version
            view = self._pool_view = PoolWorker(
                self.worker_id,
                device.memory_bytes,
                device.resident,
                device.loading,
                dict(desk.counts),
                role=self._role,
                prefill_tokens=desk.prefill_tokens() if self._role is Role.PREFILL else None,
            )
        return view

    def pool_view_before(self) -> PoolWorker:
        """As somebody sees it who does not yield: those that do hold nothing that he waits for."""
        return replace(self.pool_view(), requests=self._desk.counts_before())

    def submit(self, request: SimRequest) -> None:
        self._desk.add(request)
        self._wake()

    def set_yielding(self, tenants: frozenset[str]) -> None:
        """These tenants have had more than their shares: the requests of others go before theirs."""
        if self._desk.set_yielding(tenants):
            self._wake()

    def withdraw(self, request: SimRequest) -> bool:
        """Takes back a request whose prefill has not begun. False if it has."""
        begun = request.produced or (self._run is not None and request in self._run.requests)
        if begun or request.request_id not in self._desk.live:
            return False
        self._desk.remove(request)
        self._wake()
        return True

    def give_up(self, model: str) -> list[SimRequest]:
        """All requests of a model, to be moved; none while it runs, or while KV is on its way here."""
        requests = list(self._desk.of(model))
        running = self._run is not None and self._run.requests[0].model == model
        if running or any(one.fetching for one in requests):
            return []
        for request in requests:
            if request.holds_kv:
                self.device.drop_kv(request, self._agenda.now_s)
            self._desk.remove(request)
            request.parked_until_s = 0.0
        self._ended = True
        self._wake()
        return requests

    # ---- events

    def _wake(self) -> None:
        """Something happened that a policy decides about: at once, or at the end of the step under way."""
        self._undecided = True
        if self._run is None:
            self._advance()
            return
        if shorter := self._run.cut(self._agenda.now_s):
            self._begin(shorter)

    def _copy_ended(self) -> None:
        self._copy_watch_s = None
        came = self.device.settle(self._agenda.now_s)
        for model in came:
            self._desk.demands.touch(model)
        if came:
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

    def _watch_parked(self, at_s: float | None) -> None:
        if at_s is not None and (self._retry_s is None or at_s < self._retry_s):
            self._retry_s = at_s
            self._agenda.at(at_s, self._retry)

    # ---- decisions

    def _advance(self) -> None:
        """Decides if there is something to decide, and begins the next stretch, if anything can run."""
        turn = self._turn
        self._undecided |= turn is not None and turn.first_step_s is not None and self._agenda.now_s >= turn.until_s
        while self._undecided or not self._goes_on():
            self._decide()
        self._watch_copies()

    def _goes_on(self) -> bool:
        """Begins a stretch of the open turn if it can. False if its weights are there but none of its requests runs."""
        turn = self._turn
        return turn is None or turn.model not in self.device.resident or self._compose(turn)

    def _decide(self) -> None:
        now_s = self._agenda.now_s
        self._undecided = False
        self._watch_parked(self._room.unpark(math.inf if self._ended else now_s))
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
        for model in turn.release_kv:
            self._room.release_kv(model, now_s)
        for model in (turn.model, *turn.prefetch):
            running = turn.model if turn.model != model else ""
            if model not in self.device.present() and not self._room.for_weights(model, now_s, running):
                self._undecided = True
            elif model != turn.model:
                self._stepper.fetch_beside(list(self._desk.of(model)), now_s)

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
            demands=self._desk.demands.current(self._desk.views, self._believed.__getitem__),
            costs=self._believed,
            device_memory_bytes=self.device.memory_bytes,
            free_bytes=self.device.free_bytes,
            kv_bytes=self.device.kv_of,
            role=self._role,
        )

    # ---- stretches

    def _compose(self, turn: _OpenTurn) -> bool:
        """Begins the next stretch. False if none of the turn's requests can run, nor will when their KV is there."""
        now_s = self._agenda.now_s
        members = [self._desk.live[one] for one in turn.order if one in self._desk.live]
        runnable = [one for one in members if one.model == turn.model and not one.parked_until_s]
        switches = turn.first_step_s is None and turn.model != self._last_model
        start_s = now_s + self._switch_overhead_s if switches else now_s
        until_s = start_s + turn.budget_s if turn.first_step_s is None else turn.until_s
        run = self._stepper.compose(turn.model, runnable, until_s, start_s)
        if run is None:
            return any(one.fetching for one in runnable)
        self._first_step(turn, start_s)
        self._begin(run)
        return True

    def _first_step(self, turn: _OpenTurn, now_s: float) -> None:
        """The turn's budget, and what its switch cost, count from here."""
        if turn.first_step_s is not None:
            return
        turn.first_step_s = now_s
        turn.uncharged_s = now_s - turn.opened_s
        turn.until_s = now_s + turn.budget_s
        if turn.model != self._last_model:
            self._last_model = turn.model
            self.tally.switches += 1
            self.tally.exposed_switch_s += now_s - turn.opened_s

    def _begin(self, run: Run) -> None:
        self._run = run
        self._agenda.at(run.stretch.end_s, lambda: self._stretch_ended(run))

    def _stretch_ended(self, run: Run) -> None:
        """Books the stretch, unless it has been cut since, and goes on."""
        if self._run is not run:
            return
        self._run = None
        self.tally.busy_s += run.stretch.end_s - run.stretch.start_s
        self._charge_for(run)
        for request in run.requests:
            self._desk.book(request, run.stretch)
            self._leave_if_done(request)
        self._undecided |= self._ended
        self._advance()

    def _charge_for(self, run: Run) -> None:
        exposed_s = 0.0
        if self._turn:
            exposed_s, self._turn.uncharged_s = self._turn.uncharged_s, 0.0
        fed = [(one.tenant, one.pending or run.stretch.steps) for one in run.requests]
        for tenant, seconds in charges(exposed_s, run.stretch.end_s - run.stretch.start_s, fed).items():
            self._charge(tenant, seconds)

    def _leave_if_done(self, request: SimRequest) -> None:
        """At its end, or, on a prefill worker, with its first token."""
        done = request.produced >= request.output_tokens
        if not done and self._role is not Role.PREFILL:
            self.device.set_kv(request, request.computed)
            return
        if done:
            self.device.set_kv(request, 0)
        else:
            self.device.drop_kv(request, self._agenda.now_s)
        self._desk.remove(request)
        self._ended = True
        self._ended_request(request)
