"""A request in the simulator, and the stretches of steps that made its tokens."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hekaton.policy.types import RequestView


@dataclass(slots=True)
class Stretch:
    """Steps in a row in which nothing changes but the context, which grows: step k takes `step_s + k·growth_s`."""

    start_s: float
    step_s: float
    growth_s: float
    steps: int
    _times_s: NDArray[np.float64] | None = None
    """Kept, since all requests of the batch ask for them."""

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
        if self._times_s is None:
            done = np.arange(1, self.steps + 1)
            self._times_s = self.start_s + done * self.step_s + self.growth_s * (done * (done - 1) / 2)
        return self._times_s


class Freeable(Protocol):
    def free(self, nbytes: int) -> None: ...


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
    tenant: str = ""
    yields: bool = False
    """Its tenant has had more than his share."""
    produced: int = 0
    computed: int = 0
    """Tokens whose KV is on the device."""
    kv_bytes: int = 0
    kv_tokens: int = 0
    """That its blocks hold."""
    host: Freeable | None = None
    """Who keeps its KV, if that is not on the device."""
    host_bytes: int = 0
    host_tokens: int = 0
    host_ready_s: float = 0.0
    """When the copy to the host is complete."""
    fetching: bool = False
    """Its KV is on the way from the host to the device."""
    parked_until_s: float = 0.0
    stretches: list[Stretch] = field(default_factory=list)
    """Each gave one token a step to this request."""
    age_key: tuple[float, str] = field(init=False)
    _view: RequestView | None = None
    """As of the last change: most requests stand still while others run."""

    def __post_init__(self) -> None:
        self.age_key = self.arrival_s, self.request_id

    @property
    def holds_kv(self) -> bool:
        """KV on the device that could leave it."""
        return self.kv_bytes > 0 and not self.fetching

    @property
    def pending(self) -> int:
        """Tokens to prefill; 0 while decoding."""
        return 0 if self.computed or self.host_tokens else self.input_tokens + self.produced

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

    def swapped(self, host: Freeable, nbytes: int, ready_s: float) -> None:
        """Its KV goes to the host."""
        self.host, self.host_bytes, self.host_tokens, self.host_ready_s = host, nbytes, self.computed, ready_s
        self.computed = 0
        self._view = None

    def fetched(self) -> None:
        """Its KV is back on a device."""
        self.computed = self.host_tokens
        self.host, self.host_bytes, self.host_tokens, self.fetching = None, 0, 0, False
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
                context_tokens=self.computed + self.host_tokens,
                output_tokens=self.output_tokens,
                yields=self.yields,
            )
        return self._view

    def stand(self, *, yields: bool) -> None:
        """Whether others go before it from now on."""
        self.yields, self._view = yields, None
