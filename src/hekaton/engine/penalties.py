"""What changes logits before a token is chosen: bias, penalties, and end tokens that may not come yet.

In the order, and with the meaning, that transformers and vLLM give them: the repetition penalty looks at prompt and
output, presence and frequency at the output alone.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from hekaton.engine.interface import StepItem
from hekaton.facts import Sampling


def changes(sampling: Sampling, position: int) -> bool:
    """Whether `apply` does anything to a row."""
    return bool(
        sampling.logit_bias
        or sampling.repetition_penalty != 1.0
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or _holds_back(sampling, position)
    )


def apply(logits: Tensor, items: Sequence[StepItem], samplings: Sequence[Sampling]) -> None:
    """In place, (items, vocabulary). Costs the tokens that are looked at, not the vocabulary."""
    rows = list(zip(items, samplings, strict=True))
    biased = [list(sampling.logit_bias) for sampling in samplings]
    if any(biased):
        bias = list(chain.from_iterable(sampling.logit_bias.values() for sampling in samplings))
        at = _places(biased, logits)
        logits[at] += torch.tensor(bias, dtype=logits.dtype, device=logits.device)
    _repetition(logits, rows)
    _presence_and_frequency(logits, rows)
    early = [s.stop_token_ids if _holds_back(s, item.position) else () for item, s in rows]
    if any(early):
        logits[_places(early, logits)] = float("-inf")


def _holds_back(sampling: Sampling, position: int) -> bool:
    return position < sampling.min_tokens and bool(sampling.stop_token_ids)


def _repetition(logits: Tensor, rows: Sequence[tuple[StepItem, Sampling]]) -> None:
    seen = [(*item.prompt, *item.produced) if s.repetition_penalty != 1.0 else () for item, s in rows]
    if not any(seen):
        return
    at = _places(seen, logits)
    penalties = _each([s.repetition_penalty for _, s in rows], logits)[at[0]]
    # A token that is there twice is written twice, with the same value.
    found = logits[at]
    logits[at] = torch.where(found < 0, found * penalties, found / penalties)


def _presence_and_frequency(logits: Tensor, rows: Sequence[tuple[StepItem, Sampling]]) -> None:
    seen = [item.produced if s.presence_penalty or s.frequency_penalty else () for item, s in rows]
    if not any(seen):
        return
    vocabulary = logits.shape[-1]
    row, token = _flat(seen)
    distinct, counts = np.unique(row * vocabulary + token, return_counts=True)
    at = tuple(torch.from_numpy(part).to(logits.device) for part in np.divmod(distinct, vocabulary))
    presence = _each([s.presence_penalty for _, s in rows], logits)[at[0]]
    frequency = _each([s.frequency_penalty for _, s in rows], logits)[at[0]]
    logits[at] -= torch.from_numpy(counts).to(logits) * frequency + presence


def _each(values: list[float], logits: Tensor) -> Tensor:
    return torch.tensor(values, dtype=logits.dtype, device=logits.device)


def _flat(token_ids: Sequence[Sequence[int]]) -> tuple["np.ndarray[tuple[int], np.dtype[np.int64]]", ...]:
    """Row and id of every token."""
    lengths = [len(ids) for ids in token_ids]
    ids = np.fromiter(chain.from_iterable(token_ids), np.int64, sum(lengths))
    return np.repeat(np.arange(len(lengths)), lengths), ids


def _places(token_ids: Sequence[Sequence[int]], logits: Tensor) -> tuple[Tensor, ...]:
    """Row and column of every token, as an index."""
    return tuple(torch.from_numpy(part).to(logits.device) for part in _flat(token_ids))
