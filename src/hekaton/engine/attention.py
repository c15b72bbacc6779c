"""Paged attention, plugged into transformers through its own attention and mask registries.

A step packs the tokens of all its requests into one row, (1, tokens). Everything but attention works token by token;
here new keys and values go into the blocks of their requests, and each request attends to its own. Requests that feed
one token are done together, padded to the longest; longer feeds one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from hekaton.engine.kv import BLOCK_TOKENS

NAME = "hekaton_paged"


INERT = frozenset({"dropout", "output_router_logits", "position_ids", "use_cache"})
"""What the library's modules hand to attention that changes nothing here. Anything else is refused."""


@dataclass(slots=True)
class Group:
    """Requests that attend together: `rows` of the packed step, `queries` of them per request."""

    rows: Tensor
    """Packed positions of the queries, (requests · queries)."""
    blocks: Tensor
    """Block numbers, (requests, blocks), padded with a block of the same request."""
    starts: Tensor
    """Tokens before the first query, (requests)."""
    queries: int
    masks: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, window: int) -> Tensor:
        """Who sees whom: (requests, 1, queries, keys), True where a key is seen. `window` 0 is unlimited."""
        if window not in self.masks:
            keys = torch.arange(self.blocks.shape[1] * BLOCK_TOKENS, device=self.blocks.device)
            at = (self.starts[:, None] + torch.arange(self.queries, device=self.blocks.device))[..., None]
            seen = keys <= at
            if window:
                seen &= keys > at - window
            self.masks[window] = seen[:, None]
        return self.masks[window]


@dataclass(slots=True)
class StepPlan:
    """Where the tokens of one step go and what they see."""

    cache: Tensor
    """Every block of the shape on the device: (blocks, layers, 2, 16, kv_heads, head_size)."""
    slots: tuple[Tensor, Tensor]
    """Block and place within it for each packed token."""
    groups: list[Group]


def plan(cache: Tensor, feeds: Sequence[tuple[int, int, Sequence[int]]]) -> StepPlan:
    """Plans a step. Each feed is (tokens before, tokens fed, the request's block table), in packed order."""
    device = cache.device
    positions = torch.cat([_span(start, count) for start, count, _ in feeds])
    owner = torch.cat([torch.tensor(table)[_span(start, count) // BLOCK_TOKENS] for start, count, table in feeds])
    first_rows = torch.tensor([0] + [count for _, count, _ in feeds]).cumsum(0)[:-1]
    single = [index for index, (_, count, _) in enumerate(feeds) if count == 1]
    groups = [_group(device, feeds, first_rows, single, 1)] if single else []
    groups += [
        _group(device, feeds, first_rows, [index], count) for index, (_, count, _) in enumerate(feeds) if count > 1
    ]
    return StepPlan(cache, (owner.to(device), (positions % BLOCK_TOKENS).to(device)), groups)


def _span(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count)


def _group(
    device: torch.device,
    feeds: Sequence[tuple[int, int, Sequence[int]]],
    first_rows: Tensor,
    members: Sequence[int],
    queries: int,
) -> Group:
    used = [feeds[index][2][: -(-(feeds[index][0] + queries) // BLOCK_TOKENS)] for index in members]
    width = max(len(table) for table in used)
    padded = torch.tensor([[*table, *[table[0]] * (width - len(table))] for table in used])
    starts = torch.tensor([feeds[index][0] for index in members])
    rows = (first_rows[torch.tensor(members)][:, None] + torch.arange(queries)).reshape(-1)
    return Group(rows.to(device), padded.to(device), starts.to(device), queries)


def paged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    step_plan: StepPlan | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """The library's attention interface. query: (1, heads, tokens, size); returns (1, tokens, heads, size)."""
    if step_plan is None:
        raise ValueError("paged attention needs a step_plan: call the model through the engine")
    if unknown := [name for name in kwargs.keys() - INERT if kwargs[name] is not None]:
        raise ValueError(f"paged attention does not honour {', '.join(sorted(unknown))}")
    layer = int(str(module.layer_idx))
    keys, values = step_plan.cache[:, layer, 0], step_plan.cache[:, layer, 1]
    blocks, places = step_plan.slots
    keys[blocks, places] = key[0].transpose(0, 1)
    values[blocks, places] = value[0].transpose(0, 1)
    tokens = query[0].transpose(0, 1)
    output = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    for group in step_plan.groups:
        output[group.rows] = _attend(group, tokens[group.rows], keys, values, scaling, sliding_window or 0, softcap)
    return output[None], None


def _attend(
    group: Group,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float | None,
    window: int,
    softcap: float | None,
) -> Tensor:
    """query: (requests · queries, heads, size), and so the result."""
    requests = group.blocks.shape[0]
    heads, size = query.shape[1:]
    kv_heads = keys.shape[2]
    shared = heads // kv_heads
    # Heads that share keys become further queries of one head: no key is copied for them.
    packed = query.view(requests, group.queries, kv_heads, shared, size).permute(0, 2, 3, 1, 4)
    packed = packed.reshape(requests, kv_heads, shared * group.queries, size)
    mask = group.mask(window).repeat(1, 1, shared, 1) if group.queries > 1 else group.mask(window)
    seen, weighed = _gather(keys, group.blocks), _gather(values, group.blocks)
    if softcap:
        out = _capped(packed, seen, weighed, mask, scaling or size**-0.5, softcap)
    else:
        out = scaled_dot_product_attention(packed, seen, weighed, attn_mask=mask, scale=scaling)
    out = out.view(requests, kv_heads, shared, group.queries, size).permute(0, 3, 1, 2, 4)
    return out.reshape(requests * group.queries, heads, size)


def _capped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """Attention with scores squeezed into (-softcap, softcap), which torch's own does not know."""
    scores = torch.tanh(query @ keys.transpose(-1, -2) * scale / softcap) * softcap
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32)
    return weights.to(query.dtype) @ values


def _gather(cache: Tensor, blocks: Tensor) -> Tensor:
    """(requests, kv_heads, blocks · 16, size) of a layer's keys or values."""
    requests, count = blocks.shape
    found = cache.index_select(0, blocks.reshape(-1))
    return found.view(requests, count * BLOCK_TOKENS, *cache.shape[2:]).transpose(1, 2)


def _no_mask(*args: object, **kwargs: object) -> None:
    """The plan knows who sees whom; the library need not build a mask."""
    return


def register() -> None:
    """Makes `attn_implementation="hekaton_paged"` known to transformers."""
    AttentionInterface.register(NAME, paged_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
