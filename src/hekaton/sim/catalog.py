"""The market of models by name, and the hardware that they need."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hekaton.engine.emulated import BLOCK_TOKENS
from hekaton.errors import InvalidArgument, ModelTooLarge
from hekaton.policy.types import ModelCosts
from hekaton.sim.classes import ServedClass, device_facts, served

MIX = (*["qwen2.5-7b"] * 6, *["yi-1.5-9b"] * 2, *["llama-2-13b"] * 2)
"""The class of model `mNN` is that of NN mod 10, as in the artifact's runs."""

_NAME = re.compile(r"m(\d+)")

Catalog = Mapping[str, ServedClass]
"""Classes by model name."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What one worker has: a device, or a group of them that serve tensor-parallel models and count as one."""

    devices: int
    memory_bytes: int
    bandwidth_bytes_per_s: float
    costs: Mapping[str, ModelCosts]
    """By model name."""

    def workers(self, gpus: int) -> int:
        """How many such workers `gpus` devices make. Raises InvalidArgument unless it comes out even, and not at 0."""
        if gpus < 1 or gpus % self.devices:
            raise InvalidArgument(f"{gpus} GPUs are no whole number of workers of {self.devices}")
        return gpus // self.devices


def names(count: int) -> list[str]:
    """m00, m01 and so on. Raises InvalidArgument unless there is at least one."""
    if count < 1:
        raise InvalidArgument(f"a market has at least one model, not {count}")
    return [f"m{index:02d}" for index in range(count)]


def mix(models: Iterable[str]) -> dict[str, ServedClass]:
    """The artifact's classes of models named as `names` does. Raises InvalidArgument for another name."""
    by_class = {name: served(name) for name in MIX}
    return {model: by_class[_mix_class(model)] for model in models}


def hardware(
    models: Iterable[str],
    catalog: Catalog | None,
    device: str,
    device_memory_bytes: int | None,
    bandwidth_bytes_per_s: float,
) -> Hardware:
    """For models of the catalog, or of the artifact's mix if that is None; memory and bandwidth are one device's.

    Raises InvalidArgument for what is unknown or does not go together, and ModelTooLarge.
    """
    if not bandwidth_bytes_per_s > 0:
        raise InvalidArgument(f"bandwidth must be positive, not {bandwidth_bytes_per_s / 1e9:g} GB/s")
    classes = _classes(sorted(set(models)), catalog)
    devices = _group(classes)
    memory_bytes = devices * (device_memory_bytes or device_facts(device).usable_bytes)
    bandwidth = devices * bandwidth_bytes_per_s
    by_class = {served: served.costs(device, bandwidth) for served in set(classes.values())}
    costs = {model: by_class[served] for model, served in classes.items()}
    for model, cost in costs.items():
        needed = cost.weight_bytes + cost.kv_bytes_per_token * BLOCK_TOKENS
        if needed > memory_bytes:
            raise ModelTooLarge(
                f"model {model} needs {needed / 1e9:.1f} GB with one block of KV; "
                f"the device {device} has {memory_bytes / 1e9:.1f} GB" + (f" ({devices} of them)" * (devices > 1))
            )
    return Hardware(devices, memory_bytes, bandwidth, costs)


def _classes(models: list[str], catalog: Catalog | None) -> Catalog:
    if catalog is None:
        return mix(models)
    unknown = next((model for model in models if model not in catalog), None)
    if unknown is not None:
        raise InvalidArgument(f"model {unknown!r} is not in the catalog")
    return {model: catalog[model] for model in models}


def _group(classes: Catalog) -> int:
    degrees = sorted({served.tensor_parallel for served in classes.values()})
    if len(degrees) != 1:
        raise InvalidArgument(f"models of tensor-parallel degrees {degrees} need a pool each: run them apart")
    return degrees[0]


def _mix_class(model: str) -> str:
    known = _NAME.fullmatch(model)
    if known is None:
        raise InvalidArgument(f"model {model!r} has no class: name models m00, m01, …, or give a catalog")
    return MIX[int(known[1]) % len(MIX)]
