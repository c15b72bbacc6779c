"""Paged attention, plugged into transformers through its own attention and mask registries.

A step packs the tokens of all its requests into one row, (1, tokens). Everything but attention works token by token;
here new keys and values go into the blocks of their requests, and each request attends to its own. Requests that feed
one token are done together, padded to the longest; longer feeds one by one.

What a layer gathers goes into one scratch that all layers use: it stays in the processor's cache, and no page of it is
ever fresh. What does not depend on the layer is made once a step, what depends on the layer alone once a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from hekaton.engine.kv import BLOCK_TOKENS, UNIT_BYTES, BlockShape

NAME = "hekaton_paged"
INERT = frozenset({"dropout", "output_router_logits", "position_ids", "use_cache"})
"""What the library's modules hand to attention that changes nothing here. Anything else is refused."""
GATHERED_BYTES = 4 << 20
"""Of keys, and as many of values, that requests attend to together: about what a processor's cache keeps."""


class Feed(NamedTuple):
    """A request's part of a step."""

    start: int
    """Tokens before."""
    fed: int
    """Tokens fed."""
    table: Sequence[int]
    """Its blocks."""

    @property
    def blocks(self) -> int:
        """That hold what it sees."""
        return -(-(self.start + self.fed) // BLOCK_TOKENS)


class Pages:
    """The blocks of one shape in a device's memory, as views: of each layer's keys and values."""

    def __init__(self, buffer: Tensor, shape: BlockShape) -> None:
        flat = buffer.view(getattr(torch, shape.dtype))
        self.shape = shape
        row = shape.kv_heads * shape.head_size
        unit = UNIT_BYTES // shape.itemsize
        self._grain = gcd(unit, row)
        self._per_block, self._per_place = unit // self._grain, row // self._grain
        self.scratch = (flat.new_empty(0), flat.new_empty(0))
        self.blocks = _windows(flat, 0, shape.layers * 2 * BLOCK_TOKENS * row, unit)
        """(blocks, numbers): each whole block, of overlapping windows."""
        offsets = [half * BLOCK_TOKENS * row for half in range(2 * shape.layers)]
        runs = [_windows(flat, offset, BLOCK_TOKENS * row, unit) for offset in offsets]
        rows = [_windows(flat, offset, row, self._grain) for offset in offsets]
        self.runs = list(zip(runs[::2], runs[1::2], strict=True))
        """By layer: its keys and values by block, (blocks, 16 · kv_heads · head_size)."""
        self.rows = list(zip(rows[::2], rows[1::2], strict=True))
        """By layer: its keys and values by slot, (slots, kv_heads · head_size)."""

    @property
    def device(self) -> torch.device:
        return self.blocks.device

    def slot(self, block: int, place: int) -> int:
        return block * self._per_block + place * self._per_place

    def reserve(self, blocks: int) -> None:
        """Makes the scratch hold so many blocks of a layer."""
        width = BLOCK_TOKENS * self.shape.kv_heads * self.shape.head_size
        if self.scratch[0].numel() < blocks * width:
            self.scratch = (self.blocks.new_empty(blocks * width), self.blocks.new_empty(blocks * width))


@dataclass(slots=True)
class Group:
    """Requests that attend together: the packed tokens from `first` on, `queries` of each request."""

    first: int
    requests: int
    queries: int
    blocks: Tensor
    """Their block numbers, padded with a block of the same request, (requests · blocks a request)."""
    starts: tuple[int, ...]
    """Tokens before the first query of each."""
    masks: dict[int, Tensor | None] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """A prompt, or its beginning: all that it sees is fed in this step."""
        return self.queries > 1 and self.starts == (0,)

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.requests * self.queries)

    @property
    def keys(self) -> int:
        """That the longest sees."""
        return max(self.starts) + self.queries

    def mask(self, window: int, dtype: torch.dtype) -> Tensor | None:
        """To be added: (requests, 1, queries, keys), 0 where a key is seen. None: everything is seen."""
        if window not in self.masks:
            self.masks[window] = self._mask(window, dtype)
        return self.masks[window]

    def _mask(self, window: int, dtype: torch.dtype) -> Tensor | None:
        if self.queries == 1 and min(self.starts) == max(self.starts) and not 0 < window < self.keys:
            return None
        device = self.blocks.device
        keys = torch.arange(self.keys, device=device)
        at = (torch.tensor(self.starts, device=device)[:, None] + torch.arange(self.queries, device=device))[..., None]
        seen = keys <= at
        if window:
            seen &= keys > at - window
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))[:, None]


@dataclass(slots=True)
class StepPlan:
    """Where the tokens of one step go and what they see, made once a step.

    A captured graph would keep them at fixed addresses, one plan a batch bucket, and write other numbers into them.
    """

    pages: Pages
    slots: Tensor
    """Where each packed token's keys and values go."""
    groups: list[Group]


def order(feeds: Sequence[Feed]) -> list[int]:
    """How a step packs its requests: decodes first, those of one length together."""
    return sorted(range(len(feeds)), key=lambda index: (feeds[index].fed > 1, feeds[index].blocks))


