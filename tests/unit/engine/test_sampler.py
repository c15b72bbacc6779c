"""Choosing tokens: the noise is of (seed, position) alone, and what is kept is what was asked for."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hekaton.engine import sampler
from hekaton.engine.interface import StepItem
from hekaton.engine.noise import gumbel, row_keys
from hekaton.errors import EngineFailed
from hekaton.facts import Sampling

VOCAB = 20
DRAWS = 4000
GREEDY = Sampling(max_tokens=1, seed=0)
PLAIN = replace(GREEDY, temperature=1.0)


def item(
    sampling: Sampling,
    position: int = 0,
    request_id: str = "r",
    prompt: Sequence[int] = (),
    produced: Sequence[int] = (),
) -> StepItem:
    return StepItem(request_id, (1,), 0, sampling, position, prompt, produced)


def sample(logits: Tensor, items: Sequence[StepItem]) -> list[int]:
    return [sampled.token_id for sampled in sampler.sample(logits, items)]


def noise_of(one: StepItem, vocab: int = VOCAB) -> Tensor:
    assert one.sampling is not None
    keys = row_keys([one], [one.sampling], torch.device("cpu"))
    return gumbel(keys, torch.arange(vocab)[None])[0]


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


@pytest.mark.parametrize("other", [item(replace(PLAIN, seed=1)), item(PLAIN, 1), item(replace(PLAIN, choice=1))])
def test_another_seed_position_or_choice_is_other_noise(other: StepItem) -> None:
    one, two = noise_of(item(PLAIN), 1000), noise_of(other, 1000)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.1
    assert not set(one.tolist()) & set(two.tolist())


def test_the_noise_of_a_token_is_the_same_whatever_else_is_drawn() -> None:
    keys = row_keys([item(PLAIN, 5)], [PLAIN], torch.device("cpu"))
    some = torch.tensor([[700, 3, 41]])
    assert torch.equal(gumbel(keys, some)[0], noise_of(item(PLAIN, 5), 1000)[some[0]])


def test_noise_is_gumbel_distributed() -> None:
    """Its quantiles, over tokens and over positions, are those of exp(-exp(-x))."""
    over_positions = torch.stack([noise_of(item(PLAIN, position), 1)[0] for position in range(DRAWS)])
    for draws_ in (noise_of(item(PLAIN), 100_000), over_positions):
        expected = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        deviation = (draws_.quantile(expected).neg().exp().neg().exp() - expected).abs()
        assert bool((deviation < 4 * (0.25 / len(draws_)) ** 0.5).all())


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


# ---- every field against transformers, and arithmetic by hand where it has none

IDS = st.lists(st.integers(0, VOCAB - 1), max_size=12)
FIELDS = st.builds(
    Sampling,
    max_tokens=st.just(50),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.95, 0.6, 0.05]),
    top_k=st.sampled_from([0, 1, 4, VOCAB, 100]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    stop_token_ids=st.sampled_from([(), (2, 7)]),
    min_tokens=st.sampled_from([0, 6]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 1.5, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -1.0, 3.0]), max_size=3),
)
ROWS = st.lists(st.tuples(FIELDS, IDS, IDS), min_size=1, max_size=6)


def expected_of(logits: Tensor, one: StepItem) -> int:
    """What transformers' processors, one row after the other, and Gumbel-max choose."""
    asked = one.sampling
    assert asked is not None
    seen = torch.tensor([[*one.prompt, *one.produced]], dtype=torch.int64)
    scores = logits[None].clone()
    if asked.logit_bias:
        scores = SequenceBiasLogitsProcessor({(token,): bias for token, bias in asked.logit_bias.items()})(seen, scores)
    if seen.numel():
        scores = RepetitionPenaltyLogitsProcessor(asked.repetition_penalty)(seen, scores)
    for token in set(one.produced):
        scores[0, token] -= asked.presence_penalty + asked.frequency_penalty * one.produced.count(token)
    if one.position < asked.min_tokens:
        scores[0, list(asked.stop_token_ids)] = float("-inf")
    if not asked.temperature:
        return int(scores.argmax())
    scores = TemperatureLogitsWarper(asked.temperature)(seen, scores.double())
    if asked.top_k:
        scores = TopKLogitsWarper(asked.top_k)(seen, scores)
    scores = TopPLogitsWarper(asked.top_p)(seen, scores)
    scores = MinPLogitsWarper(asked.min_p)(seen, scores)
    return int((scores[0] + noise_of(one)).argmax())


