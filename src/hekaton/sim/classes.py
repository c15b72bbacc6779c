"""Classes of models: what those of one class have in common, and what they cost on a device.

The 70 B class on four devices has no public profile. Its stand-in is OPT-66B on four A100-80G, by the coefficients of
DistServe (OSDI'24, github.com/LLMServe/DistServe, simdistserve/estimators/profile_data), in milliseconds:

    prefill = 29.44 + 0.1514 · tokens + 8.3e-6 · tokens²
    step    = 30.76 + 0.0633 · requests + 4.52e-4 · tokens of KV

The squared term is taken along the chord from 0 to 1,024 tokens. Other devices are reached by roofline: the time per
prompt token by the ratio of dense bf16 compute, all else by the ratio of memory bandwidth; other models by the ratio of
weight bytes. Nobody has measured this: it is an assumption.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hekaton.engine.profiles import CLASSES, DEVICES, REFERENCE_CLASS, Fit, ModelClass, profile
from hekaton.errors import InvalidArgument
from hekaton.policy.types import ModelCosts

STAND_IN = "opt-66b-tp4"
STAND_IN_CLASS = ModelClass(132_000_000_000, 2_359_296)
STAND_IN_TENSOR_PARALLEL = 4
_ON_A100 = Fit(29.44, 151.4 + 8.3e-3 * 1024, 30.76, 63.3, 452.0)


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """Published figures of one device."""

    usable_bytes: int
    """Nine tenths of its memory; the rest is left to activations and the framework."""
    memory_tb_per_s: float
    dense_bf16_tflops: float


DEVICE_FACTS: Mapping[str, DeviceFacts] = MappingProxyType(
    {
        "a10": DeviceFacts(21_600_000_000, 0.600, 125),
        "a100": DeviceFacts(72_000_000_000, 2.039, 312),
        "h100": DeviceFacts(72_000_000_000, 3.350, 989),
        "h800": DeviceFacts(72_000_000_000, 3.350, 989),
        "h20": DeviceFacts(86_400_000_000, 4.000, 148),
    }
)


@dataclass(frozen=True, slots=True)
class ServedClass:
    """Models of one size and shape."""

    weight_bytes: int
    kv_bytes_per_token: int
    profile: str = REFERENCE_CLASS
    """A class of `hekaton.engine.profiles`, or STAND_IN: its times are scaled by the ratio of weight bytes."""
    tensor_parallel: int = 1
    """Devices that serve it together. Weights, KV and times are those of the group."""
    fit: Fit | None = None
    """Times of its own, for whatever device is simulated."""

    def costs(self, device: str, bandwidth_bytes_per_s: float) -> ModelCosts:
        """On a device, or a group of them, loaded with so many bytes a second. Raises InvalidArgument."""
        fit = self.fit or _profile(device, self.profile).scaled(
            self.weight_bytes / _profiled(self.profile).weight_bytes
        )
        return fit.costs(self.weight_bytes, self.kv_bytes_per_token, bandwidth_bytes_per_s)


def served(profile_name: str) -> ServedClass:
    """The class of a profile itself. Raises InvalidArgument for an unknown one."""
    known = _profiled(profile_name)
    devices = STAND_IN_TENSOR_PARALLEL if profile_name == STAND_IN else 1
    return ServedClass(known.weight_bytes, known.kv_bytes_per_token, profile_name, devices)


def device_facts(device: str) -> DeviceFacts:
    """Raises InvalidArgument for an unknown device."""
    if device not in DEVICE_FACTS:
        raise InvalidArgument(f"no profile of device {device!r}; known are {', '.join(sorted(DEVICES))}")
    return DEVICE_FACTS[device]


def _profiled(name: str) -> ModelClass:
    known = {**CLASSES, STAND_IN: STAND_IN_CLASS}
    if name not in known:
        raise InvalidArgument(f"unknown profile {name!r}; known are {', '.join(sorted(known))}")
    return known[name]


def _profile(device: str, name: str) -> Fit:
    if name != STAND_IN:
        return profile(device, name)
    here, there = device_facts(device), DEVICE_FACTS["a100"]
    by_memory = _ON_A100.scaled(there.memory_tb_per_s / here.memory_tb_per_s)
    return Fit(
        prefill_base_ms=by_memory.prefill_base_ms,
        prefill_us_per_token=_ON_A100.prefill_us_per_token * there.dense_bf16_tflops / here.dense_bf16_tflops,
        step_base_ms=by_memory.step_base_ms,
        step_us_per_request=by_memory.step_us_per_request,
        step_ns_per_context_token=by_memory.step_ns_per_context_token,
    )
