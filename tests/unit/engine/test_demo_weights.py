"""The demo's derived models, on a tiny base."""

from pathlib import Path

import pytest
import torch
import transformers

from fakes.checkpoints import write_checkpoint
from hekaton.engine.demo_weights import BASE, NAMES, VARIANTS, Variant, _perturb, prepare


def network() -> torch.nn.Module:
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Embedding(300, 64), torch.nn.Linear(64, 256), torch.nn.LayerNorm(256))


def perturbed(variant: Variant) -> dict[str, torch.Tensor]:
    model = network()
    _perturb(model, variant)
    return model.state_dict()


def test_noise_is_the_same_for_a_seed_and_another_for_another() -> None:
    one, again, other = (perturbed(Variant("v", seed, 0.02)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["1.weight"], other["1.weight"])


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_noise_is_relative_to_each_matrix_and_spares_vectors(noise: float) -> None:
    before, after = network().state_dict(), perturbed(Variant("v", 1, noise))
    for name, weights in before.items():
        if weights.dim() > 1:
            ratio = float((after[name] - weights).std() / weights.std())
            assert ratio == pytest.approx(noise, rel=0.03)
        else:
            assert torch.equal(after[name], weights)


def test_what_is_missing_is_derived_and_what_is_there_is_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / BASE, "llama")
    told: list[str] = []
    prepare(tmp_path, told.append)
    assert told == [f"deriving {variant.name}" for variant in VARIANTS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    for variant in VARIANTS:
        assert f"seed {variant.seed}" in (tmp_path / variant.name / "README.md").read_text()
        transformers.AutoTokenizer.from_pretrained(tmp_path / variant.name, local_files_only=True)
    prepare(tmp_path, told.append)
    assert len(told) == len(VARIANTS)
