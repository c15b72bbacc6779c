"""What policies see and what they decide. Plain data; times are seconds on the caller's one clock.

Pure: no I/O, no clock, no randomness. The same policy objects run in the live worker and scheduler and in the
simulator.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol


class Role(Enum):
    """Which phase of requests a worker serves."""

    ANY = "any"
    PREFILL = "prefill"
    """Computes prompts and first tokens, then hands the request and its KV over."""
    DECODE = "decode"

    def serves(self, phase: "Role") -> bool:
        return self is Role.ANY or phase is Role.ANY or self is phase


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
    swap_s_per_token: float = 0.0
    """KV between device and host, either way; 0 if nobody has measured it."""

    @property
    def kv_s_per_token(self) -> float:
        """A token's KV between device and host: unless measured, as many bytes of weights."""
        return self.swap_s_per_token or self.load_s * self.kv_bytes_per_token / self.weight_bytes

    def prefill_s(self, tokens: int) -> float:
        return self.prefill_base_s + self.prefill_s_per_token * tokens

    def step_s(self, requests: int, context_tokens: int) -> float:
        """One decode step of `requests` requests with `context_tokens` tokens of KV together."""
        return self.step_base_s + self.step_s_per_request * requests + self.step_s_per_context_token * context_tokens

    def mixed_s(self, prefill_tokens: int, requests: int, context_tokens: int) -> float:
        """One step of decodes and prompts together, either of which may be none: the weights are read once for both."""
        if not prefill_tokens:
            return self.step_s(requests, context_tokens)
        if not requests:
            return self.prefill_s(prefill_tokens)
        shared_s = min(self.step_base_s, self.prefill_base_s)
        return self.step_s(requests, context_tokens) + self.prefill_s(prefill_tokens) - shared_s

    def slowed(self, factor: float) -> "ModelCosts":
        """Every time, so many times as long."""
        return replace(
            self,
            load_s=self.load_s * factor,
            prefill_base_s=self.prefill_base_s * factor,
            prefill_s_per_token=self.prefill_s_per_token * factor,
            step_base_s=self.step_base_s * factor,
            step_s_per_request=self.step_s_per_request * factor,
            step_s_per_context_token=self.step_s_per_context_token * factor,
            swap_s_per_token=self.swap_s_per_token * factor,
        )


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
    """Tokens whose KV there is."""
    output_tokens: int | None = None
    """How many it will produce in all: an oracle's knowledge, in the simulator only."""
    yields: bool = False
    """Its tenant has had more than his share (`hekaton.policy.fairness`): others go before it."""

    def due_s(self) -> float:
        """When the next token is due."""
        return self.arrival_s + self.ttft_s + self.produced_tokens * self.tbt_s


@dataclass(frozen=True, slots=True)
class Demand:
    """The requests of one model, and what follows from them. It does not change with time, only with the requests."""

    model: str
    requests: tuple[RequestView, ...]
    """The most urgent first; those that yield after all others."""
    urgent: tuple[RequestView, ...]
    """Those that do not yield, or all of them if all do: how urgent the model is, they say."""
    latest_start_s: float
    """If the model runs from then on, every next token of these is in time, the prompts being computed one by one."""
    prefill_tokens: int
    decoding: int
    context_tokens: int
    step_s: float
    """One decode step of all that decode."""

    @classmethod
    def of(cls, model: str, requests: Iterable[RequestView], costs: ModelCosts) -> "Demand":
        """Of at least one request."""
        ordered = tuple(sorted(requests, key=lambda one: (one.yields, one.due_s(), one.arrival_s, one.request_id)))
        urgent = tuple(one for one in ordered if not one.yields) or ordered
        decoding = [one for one in ordered if not one.pending_tokens]
        context_tokens = sum(one.context_tokens for one in decoding)
        step_s = costs.step_s(len(decoding), context_tokens)
        first_s = min((one.due_s() for one in urgent if not one.pending_tokens), default=float("inf"))
        latest_s, prefills_s = first_s - step_s, 0.0
        for one in urgent:
            if one.pending_tokens:
                prefills_s += costs.prefill_s(one.pending_tokens)
                latest_s = min(latest_s, one.due_s() - prefills_s)
        prefill_tokens = sum(one.pending_tokens for one in ordered)
        return cls(model, ordered, urgent, latest_s, prefill_tokens, len(decoding), context_tokens, step_s)

    @property
    def yields(self) -> bool:
        """All its requests do."""
        return self.urgent[0].yields


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
    demands: Mapping[str, Demand]
    """By model, of those with requests that can run."""
    costs: Mapping[str, ModelCosts]
    device_memory_bytes: int
    free_bytes: int
    kv_bytes: Mapping[str, int]
    """KV on the device, by model."""
    role: Role = Role.ANY


@dataclass(frozen=True, slots=True)
class Turn:
    """Run `model` for `budget_s` from its first step, loading `prefetch` meanwhile. `evict` goes first, in order."""

    model: str
    request_ids: tuple[str, ...]
    budget_s: float
    evict: tuple[str, ...] = ()
    """Models whose weights leave the device, and whose KV leaves it if that is called for."""
    prefetch: tuple[str, ...] = ()
    release_kv: tuple[str, ...] = ()
    """Models whose KV leaves the device, to come back later or to be computed again."""


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
    role: Role = Role.ANY
    prefill_tokens: Mapping[str, int] | None = None
    """Tokens of prompts that wait to be computed, by model; None if that is not known."""


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
    phase: Role = Role.ANY
    """PREFILL or DECODE where workers have roles: a request is placed once for each."""

    def bytes_needed(self) -> int:
        """What a worker, empty, must have to hold it to its end."""
        return self.weight_bytes + self.kv_bytes_per_token * (self.prompt_tokens + self.max_tokens)


@dataclass(frozen=True, slots=True)
class Move:
    """Every request of `model` leaves one worker for another."""

    model: str
    from_worker_id: str
    to_worker_id: str


class Placement(Protocol):
    """Which worker gets this request?"""

    def place(self, request: PlacementRequest, workers: Sequence[PoolWorker]) -> str | None:
        """A worker's id, or None if none can take it now."""

    def rebalance(self, workers: Sequence[PoolWorker]) -> tuple[Move, ...]:
        """Asked once a second. Nothing moves unless a policy says so."""
        return ()


def able(request: PlacementRequest, workers: Iterable[PoolWorker]) -> list[PoolWorker]:
    """The workers that may be given the request."""
    needed = request.bytes_needed()
    return [
        one
        for one in workers
        if not one.draining and needed <= one.device_memory_bytes and one.role.serves(request.phase)
    ]
