"""What policies see and what they decide. Plain data; times are seconds on the caller's one clock.

Pure: no I/O, no clock, no randomness. The same policy objects run in the live worker and scheduler and in the
simulator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """Estimated costs of a model on one kind of device."""

    weight_bytes: int
    kv_bytes_per_token: int
    load_s: float
    """Host cache → device, nothing else on the bus."""
    prefill_base_s: float
    prefill_s_per_token: float
    step_base_s: float
    step_s_per_request: float
    step_s_per_context_token: float

    def prefill_s(self, tokens: int) -> float:
        return self.prefill_base_s + self.prefill_s_per_token * tokens

    def step_s(self, requests: int, context_tokens: int) -> float:
        """One decode step of `requests` requests with `context_tokens` tokens of KV together."""
        return self.step_base_s + self.step_s_per_request * requests + self.step_s_per_context_token * context_tokens


@dataclass(frozen=True, slots=True)
class RequestView:
    """A live request as its worker sees it."""

    request_id: str
    model: str
    arrival_s: float
    """Acceptance, on the caller's clock."""
    ttft_s: float
    tbt_s: float
    pending_tokens: int
    """Tokens to prefill before the next one can be sampled; 0 while decoding."""
    produced_tokens: int
    context_tokens: int

    def due_s(self) -> float:
        """When the next token is due."""
        return self.arrival_s + self.ttft_s + self.produced_tokens * self.tbt_s


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker, at the moment of a decision."""

    running: str | None
    """The model of the current turn, if it is on the device."""
    turn_started_s: float
    """When its first step began; now if that is still to come."""
    resident: frozenset[str]
    loading: frozenset[str]
    ready: frozenset[str]
    """Models whose host image is at hand: only these can be loaded."""
    requests: tuple[RequestView, ...]
    costs: Mapping[str, ModelCosts]
    device_memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Run `model` for `budget_s` from its first step, loading `prefetch` meanwhile. `evict` goes first, in order."""

    model: str
    request_ids: tuple[str, ...]
    budget_s: float
    evict: tuple[str, ...] = ()
    prefetch: tuple[str, ...] = ()


class TurnPolicy(Protocol):
    """What does this worker run next?

    Called at events only (arrival, end of a request, end of a load, KV exhausted, end of a turn), never per step.
    """

    def next_turn(self, view: WorkerView, now_s: float) -> Turn | None:
        """The turn to run from now on, which may continue the current one; None if there is nothing to run."""


@dataclass(frozen=True, slots=True)
class PoolWorker:
    """A worker as the scheduler sees it."""

    worker_id: str
    device_memory_bytes: int
    resident: frozenset[str]
    loading: frozenset[str]
    requests: Mapping[str, int]
    """Live requests, by model."""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    request_id: str
    model: str
    prompt_tokens: int
    max_tokens: int
    weight_bytes: int
    kv_bytes_per_token: int
    ttft_s: float
    tbt_s: float


class Placement(Protocol):
    """Which worker gets this request?"""

    def place(self, request: PlacementRequest, workers: tuple[PoolWorker, ...]) -> str | None:
        """A worker's id, or None if none can take it now."""
