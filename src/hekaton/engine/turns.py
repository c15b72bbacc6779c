"""The turn loop: what the policy decides is carried out here, token by token.

Pure of sockets and of clocks of its own: commands come in by `handle`, events go out by `emit`, and `run_once` does
one pass, with at most one step in it. Preemption needs no work: a request's state is always between two steps.
"""

import math
from collections.abc import Callable
from pathlib import Path

from hekaton.engine.batch import Stepper
from hekaton.engine.desk import Desk
from hekaton.engine.images import Images
from hekaton.engine.interface import Engine
from hekaton.engine.kvmemory import EngineMemory
from hekaton.engine.messages import (
    AddModel,
    Cancel,
    Command,
    Event,
    HandOver,
    ImageFailed,
    ImageReady,
    LoadEnded,
    ParcelsAt,
    RemoveModel,
    Stop,
    Submit,
    TurnEnded,
    Yielding,
)
from hekaton.engine.rehearsal import Rehearsal
from hekaton.engine.reporter import Reporter
from hekaton.engine.room import Room
from hekaton.engine.stepmark import StepMark
from hekaton.engine.steps import Outcome, Steps
from hekaton.engine.turnlog import OpenTurn, TurnLog
from hekaton.engine.views import Views
from hekaton.errors import EngineFailed, HekatonError, ModelNotFound
from hekaton.policy.types import Role, Turn, TurnPolicy


