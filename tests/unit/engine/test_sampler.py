"""Choosing tokens: the noise is of (seed, position) alone, and what is kept is what was asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hekaton.engine.interface import StepItem
from hekaton.engine.sampler import gumbel, sample
from hekaton.errors import EngineFailed
from hekaton.facts import Sampling

VOCAB = 20
DRAWS = 4000
GREEDY = Sampling(max_tokens=1, seed=0)
PLAIN = replace(GREEDY, temperature=1.0)


def item(sampling: Sampling, position: int = 0, request_id: str = "r") -> StepItem:
    return StepItem(request_id, (1,), 0, sampling, position)


def logits_of(seed: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def draws(logits: Tensor, sampling: Sampling) -> Tensor:
    """How often each token comes, over many positions."""
    tokens = sample(logits.expand(DRAWS, -1), [item(sampling, position) for position in range(DRAWS)])
    return torch.bincount(torch.tensor(tokens), minlength=VOCAB) / DRAWS


def test_a_token_depends_on_seed_and_position_and_not_on_the_batch() -> None:
    logits = logits_of(1, rows=64)
    items = [item(replace(PLAIN, seed=row % 7), row) for row in range(64)]
    together = sample(logits, items)
    assert [sample(logits[row : row + 1], [items[row]])[0] for row in range(64)] == together
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2)).tolist()
    assert sample(logits[order], [items[row] for row in order]) == [together[row] for row in order]


@pytest.mark.parametrize("change", [{"seed": 1}, {"position": 1}])
def test_another_seed_or_position_is_other_noise(change: dict[str, int]) -> None:
    own = gumbel(0, 0, 1000)
    other = gumbel(change.get("seed", 0), change.get("position", 0), 1000)
    assert abs(np.corrcoef(own, other)[0, 1]) < 0.1
    assert not set(own) & set(other)


def test_the_largest_seed_and_a_far_position_are_taken() -> None:
    assert sample(logits_of(1), [item(replace(PLAIN, seed=2**64 - 1), 10**6)])[0] < VOCAB


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    logits = logits_of(3)
    expected = (logits[0] / temperature).softmax(-1)
    deviation = (draws(logits, replace(PLAIN, temperature=temperature)) - expected).abs()
    assert bool((deviation < 4 * (expected * (1 - expected) / DRAWS).sqrt() + 1e-4).all())


@pytest.mark.parametrize("top_k", [1, 3, VOCAB - 1, VOCAB, 10 * VOCAB])
def test_top_k_keeps_the_k_most_likely(top_k: int) -> None:
    logits = torch.linspace(0, 1, VOCAB)[None]
    seen = draws(logits, replace(PLAIN, top_k=top_k)).nonzero().flatten().tolist()
    assert seen == list(range(VOCAB))[-top_k:]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, 1), (0.49, 1), (0.51, 2), (0.7, 2), (0.81, 3), (0.94, 3), (0.96, 4), (1.0, 4)]
)
def test_top_p_keeps_the_smallest_set_that_holds_it(top_p: float, kept: int) -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    assert int((draws(logits, replace(PLAIN, top_p=top_p)) > 0).sum()) == kept


def test_top_k_comes_before_top_p() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    kept = draws(logits, replace(PLAIN, top_k=2, top_p=0.55)) > 0
    assert kept[:4].tolist() == [True, False, False, False]


@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 5e-324])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = logits_of(4)
    assert sample(logits, [item(replace(PLAIN, temperature=temperature, top_p=0.9))]) == [int(logits.argmax())]


def test_greedy_takes_the_most_likely_in_any_dtype() -> None:
    logits = logits_of(5, rows=3)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert sample(logits.to(dtype), [item(GREEDY)] * 3) == logits.to(dtype).argmax(-1).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_name_their_request(bad: float) -> None:
    logits = logits_of(6, rows=3)
    logits[1, 4] = bad
    with pytest.raises(EngineFailed, match="request second"):
        sample(logits, [item(GREEDY, 0, "first"), item(PLAIN, 0, "second"), item(GREEDY, 0, "third")])
