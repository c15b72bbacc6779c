"""Costs that are guessed, compared, put together."""

from collections.abc import Collection
from dataclasses import astuple, dataclass, fields, replace

from hekaton.policy.types import ModelCosts

GUESS_BYTES_PER_S = 4e9
"""Of a copy or a step, before anything was seen."""
NOTICEABLE = 0.05
"""A change by a smaller share is none."""


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What a model costs on one kind of device, as measured there."""

    device: str
    device_memory_bytes: int
    """Of the worker that has measured."""
    costs: ModelCosts


def guessed_costs(weight_bytes: int, kv_bytes_per_token: int) -> ModelCosts:
    """Of a model that nobody has run yet."""
    pass_s = weight_bytes / GUESS_BYTES_PER_S
    return ModelCosts(
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token,
        load_s=pass_s,
        prefill_base_s=pass_s,
        prefill_s_per_token=pass_s / 16,
        step_base_s=pass_s,
        step_s_per_request=0.0,
        step_s_per_context_token=0.0,
    )


def scaled_costs(known: ModelCosts, weight_bytes: int, kv_bytes_per_token: int) -> ModelCosts:
    """Of a model that nobody has run yet, like another one but for its size."""
    slower = known.slowed(weight_bytes / known.weight_bytes)
    swap_s = known.swap_s_per_token * kv_bytes_per_token / max(known.kv_bytes_per_token, 1)
    return replace(slower, weight_bytes=weight_bytes, kv_bytes_per_token=kv_bytes_per_token, swap_s_per_token=swap_s)


def mean_costs(measured: Collection[ModelCosts]) -> ModelCosts:
    """Of at least one; sizes are those of the first."""
    first = next(iter(measured))
    names = [field.name for field in fields(ModelCosts)][2:]
    means = {name: sum(getattr(one, name) for one in measured) / len(measured) for name in names}
    if not all(one.swap_s_per_token for one in measured):
        means["swap_s_per_token"] = 0.0
    return ModelCosts(first.weight_bytes, first.kv_bytes_per_token, **means)


def differ(one: ModelCosts, other: ModelCosts | None) -> bool:
    """Noticeably."""
    if other is None:
        return True
    pairs = zip(astuple(one), astuple(other), strict=True)
    return any(abs(now - before) > NOTICEABLE * abs(before) for now, before in pairs)
