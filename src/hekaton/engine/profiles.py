"""What a model costs on a device: linear fits to measured times, for the emulated engine.

Source: the execution profiles in the public SOSP'25 Aegaeon artifact, Zenodo 10.5281/zenodo.16673199, Apache-2.0, each
the median of twelve runs on one GPU. Least squares of the relative error:

    prefill_s = base + per_token · tokens
    step_s    = base + per_request · batch + per_context · tokens of KV

fitted where `input_tokens × batch_size ≤ 4000`, beyond which the profiled engine had begun to preempt; the clean h800
sets of qwen2_5_7b and baichuan2_13b_chat (which stands for the 13 B class there) are used whole. The comments give the
median and largest relative error of prefill and of step, in per cent. Where noise made `per_context` negative
(marked *) it is the h800's, scaled by the ratio of the step bases, and the rest was fitted around it. The a10 was
profiled with the 7 B class only: other classes there are that fit scaled by weight bytes, as is any other model. In a
checkout, `python -m bench.fit_profiles` fits all of them anew.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from types import MappingProxyType

from hekaton.errors import InvalidArgument
from hekaton.facts import ModelSpec
from hekaton.policy.types import ModelCosts

SOURCE_PREFIX = "emulated:"
REFERENCE_CLASS = "qwen2.5-7b"


@dataclass(frozen=True, slots=True)
class ModelClass:
    """bf16 weights and the KV of one token."""

    weight_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients: milliseconds a call, microseconds a token or request, nanoseconds a token of KV."""

    prefill_base_ms: float
    prefill_us_per_token: float
    step_base_ms: float
    step_us_per_request: float
    step_ns_per_context_token: float
    swap_us_per_token: float = 0.0
    """0: KV takes as long as as many bytes of weights."""

    def scaled(self, factor: float) -> "Fit":
        """Every time multiplied."""
        return Fit(*(factor * value for value in astuple(self)))

    def costs(self, weight_bytes: int, kv_bytes_per_token: int, bandwidth_bytes_per_s: float) -> ModelCosts:
        """Of a model with these times, loaded over a bus of this bandwidth."""
        return ModelCosts(
            weight_bytes=weight_bytes,
            kv_bytes_per_token=kv_bytes_per_token,
            load_s=weight_bytes / bandwidth_bytes_per_s,
            prefill_base_s=self.prefill_base_ms * 1e-3,
            prefill_s_per_token=self.prefill_us_per_token * 1e-6,
            step_base_s=self.step_base_ms * 1e-3,
            step_s_per_request=self.step_us_per_request * 1e-6,
            step_s_per_context_token=self.step_ns_per_context_token * 1e-9,
            swap_s_per_token=self.swap_us_per_token * 1e-6,
        )


CLASSES: Mapping[str, ModelClass] = MappingProxyType(
    {
        "qwen2.5-7b": ModelClass(15_200_000_000, 57_344),
        "yi-1.5-9b": ModelClass(17_700_000_000, 98_304),
        "llama-2-13b": ModelClass(26_000_000_000, 819_200),
    }
)

FITS: Mapping[tuple[str, str], Fit] = MappingProxyType(
    {
        ("a10", "qwen2.5-7b"): Fit(21.45, 201.2, 32.89, 203.1, 351),  # 5/28 4/21 *
        ("a100", "qwen2.5-7b"): Fit(9.07, 56.2, 12.22, 123.6, 51),  # 4/18 3/11
        ("a100", "yi-1.5-9b"): Fit(11.61, 73.5, 15.26, 128.2, 225),  # 5/26 5/17 *
        ("a100", "llama-2-13b"): Fit(15.16, 119.0, 19.99, 207.6, 437),  # 3/20 3/12 *
        ("h100", "qwen2.5-7b"): Fit(7.06, 19.5, 8.98, 66.3, 95),  # 8/28 2/8 *
        ("h100", "yi-1.5-9b"): Fit(10.75, 23.6, 13.51, 65.4, 201),  # 10/28 3/12 *
        ("h100", "llama-2-13b"): Fit(9.50, 37.3, 12.57, 103.3, 74),  # 7/36 3/25
        ("h800", "qwen2.5-7b"): Fit(6.57, 21.5, 8.38, 93.6, 88),  # 6/21 2/12
        ("h800", "yi-1.5-9b"): Fit(9.46, 26.3, 11.61, 89.3, 169),  # 7/23 3/11
        ("h800", "llama-2-13b"): Fit(9.25, 41.5, 12.97, 140.7, 279),  # 4/22 2/9
        ("h20", "qwen2.5-7b"): Fit(6.70, 101.4, 11.43, 131.6, 124),  # 4/34 7/30 *
        ("h20", "yi-1.5-9b"): Fit(9.39, 131.7, 13.97, 151.9, 215),  # 2/24 12/34 *
        ("h20", "llama-2-13b"): Fit(13.27, 194.0, 21.05, 275.8, 469),  # 2/28 8/32 *
    }
)
DEVICES = frozenset(device for device, _ in FITS)


def emulated_spec(class_name: str) -> ModelSpec:
    """The facts of a model registered as `emulated:CLASS`. Raises InvalidArgument for an unknown class."""
    known = CLASSES.get(class_name)
    if known is None:
        raise InvalidArgument(f"unknown emulated class {class_name!r}; known are {', '.join(sorted(CLASSES))}")
    return ModelSpec(
        digest=hashlib.sha256(f"{SOURCE_PREFIX}{class_name}".encode()).hexdigest(),
        architecture="emulated",
        dtype="bfloat16",
        weight_bytes=known.weight_bytes,
        kv_bytes_per_token=known.kv_bytes_per_token,
        max_context_tokens=4096,
        vocab_size=256,
    )


def profile(device: str, class_name: str) -> Fit:
    """Of a class in CLASSES; where it was not profiled, the reference class's, scaled by weight bytes.

    Raises InvalidArgument for an unknown device.
    """
    if device not in DEVICES:
        raise InvalidArgument(f"no profile of device {device!r}; known are {', '.join(sorted(DEVICES))}")
    fit = FITS.get((device, class_name))
    if fit is not None:
        return fit
    scale = CLASSES[class_name].weight_bytes / CLASSES[REFERENCE_CLASS].weight_bytes
    return FITS[device, REFERENCE_CLASS].scaled(scale)


def emulated_costs(device: str, spec: ModelSpec, source: str, bandwidth_bytes_per_s: float) -> ModelCosts:
    """Costs of a model on a profiled device. Raises InvalidArgument for an unknown device."""
    class_name = source.removeprefix(SOURCE_PREFIX)
    if class_name in CLASSES:
        fit = profile(device, class_name)
    else:
        fit = profile(device, REFERENCE_CLASS).scaled(spec.weight_bytes / CLASSES[REFERENCE_CLASS].weight_bytes)
    return fit.costs(spec.weight_bytes, spec.kv_bytes_per_token, bandwidth_bytes_per_s)
