"""A request while it is on a worker, and the engine's memory as it concerns requests."""

from dataclasses import dataclass

from hekaton.engine.interface import Engine
from hekaton.engine.messages import Submit
from hekaton.facts import FinishReason, Sampling, Slo
from hekaton.policy.types import RequestView


@dataclass(slots=True)
class LiveRequest:
    """What the turn loop knows of a live request. Times are on the loop's clock."""

    request_id: str
    epoch: int
    model: str
    prompt: tuple[int, ...]
    produced: list[int]
    sampling: Sampling
    slo: Slo
    arrival_s: float
    limit: int
    """Most tokens it may produce: what was asked for, within the model's context."""
    computed: int = 0
    """Tokens whose KV is on the device."""
    kv_tokens: int = 0
    """Tokens that KV has been made room for."""
    preemptions: int = 0
    started: bool = False
    parked_until_s: float = 0.0
    """Not runnable before then, for want of memory; a request that ends unparks all."""

    @classmethod
    def of(cls, submit: Submit, max_context_tokens: int, now_s: float) -> "LiveRequest":
        return cls(
            request_id=submit.request_id,
            epoch=submit.epoch,
            model=submit.model,
            prompt=submit.prompt,
            produced=list(submit.produced),
            sampling=submit.sampling,
            slo=submit.slo,
            arrival_s=now_s - submit.age_s,
            limit=min(submit.sampling.max_tokens, max_context_tokens - len(submit.prompt)),
        )

    @property
    def age_key(self) -> tuple[float, str]:
        """Sorts the oldest first."""
        return self.arrival_s, self.request_id

    @property
    def total(self) -> int:
        """Tokens known so far, prompt and output."""
        return len(self.prompt) + len(self.produced)

    @property
    def pending(self) -> int:
        """Known tokens whose KV is not there yet; one of them while decoding."""
        return self.total - self.computed

    @property
    def decoding(self) -> bool:
        return self.computed > 0 and self.pending == 1

    @property
    def holds_kv(self) -> bool:
        return self.kv_tokens > 0

    @property
    def finish(self) -> FinishReason | None:
        """Why the output is complete, if it is."""
        if self.produced and self.produced[-1] in self.sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.produced) >= self.limit else None

    @property
    def ttft_s(self) -> float:
        return self.slo.ttft_s

    def due_s(self) -> float:
        """When the next token is due."""
        return self.arrival_s + self.slo.ttft_s + len(self.produced) * self.slo.tbt_s

    def tokens(self, count: int) -> tuple[int, ...]:
        """The next `count` tokens to feed."""
        start, end, prompt = self.computed, self.computed + count, len(self.prompt)
        if end <= prompt:
            return self.prompt[start:end]
        return self.prompt[start:] + tuple(self.produced[max(start - prompt, 0) : end - prompt])

    def view(self) -> RequestView:
        return RequestView(
            request_id=self.request_id,
            model=self.model,
            arrival_s=self.arrival_s,
            ttft_s=self.slo.ttft_s,
            tbt_s=self.slo.tbt_s,
            pending_tokens=0 if self.decoding else self.pending,
            produced_tokens=len(self.produced),
            context_tokens=self.computed,
        )


class EngineMemory:
    """An engine's memory, for `Room`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def present(self) -> frozenset[str]:
        return self._engine.resident() | self._engine.loading()

    def begin_load(self, model: str, now_s: float) -> bool:
        return self._engine.begin_load(model)

    def evict(self, model: str, now_s: float) -> None:
        self._engine.evict(model)

    def grow_kv(self, request: LiveRequest, tokens: int, now_s: float) -> bool:
        if not self._engine.grow_kv(request.request_id, request.model, tokens):
            return False
        request.kv_tokens = max(request.kv_tokens, tokens)
        return True

    def drop_kv(self, request: LiveRequest, now_s: float) -> None:
        """Frees a request's KV; its tokens are computed again when it runs next."""
        self._engine.drop_kv(request.request_id)
        request.computed = request.kv_tokens = 0
