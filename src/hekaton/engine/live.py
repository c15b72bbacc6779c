"""A request while it is on a worker."""

from dataclasses import dataclass

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
    """Tokens that KV has been made room for, on the device."""
    host_tokens: int = 0
    """Tokens whose KV is in host memory, or on its way from there."""
    fetching: bool = False
    """Its KV is on its way from the host to the device."""
    tenant: str = ""
    yields: bool = False
    """Its tenant has had more than his share."""
    suspect: bool = False
    """An engine died in a step with it: it runs alone."""
    steps_alone: int = 0
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
            suspect=submit.suspect,
            tenant=submit.tenant,
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
        """Known tokens whose KV there is nowhere yet; one of them while decoding."""
        return self.total - self.context

    @property
    def context(self) -> int:
        """Tokens whose KV there is, on the device or on the host."""
        return self.computed + self.host_tokens

    @property
    def decoding(self) -> bool:
        return self.context > 0 and self.pending == 1

    @property
    def holds_kv(self) -> bool:
        """KV on the device that could leave it."""
        return self.kv_tokens > 0 and not self.fetching

    @property
    def finish(self) -> FinishReason | None:
        """Why the output is complete, if it is."""
        ended = len(self.produced) > self.sampling.min_tokens and self.produced[-1] in self.sampling.stop_token_ids
        if ended:
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

    def known(self, count: int) -> tuple[int, ...]:
        """Its first `count` tokens, of prompt and output."""
        return (self.prompt + tuple(self.produced))[:count]

    def view(self) -> RequestView:
        return RequestView(
            request_id=self.request_id,
            model=self.model,
            arrival_s=self.arrival_s,
            ttft_s=self.slo.ttft_s,
            tbt_s=self.slo.tbt_s,
            pending_tokens=0 if self.decoding else self.pending,
            produced_tokens=len(self.produced),
            context_tokens=self.context,
            yields=self.yields,
        )

    def stand(self, *, yields: bool) -> None:
        """Whether others go before it from now on."""
        self.yields = yields

    def swapped(self) -> None:
        """Its KV goes to the host."""
        self.host_tokens, self.computed, self.kv_tokens = self.computed, 0, 0

    def fetched(self) -> None:
        """Its KV is back on the device."""
        self.computed, self.host_tokens, self.fetching = self.host_tokens, 0, False

    def start_over(self) -> None:
        """Its KV is gone: its tokens are computed again when it runs next."""
        self.computed = self.kv_tokens = self.host_tokens = 0
        self.fetching = False