def plan(pages: Pages, feeds: Sequence[Feed]) -> StepPlan:
    """Plans a step of `feeds` as they are packed, in `order`."""
    slots = [
        pages.slot(feed.table[position // BLOCK_TOKENS], position % BLOCK_TOKENS)
        for feed in feeds
        for position in range(feed.start, feed.start + feed.fed)
    ]
    groups: list[Group] = []
    first = index = 0
    while index < len(feeds):
        members = _together(pages, feeds, index)
        groups.append(_group(pages.device, members, first))
        first += sum(feed.fed for feed in members)
        index += len(members)
    pages.reserve(max(group.blocks.numel() for group in groups))
    return StepPlan(pages, torch.tensor(slots, device=pages.device), groups)


def _together(pages: Pages, feeds: Sequence[Feed], index: int) -> Sequence[Feed]:
    """The feeds from `index` on that attend together: decodes, as far as what they gather is not too much."""
    if feeds[index].fed > 1:
        return feeds[index : index + 1]
    limit = GATHERED_BYTES // (pages.shape.nbytes // pages.shape.layers // 2)
    end, most = index, 0
    while end < len(feeds) and feeds[end].fed == 1:
        most = max(most, feeds[end].blocks)
        if end > index and most * (end + 1 - index) > limit:
            break
        end += 1
    return feeds[index:end]


def _group(device: torch.device, feeds: Sequence[Feed], first: int) -> Group:
    width = max(feed.blocks for feed in feeds)
    padded = [block for one in feeds for block in (*one.table[: one.blocks], *[one.table[0]] * (width - one.blocks))]
    starts = tuple(feed.start for feed in feeds)
    return Group(first, len(feeds), feeds[0].fed, torch.tensor(padded, device=device), starts)


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
    keys, values = step_plan.pages.rows[layer]
    keys.index_copy_(0, step_plan.slots, key[0].transpose(0, 1).flatten(1))
    values.index_copy_(0, step_plan.slots, value[0].transpose(0, 1).flatten(1))
    tokens = query[0].transpose(0, 1)
    window = sliding_window or 0
    parts = []
    for group in step_plan.groups:
        if group.whole and not softcap and not 0 < window < group.keys:
            rows = group.rows
            part = _attend_whole(query[:, :, rows], key[:, :, rows], value[:, :, rows], scaling)
        else:
            part = _attend(step_plan.pages, layer, group, tokens[group.rows], scaling, window, softcap)
        parts.append(part)
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


def _attend_whole(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Of one prompt from its beginning, as it is fed: nothing to gather, no mask. Returns (tokens, heads, size)."""
    gqa = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=gqa)
    return out[0].transpose(0, 1)


def _attend(
    pages: Pages, layer: int, group: Group, query: Tensor, scaling: float | None, window: int, softcap: float | None
) -> Tensor:
    """query: (requests · queries, heads, size), and so the result."""
    requests, queries = group.requests, group.queries
    heads, size = query.shape[1:]
    kv_heads = pages.shape.kv_heads
    shared = heads // kv_heads
    # Heads that share keys become further queries of one head: no key is copied for them.
    packed = query.reshape(requests, queries, kv_heads, shared, size).permute(0, 2, 3, 1, 4)
    packed = packed.reshape(requests, kv_heads, shared * queries, size)
    mask = group.mask(window, query.dtype)
    if mask is not None and queries > 1:
        mask = mask.repeat(1, 1, shared, 1)
    seen, weighed = (_gather(pages, layer, half, group) for half in range(2))
    if softcap:
        out = _capped(packed, seen, weighed, mask, scaling or size**-0.5, softcap)
    else:
        out = scaled_dot_product_attention(packed, seen, weighed, attn_mask=mask, scale=scaling)
    out = out.view(requests, kv_heads, shared, queries, size).permute(0, 3, 1, 2, 4)
    return out.reshape(requests * queries, heads, size)


def _capped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Attention with scores squeezed into (-softcap, softcap), which torch's own does not know."""
    scores = torch.tanh(query @ keys.transpose(-1, -2) * scale / softcap) * softcap
    weights = (scores if mask is None else scores + mask).softmax(-1, dtype=torch.float32)
    return weights.to(query.dtype) @ values


def _gather(pages: Pages, layer: int, half: int, group: Group) -> Tensor:
    """(requests, kv_heads, keys, size) of a layer's keys (`half` 0) or values, in the scratch."""
    runs, count = pages.runs[layer][half], group.blocks.numel()
    found = pages.scratch[half][: count * runs.shape[1]].view(count, runs.shape[1])
    torch.index_select(runs, 0, group.blocks, out=found)
    shape = pages.shape
    by_token = found.view(group.requests, -1, shape.kv_heads, shape.head_size)
    return by_token[:, : group.keys].transpose(1, 2)


def _windows(flat: Tensor, offset: int, size: int, stride: int) -> Tensor:
    """Every `size` numbers that start at `offset` plus a multiple of `stride`: (windows, size), overlapping."""
    return flat.as_strided(((flat.numel() - offset - size) // stride + 1, size), (stride, 1), offset)


def _no_mask(*args: object, **kwargs: object) -> None:
    """The plan knows who sees whom; the library need not build a mask."""
    return


def register() -> None:
    """Makes `attn_implementation="hekaton_paged"` known to transformers."""
    AttentionInterface.register(NAME, paged_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
