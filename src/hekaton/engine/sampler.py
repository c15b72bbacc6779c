"""Choosing tokens: greedy, or Gumbel-max over counter-based noise.

Everything is done for the whole batch at once, and only what a row asks for. No row sees another, so that a request
gives the same tokens in any batch, on any worker, after any interruption.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from hekaton.engine import penalties
from hekaton.engine.interface import Sampled, StepItem
from hekaton.engine.noise import gumbel, row_keys
from hekaton.errors import EngineFailed
from hekaton.facts import Logprobs, Sampling

CANDIDATES = 256
"""As many of a row's likeliest tokens are looked at first; more only if it keeps more."""
CHUNK_NUMBERS = 1 << 20
"""Numbers of a temporary over the whole vocabulary; more rows take their turns."""


NOTHING: Mapping[int, Tensor] = MappingProxyType({})


def sample(logits: Tensor, items: Sequence[StepItem], forbidden: Mapping[int, Tensor] = NOTHING) -> list[Sampled]:
    """One token per row. logits: (items, vocabulary), any float dtype; every item has its sampling.

    `forbidden`, (vocabulary) by row, is True at the tokens that are out of the question whatever else is asked for.

    Raises EngineFailed naming the request whose numbers are not finite.
    """
    logits = logits.float()
    samplings = [item.sampling for item in items if item.sampling is not None]
    _check(logits, items)
    tokens = logits.argmax(dim=-1)
    rows = [
        row
        for row, (item, sampling) in enumerate(zip(items, samplings, strict=True))
        if sampling.temperature > 0 or row in forbidden or penalties.changes(sampling, item.position)
    ]
    if rows:
        at = torch.tensor(rows, device=logits.device)
        # A copy: log probabilities are of what the model said.
        out = {place: forbidden[row] for place, row in enumerate(rows) if row in forbidden}
        tokens[at] = _choose(logits[at], [items[row] for row in rows], [samplings[row] for row in rows], out)
    told = _logprobs(logits, samplings, tokens)
    return [Sampled(token, told.get(row)) for row, token in enumerate(tokens.tolist())]


def _check(logits: Tensor, items: Sequence[StepItem]) -> None:
    # A sum is finite only if all its numbers are, and takes a thirtieth of the time. Finite ones may still overflow it.
    if torch.isfinite(logits.sum(dim=-1)).all():
        return
    finite = torch.isfinite(logits).all(dim=-1).tolist()
    for item, good in zip(items, finite, strict=True):
        if not good:
            raise EngineFailed(f"request {item.request_id}: the model's logits are not finite; check its weights")


def _logprobs(logits: Tensor, samplings: Sequence[Sampling], tokens: Tensor) -> dict[int, Logprobs]:
    """By row, of those that ask."""
    asked = {row: one.logprobs for row, one in enumerate(samplings) if one.logprobs is not None}
    if not asked:
        return {}
    at = torch.tensor(list(asked), device=logits.device)
    own = logits[at]
    total = own.logsumexp(-1, keepdim=True)
    chosen = (own.gather(-1, tokens[at][:, None]) - total).flatten().tolist()
    top = own.topk(min(max(asked.values()), own.shape[-1]))
    likeliest = zip(chosen, top.indices.tolist(), (top.values - total).tolist(), strict=True)
    return {
        row: Logprobs(logprob, tuple(ids[:count]), tuple(values[:count]))
        for (row, count), (logprob, ids, values) in zip(asked.items(), likeliest, strict=True)
    }


def _choose(
    logits: Tensor, items: list[StepItem], samplings: list[Sampling], forbidden: Mapping[int, Tensor]
) -> Tensor:
    """Tokens of rows of which each samples or has logits to change; changes `logits`."""
    penalties.apply(logits, items, samplings)
    for row, out in forbidden.items():
        logits[row].masked_fill_(out.to(logits.device), float("-inf"))
    tokens = logits.argmax(dim=-1)
    size = logits.shape[-1]
    whole = [row for row, one in enumerate(samplings) if one.temperature > 0 and not _narrows(one, size)]
    narrow = [row for row, one in enumerate(samplings) if one.temperature > 0 and _narrows(one, size)]
    keys = row_keys(items, samplings, logits.device)
    for part in _chunks(whole, size):
        at = torch.tensor(part, device=logits.device)
        tokens[at] = _draw(logits[at], keys[at], [samplings[row] for row in part])
    if narrow:
        at = torch.tensor(narrow, device=logits.device)
        tokens[at] = _draw_kept(logits[at], keys[at], [samplings[row] for row in narrow], CANDIDATES)
    return tokens


