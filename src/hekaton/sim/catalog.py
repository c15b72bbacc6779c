"""The market of models, and what each costs on a device."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from hekaton.engine.emulated import BLOCK_TOKENS
from hekaton.engine.profiles import emulated_costs, emulated_spec
from hekaton.errors import InvalidArgument, ModelTooLarge
from hekaton.policy.types import ModelCosts

MIX = (*["qwen2.5-7b"] * 6, *["yi-1.5-9b"] * 2, *["llama-2-13b"] * 2)
"""The class of model `mNN` is that of NN mod 10, as in the artifact's runs."""

USABLE_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "a10": 21_600_000_000,
        "a100": 72_000_000_000,
        "h100": 72_000_000_000,
        "h800": 72_000_000_000,
        "h20": 86_400_000_000,
    }
)
"""Nine tenths of a device's memory; the rest is left to activations and the framework."""

_NAME = re.compile(r"m(\d+)")


def names(count: int) -> list[str]:
    """m00, m01 and so on. Raises InvalidArgument unless there is at least one."""
    if count < 1:
        raise InvalidArgument(f"a market has at least one model, not {count}")
    return [f"m{index:02d}" for index in range(count)]


def costs_of(
    models: Iterable[str], device: str, device_memory_bytes: int, bandwidth_bytes_per_s: float
) -> dict[str, ModelCosts]:
    """Costs by model name. Raises InvalidArgument (name, device, bandwidth) and ModelTooLarge."""
    if not bandwidth_bytes_per_s > 0:
        raise InvalidArgument(f"bandwidth must be positive, not {bandwidth_bytes_per_s / 1e9:g} GB/s")
    by_class = {name: _class_costs(name, device, bandwidth_bytes_per_s) for name in sorted(set(MIX))}
    costs = {model: by_class[_class_of(model)] for model in sorted(set(models))}
    for model, cost in costs.items():
        needed = cost.weight_bytes + cost.kv_bytes_per_token * BLOCK_TOKENS
        if needed > device_memory_bytes:
            raise ModelTooLarge(
                f"model {model} needs {needed / 1e9:.1f} GB with one block of KV; "
                f"the device {device} has {device_memory_bytes / 1e9:.1f} GB"
            )
    return costs


def _class_of(model: str) -> str:
    known = _NAME.fullmatch(model)
    if known is None:
        raise InvalidArgument(f"model {model!r} has no class: name models m00, m01, …")
    return MIX[int(known[1]) % len(MIX)]


def _class_costs(name: str, device: str, bandwidth_bytes_per_s: float) -> ModelCosts:
    return emulated_costs(device, emulated_spec(name), name, bandwidth_bytes_per_s)
