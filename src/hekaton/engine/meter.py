"""Costs of one model on one device, estimated at first and measured from then on."""

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

    def __init__(self, guess_s: float) -> None:
        self.value_s = guess_s
        self.observed = False

    def observe(self, seconds: float) -> None:
        if not self.observed:
            self.observed, self.value_s = True, seconds
            return
        bounded_s = min(seconds, max(OUTLIER * self.value_s, LEAST_S))
        self.value_s += WEIGHT * (bounded_s - self.value_s)


class Meter:
    """What was observed of a model's loads and steps."""

    def __init__(self, spec: ModelSpec) -> None:
        self._guess = guessed_costs(spec.weight_bytes, spec.kv_bytes_per_token)
        self._load = Estimate(self._guess.load_s)
        self._step = Estimate(self._guess.step_base_s)
        self._prefill_token = Estimate(self._guess.prefill_s_per_token)

    def loaded(self, duration_s: float) -> None:
        self._load.observe(duration_s)

    def stepped(self, tokens: int, requests: int, duration_s: float) -> None:
        """A step that fed `tokens` tokens of `requests` requests: a decode step if they are as many."""
        if tokens == requests:
            self._step.observe(duration_s)
        elif self._step.observed:
            self._prefill_token.observe(max(duration_s - self._step.value_s, 0.0) / (tokens - requests + 1))
        else:
            self._prefill_token.observe(duration_s / tokens)

    def costs(self) -> ModelCosts:
        return replace(
            self._guess,
            load_s=self._load.value_s,
            prefill_base_s=self._step.value_s,
            prefill_s_per_token=self._prefill_token.value_s,
            step_base_s=self._step.value_s,
        )