def _narrows(sampling: Sampling, vocabulary: int) -> bool:
    """Whether some tokens are out of the question."""
    return 0 < sampling.top_k < vocabulary or sampling.top_p < 1.0 or sampling.min_p > 0.0


def _draw(logits: Tensor, keys: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    noise = gumbel(keys, torch.arange(logits.shape[-1], device=logits.device)[None])
    return noise.add_(_scaled(logits, logits.amax(-1, keepdim=True), samplings)).argmax(-1)


def _draw_kept(logits: Tensor, keys: Tensor, samplings: Sequence[Sampling], candidates: int) -> Tensor:
    """Draws from the tokens that are kept, of which only the likeliest `candidates` are looked at if those are all."""
    size = logits.shape[-1]
    candidates = min(size, max(candidates, *(one.top_k + 1 for one in samplings if one.top_k < size), 1))
    values, ids = logits.topk(candidates)
    scaled = _scaled(values, values[:, :1], samplings)
    least, edge = _least_kept(scaled, logits, samplings)
    noise = gumbel(keys, ids).add_(scaled.masked_fill(scaled < least, float("-inf")))
    tokens = ids.gather(-1, noise.argmax(-1, keepdim=True)).flatten()
    rest = [] if candidates == size else (scaled[:, -1:] >= edge).flatten().nonzero().flatten().tolist()
    for part in _chunks(rest, size):
        at = torch.tensor(part, device=logits.device)
        tokens[at] = _draw_kept(logits[at], keys[at], [samplings[row] for row in part], size)
    return tokens


def _least_kept(scaled: Tensor, logits: Tensor, samplings: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    """The smallest scaled logit that is kept, (rows, 1): of the top k, then of the smallest set that holds top_p.

    Tokens that are as likely as the last one kept are kept too. `scaled` are the candidates, the likeliest first; they
    suffice if they go on below the second result.
    """
    least = _column([math.log(one.min_p) if one.min_p > 0 else float("-inf") for one in samplings], scaled)
    last = torch.tensor([min(one.top_k, scaled.shape[-1]) for one in samplings], device=scaled.device)[:, None] - 1
    limited = torch.tensor([0 < one.top_k < logits.shape[-1] for one in samplings], device=scaled.device)[:, None]
    kth = scaled.gather(-1, last.clamp(min=0)).masked_fill(~limited, float("-inf"))
    least = torch.maximum(least, kth)
    nucleus = [row for row, one in enumerate(samplings) if one.top_p < 1.0]
    if nucleus:
        at = torch.tensor(nucleus, device=scaled.device)
        asked = [samplings[row] for row in nucleus]
        held = _nucleus(scaled[at], kth[at], logits[at], asked)
        least[at] = torch.maximum(least[at], held)
    # All of the top k have a part in the probabilities of each.
    return least, torch.where(limited, kth, least)


def _nucleus(scaled: Tensor, kth: Tensor, logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """The last of the likeliest tokens that hold top_p of what top k keeps."""
    weights = scaled.exp().masked_fill(scaled < kth, 0.0)
    total = weights.sum(-1, keepdim=True)
    free = [row for row, one in enumerate(samplings) if not 0 < one.top_k < logits.shape[-1]]
    for part in _chunks(free, logits.shape[-1]):
        at = torch.tensor(part, device=logits.device)
        own = logits[at]
        asked = [samplings[row] for row in part]
        total[at] = _scaled(own, own.amax(-1, keepdim=True), asked).exp_().sum(-1, keepdim=True)
    before = (weights.cumsum(-1) - weights) / total
    count = (before < _column([one.top_p for one in samplings], scaled)).sum(-1, keepdim=True)
    return scaled.gather(-1, count - 1)


def _scaled(logits: Tensor, largest: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Divided by the temperature, float64. The largest becomes 0, so that no temperature is too small to divide by."""
    scaled = logits.double().sub_(largest)
    return scaled.div_(_column([one.temperature for one in samplings], scaled))


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


def _chunks(rows: list[int], vocabulary: int) -> list[list[int]]:
    """So many rows at a time that a temporary over the vocabulary stays small."""
    size = max(CHUNK_NUMBERS // vocabulary, 1)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