@settings(max_examples=60)
@given(ROWS, st.integers(0, 1000))
def test_a_mixed_batch_chooses_what_transformers_does_row_by_row(
    rows: list[tuple[Sampling, list[int], list[int]]], seed: int
) -> None:
    logits = logits_of(seed, len(rows))
    before = logits.clone()
    items = [item(asked, len(produced), "r", prompt, produced) for asked, prompt, produced in rows]
    assert sample(logits, items) == [expected_of(row, one) for row, one in zip(logits, items, strict=True)]
    assert torch.equal(logits, before)


@pytest.mark.parametrize("top_p", [0.5, 0.999])
@pytest.mark.parametrize("top_k", [0, 3, 300, 2000])
def test_a_large_vocabulary_is_narrowed_to_the_same_tokens(top_p: float, top_k: int) -> None:
    """Flat rows keep more than the candidates that are looked at first, peaked ones fewer; some values are tied."""
    generator = torch.Generator().manual_seed(9)
    logits = (torch.randn(4, 3000, generator=generator) * torch.tensor([[0.1], [4.0]] * 2)).round(decimals=2)
    asked = replace(PLAIN, top_p=top_p, top_k=top_k)
    kept = [kept_of(row, top_k, top_p) for row in logits.double()]
    for position in range(10):
        one = item(asked, position)
        noise = noise_of(one, 3000)
        assert sample(logits, [one] * 4) == [int((row + noise).argmax()) for row in kept]


def kept_of(row: Tensor, top_k: int, top_p: float) -> Tensor:
    """By the definition: whoever is likelier than a token that is kept holds less than top_p."""
    row = row.masked_fill(row < row.topk(top_k).values[-1], float("-inf")) if top_k else row
    shares = row.softmax(-1)
    above = (row[None] > row[:, None]).double() @ shares
    return row.masked_fill(above >= top_p, float("-inf"))


# ---- each field alone


def test_min_p_keeps_what_is_likely_enough() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert (draws(logits, replace(PLAIN, min_p=0.25)) > 0)[:4].tolist() == [True, True, True, False]


def test_a_repetition_penalty_is_of_prompt_and_output() -> None:
    logits = torch.tensor([[1.0, 0.9, 0.8, -1.0]])
    asked = replace(GREEDY, repetition_penalty=2.0)
    assert sample(logits, [item(asked)]) == [0]
    assert sample(logits, [item(asked, prompt=[0])]) == [1]
    assert sample(logits, [item(asked, prompt=[0], produced=[1, 1])]) == [2]


def test_presence_and_frequency_are_of_the_output() -> None:
    logits = torch.tensor([[1.0, 0.5, 0.2]])
    presence, frequency = replace(GREEDY, presence_penalty=0.6), replace(GREEDY, frequency_penalty=0.3)
    assert sample(logits.expand(2, -1), [item(presence, prompt=[0]), item(presence, produced=[0])]) == [0, 1]
    assert sample(logits.expand(2, -1), [item(frequency, produced=[0]), item(frequency, produced=[0, 0])]) == [0, 1]


def test_a_bias_moves_its_token() -> None:
    logits = torch.tensor([[1.0, 0.5, 0.2]])
    liked, banned = replace(GREEDY, logit_bias={2: 1.0}), replace(GREEDY, logit_bias={0: -1.0})
    assert sample(logits.expand(3, -1), [item(liked), item(banned), item(GREEDY)]) == [2, 1, 0]


def test_no_stop_token_comes_before_min_tokens() -> None:
    logits = torch.tensor([[1.0, 0.5, 0.2]])
    asked = replace(GREEDY, stop_token_ids=(0,), min_tokens=2)
    assert [sample(logits, [item(asked, position)])[0] for position in range(4)] == [1, 1, 0, 0]


@pytest.mark.parametrize("asked", [GREEDY, replace(PLAIN, temperature=0.5, top_k=2, logit_bias={3: 5.0})])
def test_log_probabilities_are_of_what_the_model_said(asked: Sampling) -> None:
    logits = logits_of(8, rows=3)
    items = [item(asked), item(replace(asked, logprobs=0)), item(replace(asked, logprobs=4))]
    nothing, own, four = sampler.sample(logits, items)
    expected = logits.log_softmax(-1)
    assert nothing.logprobs is None
    assert own.logprobs is not None
    assert four.logprobs is not None
    assert own.logprobs.logprob == pytest.approx(float(expected[1, own.token_id]), abs=1e-6)
    assert own.logprobs.top_ids == ()
    assert four.logprobs.logprob == pytest.approx(float(expected[2, four.token_id]), abs=1e-6)
    top = expected[2].topk(4)
    assert four.logprobs.top_ids == tuple(top.indices.tolist())
    assert four.logprobs.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-6)
