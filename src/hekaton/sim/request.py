"""A request in the simulator, and the stretches of steps that made its tokens."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hekaton.policy.types import RequestView


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps in a row in which nothing changes but the context, which grows: step k takes `step_s + k·growth_s`."""

    start_s: float
    step_s: float
    growth_s: float
    steps: int

    def after_s(self, steps: int) -> float:
        """The time at which `steps` of its steps are done."""
        return self.start_s + steps * self.step_s + self.growth_s * (steps * (steps - 1) / 2)

    @property
    def end_s(self) -> float:
        return self.after_s(self.steps)

    def steps_by(self, time_s: float) -> int:
        """How many steps until the first boundary at or after `time_s`: at least one, at most all."""
        wanted_s = time_s - self.start_s
        if wanted_s <= self.step_s:
            return 1
        half, linear = self.growth_s / 2, self.step_s - self.growth_s / 2
        # The root of half·n² + linear·n = wanted_s, in the form that also holds for half = 0.
        root = 2 * wanted_s / (linear + math.sqrt(linear * linear + 4 * half * wanted_s))
        steps = max(math.ceil(root) - 1, 1)
        while steps < self.steps and self.after_s(steps) < time_s:
            steps += 1
        return min(steps, self.steps)

    def token_times_s(self) -> NDArray[np.float64]:
        done = np.arange(1, self.steps + 1)
        return self.start_s + done * self.step_s + self.growth_s * (done * (done - 1) / 2)


@dataclass(slots=True, eq=False)
class SimRequest:
    """What a simulated worker knows of a live request."""

    request_id: str
    model: str
    arrival_s: float
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tbt_s: float
    produced: int = 0
    computed: int = 0
    """Tokens whose KV is on the device."""
    kv_bytes: int = 0
    parked_until_s: float = 0.0
    stretches: list[Stretch] = field(default_factory=list)
    """Each gave one token a step to this request."""
    _view: RequestView | None = None
    """As of the last change: most requests stand still while others run."""

    @property
    def pending(self) -> int:
        """Tokens to prefill; 0 while decoding."""
        return 0 if self.computed else self.input_tokens + self.produced

    def due_s(self) -> float:
        """When the next token is due."""
        return self.arrival_s + self.ttft_s + self.produced * self.tbt_s

    def token_times_s(self) -> NDArray[np.float64]:
        return np.concatenate([stretch.token_times_s() for stretch in self.stretches])

    def book(self, stretch: Stretch) -> None:
        """Adds the tokens of a stretch: the first after a prefill, or one a decode step."""
        self.computed += self.pending or stretch.steps
        self.produced += stretch.steps
        self.stretches.append(stretch)
        self._view = None

    def start_over(self) -> None:
        """Its KV is gone: what it has is to be computed again."""
        self.computed = 0
        self._view = None

    def view(self) -> RequestView:
        if self._view is None:
            self._view = RequestView(
                request_id=self.request_id,
                model=self.model,
                arrival_s=self.arrival_s,
                ttft_s=self.ttft_s,
                tbt_s=self.tbt_s,
                pending_tokens=self.pending,
                produced_tokens=self.produced,
                context_tokens=self.computed,
            )
        return self._view
