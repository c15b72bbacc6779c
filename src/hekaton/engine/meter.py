"""Costs of one model on one device, estimated at first and measured from then on."""

from dataclasses import replace

from hekaton.facts import ModelSpec
from hekaton.policy.costs import guessed_costs
from hekaton.policy.types import ModelCosts

WEIGHT = 0.2
"""Of the newest observation."""


class Meter:
    """Exponential means of what was observed. Times in seconds."""

    def __init__(self, spec: ModelSpec) -> None:
        self._guess = guessed_costs(spec.weight_bytes, spec.kv_bytes_per_token)
        self._load_s, self._step_s = self._guess.load_s, self._guess.step_base_s
        self._prefill_s_per_token = self._guess.prefill_s_per_token

    def loaded(self, duration_s: float) -> None:
        self._load_s += WEIGHT * (duration_s - self._load_s)

    def stepped(self, tokens: int, requests: int, duration_s: float) -> None:
        """A step that fed `tokens` tokens of `requests` requests: a decode step if they are as many."""
        if tokens == requests:
            self._step_s += WEIGHT * (duration_s - self._step_s)
        else:
            per_token_s = max(duration_s - self._step_s, 0.0) / (tokens - requests + 1)
            self._prefill_s_per_token += WEIGHT * (per_token_s - self._prefill_s_per_token)

    def costs(self) -> ModelCosts:
        return replace(
            self._guess,
            load_s=self._load_s,
            prefill_base_s=self._step_s,
            prefill_s_per_token=self._prefill_s_per_token,
            step_base_s=self._step_s,
        )
