"""Paged attention beside plain attention over each request's own keys and values."""

from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hekaton.engine import attention
from hekaton.engine.attention import Feed, Pages, order, paged_attention, plan
from hekaton.engine.kv import BLOCK_TOKENS, BlockShape

LAYERS, LAYER, KV_HEADS, SIZE = 2, 1, 2, 8
SHAPE = BlockShape(LAYERS, KV_HEADS, SIZE, "float32", 4)
UNITS = SHAPE.units
GATHERED_BYTES = 4 * BLOCK_TOKENS * KV_HEADS * SIZE * 4
"""So little that decodes attend in several groups: four blocks."""
FEEDS = st.lists(st.tuples(st.integers(0, 50), st.one_of(st.just(1), st.integers(1, 40))), min_size=1, max_size=5)
"""(tokens before, tokens fed) of each request."""


class Layer(nn.Module):
    layer_idx = LAYER


def expected(
    query: Tensor, keys: Tensor, values: Tensor, start: int, scaling: float, window: int, softcap: float | None
) -> Tensor:
    """By the definition. query: (fed, heads, size); keys and values: (start + fed, kv_heads, size)."""
    shared = query.shape[1] // KV_HEADS
    keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
    scores = torch.einsum("qhs,khs->hqk", query, keys) * scaling
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    at = start + torch.arange(len(query))[:, None]
    key_at = torch.arange(len(keys))
    seen = (key_at <= at) & (key_at > at - window) if window else key_at <= at
    return torch.einsum("hqk,khs->qhs", scores.masked_fill(~seen, float("-inf")).softmax(-1), values)


@pytest.mark.parametrize("window", [0, 5, 24])
@pytest.mark.parametrize("shared", [1, 3])
@settings(max_examples=20)
@given(feeds=FEEDS, seed=st.integers(0, 2**32 - 1), softcap=st.sampled_from([None, 0.5]))
def test_each_request_sees_its_own_past_and_nothing_else(
    shared: int, window: int, feeds: list[tuple[int, int]], seed: int, softcap: float | None
) -> None:
    torch.manual_seed(seed)
    packed = [Feed(start, fed, ()) for start, fed in feeds]
    packed = [packed[index] for index in order(packed)]
    # Blocks in no order, and one more that belongs to nobody.
    numbers = iter((torch.randperm(sum(feed.blocks for feed in packed) + 1) * UNITS).tolist())
    packed = [feed._replace(table=[next(numbers) for _ in range(feed.blocks)]) for feed in packed]
    buffer = torch.randn((sum(feed.blocks for feed in packed) + 1) * SHAPE.nbytes // 4).view(torch.uint8)
    cache = buffer.view(torch.float32).view(-1, LAYERS, 2, BLOCK_TOKENS, KV_HEADS, SIZE)
    other_layer = cache[:, 0].clone()
    fed = sum(feed.fed for feed in packed)
    query = torch.randn(1, KV_HEADS * shared, fed, SIZE)
    key, value = torch.randn(2, 1, KV_HEADS, fed, SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "GATHERED_BYTES", GATHERED_BYTES)
        step = plan(Pages(buffer, SHAPE), packed)
    found, _ = paged_attention(
        Layer(), query, key, value, None, scaling=0.3, sliding_window=window or None, softcap=softcap, step_plan=step
    )
    row = count()
    for start, number, table in packed:
        rows = [next(row) for _ in range(number)]
        blocks = [block // UNITS for block in table]
        keys = cache[blocks, LAYER, 0].flatten(0, 1)[: start + number]
        values = cache[blocks, LAYER, 1].flatten(0, 1)[: start + number]
        assert torch.equal(keys[start:], key[0, :, rows].transpose(0, 1))
        assert torch.equal(values[start:], value[0, :, rows].transpose(0, 1))
        want = expected(query[0, :, rows].transpose(0, 1), keys, values, start, 0.3, window, softcap)
        torch.testing.assert_close(found[0, rows], want, rtol=1e-4, atol=1e-5)
    assert torch.equal(cache[:, 0], other_layer)


def test_decodes_of_one_length_attend_together_and_need_no_mask() -> None:
    pages = Pages(torch.zeros(64 * SHAPE.nbytes, dtype=torch.uint8), SHAPE)
    feeds = [Feed(20, 1, (0, 1)), Feed(5, 1, (2,)), Feed(0, 9, (3,)), Feed(20, 1, (4, 5)), Feed(5, 1, (6,))]
    packed = order(feeds)
    assert packed == [1, 4, 0, 3, 2]
    few = GATHERED_BYTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "GATHERED_BYTES", few)
        groups = plan(pages, [feeds[index] for index in packed]).groups
    assert [(group.requests, group.keys) for group in groups] == [(2, 6), (2, 21), (1, 9)]
    assert [group.mask(0, torch.float32) is None for group in groups] == [True, True, False]
    assert groups[1].mask(5, torch.float32) is not None


def test_without_a_plan_it_refuses() -> None:
    one = torch.zeros(1, 1, 1, SIZE)
    with pytest.raises(ValueError, match="step_plan"):
        paged_attention(Layer(), one, one, one, None)


def test_what_it_does_not_honour_it_refuses_by_name() -> None:
    one = torch.zeros(1, KV_HEADS, 1, SIZE)
    step = plan(Pages(torch.zeros(SHAPE.nbytes, dtype=torch.uint8), SHAPE), [Feed(0, 1, [0])])
    paged_attention(Layer(), one, one, one, None, step_plan=step, s_aux=None, dropout=0.0)
    with pytest.raises(ValueError, match="does not honour position_bias, s_aux"):
        paged_attention(Layer(), one, one, one, None, step_plan=step, s_aux=one, position_bias=one)