class TurnLoop:
    """Drives one engine by one policy. Not thread-safe: one thread calls everything."""

    def __init__(
        self,
        engine: Engine,
        policy: TurnPolicy,
        emit: Callable[[Event], None],
        clock: Callable[[], float],
        worker_id: str,
        max_batch: int = 64,
        prefill_chunk_tokens: int = 512,
        role: Role = Role.ANY,
        mark: StepMark | None = None,
        patience_s: float = math.inf,
    ) -> None:
        """`patience_s`: a request that has waited so long for its first step is refused."""
        self.stopping = False
        self._patience_s = patience_s
        self._engine = engine
        self._policy = policy
        self._emit = emit
        self._clock = clock
        self._desk = Desk(engine, emit)
        self._memory = EngineMemory(engine, self._desk)
        self._room = Room(self._memory, self._desk.live, self._desk.demands)
        self._images = Images(engine, emit)
        self._rehearsal = Rehearsal(engine, self._images, self._desk.specs, clock)
        self._log = TurnLog(worker_id, clock())
        stepper = Stepper(engine, self._room, max_batch, prefill_chunk_tokens, mark)
        self._steps = Steps(stepper, self._desk, self._log, emit, clock, role)
        self._views = Views(engine, self._desk, self._images, role)
        self._turn: OpenTurn | None = None
        self._reporter = Reporter(engine, emit)
        self._undecided = False
        """Something happened that a policy decides about."""
        self._retry_s: float | None = None
        """When the next parked request may ask again."""

    # ---- commands

    def handle(self, command: Command) -> None:
        """Applies a command. Call it between steps."""
        self._undecided |= not isinstance(command, Yielding) or self._desk.set_yielding(frozenset(command.tenants))
        match command:
            case AddModel():
                self._add_model(command)
            case RemoveModel(name=name):
                self._remove_model(name)
            case ImageReady():
                self._image_ready(command)
            case ImageFailed(model=model, code=code):
                self._images.failed(model)
                self._rehearsal.remove(model)
                self._desk.fail_model(model, code, command.reason, command.message)
            case Submit():
                self._desk.submit(command, self._clock())
            case Cancel():
                self._desk.cancel(command)
            case HandOver():
                self._desk.leave(command)
            case ParcelsAt(directory=directory):
                self._engine.export_to(Path(directory))
            case Stop():
                self._leave(self._clock())
                self.stopping = True

    def _add_model(self, command: AddModel) -> None:
        known = self._desk.specs.get(command.name)
        if known is not None and known != command.spec:
            self._remove_model(command.name)
        if known != command.spec:
            self._desk.add_model(command)
            if command.name in self._desk.specs:
                self._rehearsal.know(command.name)
                if command.rehearse:
                    self._rehearsal.add(command.name)

    def _remove_model(self, name: str) -> None:
        gone = ModelNotFound(f"model {name} was removed from the pool")
        self._desk.fail_model(name, gone.code.value[0], gone.reason, gone.message)
        if self._turn and self._turn.model == name:
            self._leave(self._clock())
        self._images.failed(name)
        self._rehearsal.remove(name)
        if self._desk.remove_model(name):
            self._engine.evict(name)
            self._images.drop(name)
            self._engine.remove_model(name)

    def _image_ready(self, command: ImageReady) -> None:
        if command.model not in self._desk.specs:
            return
        try:
            self._images.ready(command.model, command.image)
        except HekatonError as error:
            self._rehearsal.remove(command.model)
            self._desk.fail_model(command.model, error.code.value[0], error.reason, error.message)

    # ---- one pass

    def run_once(self) -> bool:
        """Books copies, decides if anything happened, makes at most one step. True if there is more to do at once."""
        now = self._clock()
        if self._desk.live:
            self._rehearsal.interrupt()
        self._collect_loads()
        self._undecided |= self._memory.returned()
        self._desk.exported()
        if self._must_decide(now):
            self._decide(now)
            self._images.sweep(self._desk.models() | {model for model in [self._rehearsal.model] if model})
            self.check_integrity()
        stepped = self._turn is not None and self._turn.model in self._engine.startable() and self._step(self._turn)
        rehearsed = not self._desk.live and self._rehearsal.advance()
        running = self._turn.model if self._turn else ""
        self._reporter.report(running, self._desk, self._log, self._clock(), self._rehearsal.learned())
        return stepped or rehearsed or self._undecided

    def wake_s(self) -> float | None:
        """When, on the clock, something will happen by itself although `run_once` said that there is nothing to do."""
        times = [time for time in (self._engine.next_event_s(), self._retry_s) if time is not None]
        return min(times, default=None)

    def check_integrity(self) -> None:
        """Raises AssertionError if the books of loop or engine do not balance."""
        self._desk.check_integrity()

    def _collect_loads(self) -> None:
        for load in self._engine.finished_loads():
            self._undecided = True
            if load.error:
                failed = EngineFailed(f"loading {load.model} failed: {load.error}")
                self._desk.fail_model(load.model, failed.code.value[0], failed.reason, failed.message)
            elif load.model != self._rehearsal.model:
                self._log.loaded(load.model, load.copied_bytes)
                self._emit(LoadEnded(load.model, load.duration_s, load.copied_bytes))

    def _must_decide(self, now_s: float) -> bool:
        over = self._turn is not None and self._turn.first_step_s is not None and now_s >= self._turn.until_s
        return self._undecided or over or (self._retry_s is not None and now_s >= self._retry_s)

    def _step(self, turn: OpenTurn) -> bool:
        """Makes one step. A decision is due if there is none to make, or if it has ended a request."""
        outcome = self._steps.step(turn, self._clock())
        self._undecided |= outcome is Outcome.NOTHING or self._desk.has_ended
        return outcome is Outcome.STEPPED

    # ---- turns

    def _decide(self, now_s: float) -> None:
        self._undecided = False
        self._desk.refuse_before(now_s - self._patience_s)
        self._retry_s = self._room.unpark(math.inf if self._desk.take_ended() else now_s)
        turn = self._policy.next_turn(self._views.view(self._turn, now_s), now_s)
        if turn is None or self._turn is None or self._turn.model != turn.model:
            self._leave(now_s)
        if turn is None:
            return
        if self._turn is None:
            self._turn = self._log.opened(turn.model, now_s, resident=turn.model in self._engine.resident())
        self._turn.order = turn.request_ids
        self._turn.budget_s = turn.budget_s
        self._turn.until_s = now_s + turn.budget_s
        self._load(turn, now_s)

    def _load(self, turn: Turn, now_s: float) -> None:
        """Evicts and begins loads as the turn says, and brings the KV of models that are to run next.

        A model that finds no room is left out of the next decision.
        """
        for model in turn.evict:
            self._engine.evict(model)
        for model in turn.release_kv:
            self._room.release_kv(model, now_s)
        for model in (turn.model, *turn.prefetch):
            present = self._engine.resident() | self._engine.loading()
            running = turn.model if turn.model != model else ""
            if model not in present and not self._room.for_weights(model, now_s, running):
                self._undecided = True
        loading = self._engine.loading()
        if first := next((model for model in (turn.model, *turn.prefetch) if model in loading), ""):
            self._engine.hurry(first)
        coming = loading | (self._engine.resident() & set(turn.prefetch))
        self._memory.fetch_beside(one for one in self._desk.live.values() if one.model in coming)

    def _leave(self, now_s: float) -> None:
        """Ends the turn that is under way, if any."""
        turn, self._turn = self._turn, None
        if turn is None or turn.first_step_s is None:
            return
        preempted = [one for one in self._desk.live.values() if one.model == turn.model and one.started]
        for request in preempted:
            request.preemptions += 1
        ids = tuple(one.request_id for one in preempted)
        self._emit(TurnEnded(self._log.close(turn, turn.first_step_s, now_s, ids)))
