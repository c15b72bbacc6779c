"""Costs of one model on one device, estimated at first and measured from then on."""

from hekaton.facts import ModelSpec
from hekaton.policy.types import ModelCosts

WEIGHT = 0.2
"""Of the newest observation."""
GUESS_BYTES_PER_S = 4e9
"""Of a copy or a step, before anything was seen."""


class Meter:
    """Exponential means of what was observed. Times in seconds."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        guess_s = spec.weight_bytes / GUESS_BYTES_PER_S
        self._load_s = self._step_s = guess_s
        self._prefill_s_per_token = guess_s / 16

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
        return ModelCosts(
            weight_bytes=self._spec.weight_bytes,
            kv_bytes_per_token=self._spec.kv_bytes_per_token,
            load_s=self._load_s,
            prefill_base_s=self._step_s,
            prefill_s_per_token=self._prefill_s_per_token,
            step_base_s=self._step_s,
            step_s_per_request=0.0,
            step_s_per_context_token=0.0,
        )
