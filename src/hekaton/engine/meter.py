"""Costs of one model on one device: guessed at first, or known from before, and measured from then on."""

from dataclasses import replace

from hekaton.facts import ModelSpec
from hekaton.policy.costs import guessed_costs
from hekaton.policy.types import ModelCosts

WEIGHT = 0.2
"""Of the newest observation."""
OUTLIER = 4.0
"""An observation that is so many times the estimate counts as no more than that: something else ran meanwhile."""
LEAST_S = 1e-6
"""An estimate below grows from here."""


class Estimate:
    """A guess until something was observed, then an exponential mean that outliers hardly move. In seconds."""

    def __init__(self, guess_s: float, observed: bool) -> None:
        self.value_s = guess_s
        self.observed = observed

    def observe(self, seconds: float) -> None:
        if not self.observed:
            self.observed, self.value_s = True, seconds
            return
        bounded_s = min(seconds, max(OUTLIER * self.value_s, LEAST_S))
        self.value_s += WEIGHT * (bounded_s - self.value_s)


class Meter:
    """What was observed of a model's loads and steps.

    What a step takes more for each request and each token of context is as `known` says, or nothing; the rest follows
    what is observed.
    """

    def __init__(self, spec: ModelSpec, known: ModelCosts | None = None) -> None:
        self._spec = spec
        self._know(known or guessed_costs(spec.weight_bytes, spec.kv_bytes_per_token), known is not None)

    def learn(self, costs: ModelCosts) -> None:
        """They were measured on this device, one by one."""
        self._know(costs, True)

    def loaded(self, duration_s: float) -> None:
        self._load.observe(duration_s)

    def stepped(self, tokens: int, requests: int, duration_s: float, context_tokens: int = 0) -> None:
        """A step that fed `tokens` tokens of `requests` requests: a decode step if they are as many.

        `context_tokens` are the tokens of KV that a decode step saw.
        """
        base = self._base
        if tokens == requests:
            self._step.observe(max(duration_s - (base.step_s(requests, context_tokens) - base.step_base_s), LEAST_S))
        elif self._step.observed:
            self._prefill_token.observe(max(duration_s - self._prefill_base_s, 0.0) / (tokens - requests + 1))
        else:
            self._prefill_token.observe(duration_s / tokens)

    def costs(self) -> ModelCosts:
        return replace(
            self._base,
            load_s=self._load.value_s,
            prefill_base_s=self._prefill_base_s,
            prefill_s_per_token=self._prefill_token.value_s,
            step_base_s=self._step.value_s,
        )

    @property
    def _prefill_base_s(self) -> float:
        """It follows the step's: both read all weights once."""
        return max(self._step.value_s + self._prefill_extra_s, LEAST_S)

    def _know(self, costs: ModelCosts, observed: bool) -> None:
        self.measured = observed
        """In all its parts, here or on another device of this kind."""
        self._base = costs
        self._load = Estimate(costs.load_s, observed)
        self._step = Estimate(costs.step_base_s, observed)
        self._prefill_extra_s = costs.prefill_base_s - costs.step_base_s
        self._prefill_token = Estimate(costs.prefill_s_per_token, observed)
