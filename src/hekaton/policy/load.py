"""What the active models of a worker ask of it, as far as a scheduler can tell from counts of requests."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hekaton.policy.types import ModelCosts

CONTEXT_TOKENS = 600
"""Of a typical request, prompt and half its output."""
OUTPUT_TOKENS = 250

BATCH = 64
"""Requests that one step serves at most."""

CROWDED = 3.0
"""What each part of the device counts by which a model's requests need more KV than there can be: they wait for it."""

COPY_WEIGHT = 0.5
"""Of the bytes that cannot stay, the part that is copied in every TTFT: nobody needs all of them that often."""

SERIAL = 5.0
"""How fast copies and steps cease to overlap as two models no longer fit beside each other."""

CostsOf = Callable[[str], ModelCosts]


@dataclass(frozen=True, slots=True)
class Load:
    """Of one worker."""

    step_s: float = 0.0
    """One step of each active model, with the prefills that fall to it."""
    bundles_bytes: float = 0.0
    """Weights and KV together; a bundle is those of one model."""
    largest_bytes: float = 0.0
    second_bytes: float = 0.0
    """The two largest bundles."""
    copy_s_per_byte: float = 0.0

    def with_model(self, costs: ModelCosts, requests: int) -> "Load":
        """And so many requests of one more model."""
        bundle = costs.weight_bytes + requests * _kv_bytes(costs)
        _, second, largest = sorted((self.largest_bytes, self.second_bytes, bundle))
        return Load(
            self.step_s + _batches(requests) * costs.step_base_s + requests * _request_s(costs),
            self.bundles_bytes + bundle,
            largest,
            second,
            costs.load_s / costs.weight_bytes,
        )

    def with_request(self, costs: ModelCosts, before: int) -> "Load":
        """And one more request of a model that has so many already. The largest bundles are left as they are."""
        more_batches = _batches(before + 1) - _batches(before)
        step_s = self.step_s + more_batches * costs.step_base_s + _request_s(costs)
        bundles_bytes = self.bundles_bytes + _kv_bytes(costs)
        return Load(step_s, bundles_bytes, self.largest_bytes, self.second_bytes, self.copy_s_per_byte)

    def share(self, memory_bytes: int, ttft_s: float, tbt_s: float, copy_weight: float = COPY_WEIGHT) -> float:
        """How much of the worker is taken; at 1 it has no time left.

        Steps fill a TBT. Copies fill a TTFT, in which everything must come once that cannot stay on the device beside
        what runs and what is loaded next. They go on side by side, so the fuller one counts, and the sum a little; but
        where the two largest bundles do not fit beside each other, they must wait. Where the largest does not even fit
        alone, its requests wait for each other.
        """
        steps = self.step_s / tbt_s
        if self.bundles_bytes <= memory_bytes:
            return 1.1 * steps
        stays_bytes = max(memory_bytes - self.largest_bytes - self.second_bytes, 0.0)
        copies = copy_weight * (self.bundles_bytes - stays_bytes) * self.copy_s_per_byte / ttft_s
        excess = max(self.largest_bytes + self.second_bytes - memory_bytes, 0.0) / memory_bytes
        crowded = CROWDED * max(self.largest_bytes - memory_bytes, 0.0) / memory_bytes
        serial = min(steps, copies) * min(SERIAL * excess, 1.0)
        return max(steps, copies) + 0.1 * (steps + copies) + serial + crowded


def load_of(requests: Mapping[str, int], costs_of: CostsOf) -> Load:
    """Of live requests, counted by model."""
    step_s, bundles, largest, second, copy_s_per_byte = 0.0, 0.0, 0.0, 0.0, 0.0
    for model, count in requests.items():
        costs = costs_of(model)
        bundle = costs.weight_bytes + count * _kv_bytes(costs)
        step_s += _batches(count) * costs.step_base_s + count * _request_s(costs)
        bundles += bundle
        largest, second = (bundle, largest) if bundle > largest else (largest, max(second, bundle))
        copy_s_per_byte = costs.load_s / costs.weight_bytes
    return Load(step_s, bundles, largest, second, copy_s_per_byte)


def _batches(requests: int) -> float:
    """How many a model with so many requests makes for each token: one while they fit into a batch."""
    return max(requests / BATCH, 1.0)


def _kv_bytes(costs: ModelCosts) -> float:
    return CONTEXT_TOKENS * costs.kv_bytes_per_token


def _request_s(costs: ModelCosts) -> float:
    """What one request adds to each step of its model, its prefill spread over its tokens."""
    step_s = costs.step_s_per_request + costs.step_s_per_context_token * CONTEXT_TOKENS
    return step_s + costs.prefill_s(CONTEXT_TOKENS) / OUTPUT_TOKENS
