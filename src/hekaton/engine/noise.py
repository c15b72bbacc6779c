"""Counter-based noise: that of a token depends on (seed, choice, position, token id) alone.

So it can be had for any subset of the vocabulary and of the batch, on any device, without a state. A row's key is mixed
from its seed, choice and position; token v takes the v-th number of a SplitMix64 generator (Steele, Lea and Flood 2014)
that starts at the key.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hekaton.engine.interface import StepItem
from hekaton.facts import Sampling

UNIT = 2.0**-52


def _signed(value: int) -> int:
    """The int64 of the same bits."""
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def row_keys(items: Sequence[StepItem], samplings: Sequence[Sampling], device: torch.device) -> Tensor:
    """One key a row, (rows, 1), int64."""
    parts = [
        (_signed(sampling.seed), sampling.choice, item.position)
        for item, sampling in zip(items, samplings, strict=True)
    ]
    seeds, choices, positions = torch.tensor(parts, dtype=torch.int64, device=device).unbind(1)
    keys = _mix(seeds + _GOLDEN)
    keys = _mix((keys ^ choices) + _GOLDEN)
    return _mix((keys ^ positions) + _GOLDEN)[:, None]


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float64, of token ids (rows or 1, tokens) under keys (rows, 1)."""
    bits = _mix(keys + (token_ids + 1) * _GOLDEN)
    # 52 bits and a half are exact, so that no draw is rounded up to 1.
    uniform = _shifted(bits, 12).double().add_(0.5).mul_(UNIT)
    return uniform.log_().neg_().log_().neg_()


def _mix(values: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place: integers wrap around."""
    values ^= _shifted(values, 30)
    values *= _FIRST
    values ^= _shifted(values, 27)
    values *= _SECOND
    values ^= _shifted(values, 31)
    return values


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifted to the right, zeros coming in."""
    return (values >> bits).bitwise_and_((1 << (64 - bits)) - 1)
