"""Choosing tokens. Greedy, or Gumbel-max over counter-based noise.

The noise of one token depends on (seed, position) alone, so that a request gives the same tokens in any batch, on any
worker, after any interruption.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hekaton.engine.interface import StepItem
from hekaton.errors import EngineFailed
from hekaton.facts import Sampling

UNIT = 2.0**-52


def sample(logits: Tensor, items: Sequence[StepItem]) -> list[int]:
    """One token per row. logits: (items, vocabulary), any float dtype.

    Raises EngineFailed naming the request whose numbers are not finite.
    """
    logits = logits.float()
    finite = torch.isfinite(logits).all(dim=-1).tolist()
    for item, good in zip(items, finite, strict=True):
        if not good:
            raise EngineFailed(f"request {item.request_id}: the model's logits are not finite; check its weights")
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, item in enumerate(items):
        if item.sampling is not None and item.sampling.temperature > 0:
            tokens[row] = _draw(logits[row], item.sampling, item.position)
    return tokens


def _draw(logits: Tensor, sampling: Sampling, position: int) -> int:
    logits = logits.double()
    # The largest becomes 0, so that no temperature is too small to divide by.
    scaled = _keep((logits - logits.max()) / sampling.temperature, sampling)
    noise = torch.from_numpy(gumbel(sampling.seed, position, logits.numel())).to(logits.device)
    return int((scaled + noise).argmax())


def _keep(logits: Tensor, sampling: Sampling) -> Tensor:
    """Minus infinity for all but the top k, then for all but the smallest set that holds probability top_p."""
    if 0 < sampling.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], float("-inf"))
    if sampling.top_p < 1.0:
        probabilities, order = logits.softmax(-1).sort(descending=True, stable=True)
        before = probabilities.cumsum(-1) - probabilities
        logits = logits.index_fill(0, order[before >= sampling.top_p], float("-inf"))
    return logits


def gumbel(seed: int, position: int, count: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Standard Gumbel noise from Philox: key `seed`, counter starting at `position` · 2^128."""
    raw = np.random.Philox(key=seed, counter=position << 128).random_raw(count)
    # 52 bits and a half are exact, so that no draw is rounded up to 1.
    uniform = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * UNIT
    return -np.log(-np.log(uniform))
