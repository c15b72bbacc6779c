"""A turn loop over a real emulated engine, on a clock that only moves when the test or the engine moves it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from hekaton.engine.emulated import EmulatedEngine, emulated_token
from hekaton.engine.interface import LoadResult, Sampled, StepItem
from hekaton.engine.messages import (
    AddModel,
    Command,
    Ended,
    Event,
    ImageDropped,
    ImageReady,
    Message,
    Step,
    Submit,
    WantImage,
)
from hekaton.engine.turns import TurnLoop
from hekaton.errors import EngineFailed
from hekaton.facts import Image, ModelSpec, Sampling, Slo
from hekaton.policy.slack import SlackTurns
from hekaton.policy.types import Role, Turn, TurnPolicy, WorkerView

GB = 10**9
INTERACTIVE = Slo(10.0, 0.1)
M = TypeVar("M", bound=Message)


class SettableClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


class CountingPolicy:
    """A policy that remembers how often it was asked."""

    def __init__(self, policy: TurnPolicy) -> None:
        self._policy = policy
        self.calls = 0

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        self.calls += 1
        return self._policy.next_turn(view, now_s)


class RecordingEngine(EmulatedEngine):
    """Remembers whose KV went to the host, and who was computed again from its first token on later."""

    def __init__(
        self,
        device: str,
        device_memory_bytes: int,
        *,
        host_kv_memory_bytes: int = 0,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(
            device, device_memory_bytes, host_kv_memory_bytes=host_kv_memory_bytes, clock=clock, sleep=sleep
        )
        self.recomputed: list[str] = []
        self.swapped: list[str] = []

    def swap_out(self, request_id: str, tokens: int) -> bool:
        fits = super().swap_out(request_id, tokens)
        self.swapped += [request_id] * fits
        return fits

    def step(self, model: str, items: Sequence[StepItem]) -> list[Sampled | None]:
        self.recomputed += [item.request_id for item in items if item.start == 0 and item.position > 0]
        return super().step(model, items)


class PoisonedEngine(RecordingEngine):
    """Refuses every step in which the request `poison` takes part, as a real engine does with numbers not finite."""

    poison = "poison"

    def step(self, model: str, items: Sequence[StepItem]) -> list[Sampled | None]:
        if any(item.request_id == self.poison for item in items):
            raise EngineFailed(f"request {self.poison}: its logits are not finite")
        return super().step(model, items)


class BrokenBusEngine(RecordingEngine):
    """Cannot load model `broken`."""

    def finished_loads(self) -> list[LoadResult]:
        ended = super().finished_loads()
        for load in ended:
            if load.model == "broken":
                self.evict(load.model)
        return [replace(load, error="bus error") if load.model == "broken" else load for load in ended]


def spec(weight_bytes: int = 10 * GB, kv_bytes_per_token: int = 1_000_000, **changes: int) -> ModelSpec:
    return ModelSpec(
        digest="d",
        architecture="emulated",
        dtype="bfloat16",
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token,
        max_context_tokens=changes.get("max_context_tokens", 4096),
        vocab_size=256,
    )


def submit(
    request_id: str,
    model: str,
    *,
    prompt: int = 20,
    max_tokens: int = 30,
    epoch: int = 1,
    produced: tuple[int, ...] = (),
    stop: tuple[int, ...] = (),
    slo: Slo = INTERACTIVE,
    age_s: float = 0.0,
) -> Submit:
    sampling = Sampling(max_tokens=max_tokens, seed=seed_of(request_id), stop_token_ids=stop)
    ids = tuple(index % 256 for index in range(prompt))
    return Submit(request_id, epoch, 0, model, ids, produced, sampling, slo, age_s)


def seed_of(request_id: str) -> int:
    return sum(request_id.encode())


def expected(request_id: str, model: str, count: int) -> list[int]:
    """The tokens that a request must get."""
    return [emulated_token(model, seed_of(request_id), position, spec()) for position in range(count)]


class LoopDriver:
    """Plays the worker: answers WantImage, keeps all events, moves the clock to what comes next."""

    def __init__(
        self,
        device_memory_bytes: int = 32 * GB,
        policy: TurnPolicy | None = None,
        engine: type[RecordingEngine] = RecordingEngine,
        give_images: bool = True,
        max_batch: int = 64,
        role: Role = Role.ANY,
        host_kv_memory_bytes: int = 0,
        patience_s: float = math.inf,
    ) -> None:
        self.clock = SettableClock()
        self.engine = engine(
            "h800",
            device_memory_bytes,
            host_kv_memory_bytes=host_kv_memory_bytes,
            clock=self.clock,
            sleep=self.clock.sleep,
        )
        self.policy = CountingPolicy(policy or SlackTurns())
        self.give_images = give_images
        self.mapped: set[str] = set()
        self.events: list[Event] = []
        self._pending: list[Command] = []
        self.loop = TurnLoop(
            self.engine, self.policy, self._emit, self.clock, "w", max_batch, 32, role, patience_s=patience_s
        )

    def add(self, *models: str, model_spec: ModelSpec | None = None) -> None:
        for model in models:
            self.loop.handle(AddModel(model, model_spec or spec(), "emulated:qwen2.5-7b"))

    def send(self, *commands: Command) -> None:
        for command in commands:
            if isinstance(command, ImageReady):
                self.mapped.add(command.model)
            self.loop.handle(command)

    def pass_once(self) -> bool:
        """One pass of the loop; False if nothing will ever happen without a command."""
        busy = self.loop.run_once()
        pending, self._pending = self._pending, []
        self.send(*pending)
        if busy or pending:
            return True
        wake_s = self.loop.wake_s()
        if wake_s is None:
            return False
        self.clock.now_s = max(self.clock.now_s, wake_s)
        return True

    def run(self, until: Callable[[], bool] = lambda: False, passes: int = 20_000) -> None:
        """Runs until `until` holds or nothing is left to do."""
        for _ in range(passes):
            if until() or not self.pass_once():
                return
        raise AssertionError(f"still busy after {passes} passes")

    def run_for(self, duration_s: float) -> None:
        """Runs so long, or until nothing is left to do."""
        until_s = self.clock.now_s + duration_s
        self.run(lambda: self.clock.now_s >= until_s)

    def of(self, kind: type[M]) -> list[M]:
        return [event for event in self.events if isinstance(event, kind)]

    def tokens(self, request_id: str, epoch: int = 1) -> list[int]:
        """What a request was given, in order; its indices must be contiguous."""
        outputs = [
            output
            for step in self.of(Step)
            for output in step.outputs
            if (output.request_id, output.epoch) == (request_id, epoch)
        ]
        firsts = [output.first_index for output in outputs]
        assert firsts == list(range(firsts[0], firsts[0] + len(firsts))) if firsts else True
        return [token for output in outputs for token in output.token_ids]

    def ended(self, request_id: str) -> Ended:
        (only,) = [event for event in self.of(Ended) if event.request_id == request_id]
        return only

    def _emit(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, WantImage) and self.give_images:
            self._pending.append(ImageReady(event.model, image()))
        if isinstance(event, ImageDropped):
            self.mapped.remove(event.model)


def image() -> Image:
    return Image(path="", nbytes=0, tensors=(), config_json="")
