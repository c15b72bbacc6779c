"""The yardstick says what is equal, what is a tie, and where a difference begins."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fakes.checkpoints import VOCAB, write_checkpoint
from fakes.tinymodels import TinyModel, prompt_of
from hekaton.engine.reference import Comparison, Question, Verdict, compare, load, routed_by_chance

PROMPT = prompt_of(9, 1)


@torch.inference_mode()
def greedy(model: transformers.PreTrainedModel, prompt: list[int], count: int, instead: dict[int, int]) -> list[int]:
    """Greedy tokens by plain forwards, with the token at some indices replaced."""
    ids = list(prompt)
    for index in range(count):
        ids.append(instead.get(index, int(model(torch.tensor([ids])).logits[0, -1].argmax())))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def llama(models: dict[str, TinyModel]) -> transformers.PreTrainedModel:
    return load(str(models["llama"].checkpoint), "float32")


def test_its_own_tokens_are_equal(llama: transformers.PreTrainedModel) -> None:
    assert compare(llama, PROMPT, greedy(llama, PROMPT, 20, {})) == Comparison(0, None)
    assert compare(llama, PROMPT, []) == Comparison(0, None)


@pytest.mark.parametrize("index", [0, 7, 19])
def test_a_wrong_token_is_found_at_its_index(llama: transformers.PreTrainedModel, index: int) -> None:
    tokens = greedy(llama, PROMPT, 20, {})
    tokens[index] = (tokens[index] + 1) % VOCAB
    assert compare(llama, PROMPT, tokens) == Comparison(0, index)


def test_tokens_after_the_models_own_end_are_a_difference(llama: transformers.PreTrainedModel) -> None:
    tokens = greedy(llama, PROMPT, 20, {})
    end = next(index for index, token in enumerate(tokens) if index > 3 and token not in tokens[:index])
    ends = llama.generation_config.eos_token_id
    llama.generation_config.eos_token_id = tokens[end]
    try:
        assert compare(llama, PROMPT, tokens[: end + 1]) == Comparison(0, None)
        assert compare(llama, PROMPT, tokens) == Comparison(0, end + 1)
    finally:
        llama.generation_config.eos_token_id = ends


def test_a_tie_is_counted_and_the_comparison_goes_on_after_our_token(tmp_path: Path) -> None:
    """Two tokens whose output rows are the same have the same logit, but not the same embedding."""
    checkpoint = write_checkpoint(tmp_path, "llama", tie_word_embeddings=False)
    plain = load(str(checkpoint), "float32")
    ours = Counter(greedy(plain, PROMPT, 20, {})).most_common(1)[0][0]
    twin = (ours + 1) % VOCAB
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"][twin] = weights["lm_head.weight"][ours]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    model = load(str(checkpoint), "float32")
    own = greedy(model, PROMPT, 20, {})
    index = next(index for index, token in enumerate(own) if token in (ours, twin))
    other = twin if own[index] == ours else ours
    tied = greedy(model, PROMPT, 20, {index: other})
    found = compare(model, PROMPT, tied)
    assert found.first_difference is None
    assert found.ties >= 1
    tied[-1] = next(token for token in range(VOCAB) if token not in (tied[-1], ours, twin))
    assert compare(model, PROMPT, tied).first_difference == 19


def test_a_difference_after_a_tied_choice_of_experts_is_a_tie(tmp_path: Path) -> None:
    """Two experts whose router rows are the same are chosen by chance at the edge of the chosen."""
    checkpoint = write_checkpoint(tmp_path, "mixtral")
    model = load(str(checkpoint), "float32")
    wrong = greedy(model, PROMPT, 20, {})
    wrong[7] = (wrong[7] + 1) % VOCAB
    assert compare(model, PROMPT, wrong) == Comparison(0, 7)
    with torch.no_grad():
        # Three of the four have equal logits at every token, and two are chosen.
        model.get_parameter("model.layers.1.mlp.gate.weight")[1:] = 1.0
    tied = greedy(model, PROMPT, 20, {})
    tied[7] = (tied[7] + 1) % VOCAB
    found = compare(model, PROMPT, tied)
    assert found.first_difference is None
    assert found.ties >= 1


@pytest.mark.parametrize(
    ("logits", "chosen", "tied"),
    [
        ([[4.0, 1.0, 3.0, 2.0]], 2, False),
        ([[4.0, 3.0, 3.0, 2.0]], 2, True),
        ([[3.0, 3.0, 2.0, 1.0]], 2, False),
        ([[4.0, 1.0, 3.0, 2.0], [-9.0, 1.0, 1.0001, 2.0]], 2, True),
        ([[4.0, 1.0, 3.0, 2.0], [-9.0, 1.0, 1.001, 2.0]], 2, False),
        ([[3.0, 3.0]], 2, False),
    ],
)
def test_only_the_edge_of_the_chosen_experts_is_judged(logits: list[list[float]], chosen: int, tied: bool) -> None:
    assert routed_by_chance(torch.tensor(logits), chosen) is tied


def test_the_process_answers_a_line_with_a_line(
    models: dict[str, TinyModel], llama: transformers.PreTrainedModel
) -> None:
    tokens = greedy(llama, PROMPT, 10, {})
    wrong = [*tokens[:4], (tokens[4] + 1) % VOCAB]
    gpt2 = load(str(models["gpt2"].checkpoint), "float32")
    asked = [
        Question("right", str(models["llama"].checkpoint), "float32", PROMPT, tokens),
        Question("wrong", str(models["llama"].checkpoint), "float32", PROMPT, wrong),
        Question("other", str(models["gpt2"].checkpoint), "", PROMPT, greedy(gpt2, PROMPT, 5, {})),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "hekaton.engine.reference"],
        input=b"".join(msgspec.json.encode(question) + b"\n" for question in asked),
        capture_output=True,
        timeout=120,
        check=True,
    )
    answers = [msgspec.json.decode(line, type=Verdict) for line in done.stdout.splitlines()]
    assert answers == [Verdict("right", True, 0, None), Verdict("wrong", False, 0, 4), Verdict("other", True, 0, None)]
