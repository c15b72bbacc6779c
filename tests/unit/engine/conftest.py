"""Tiny models of all architectures and what transformers says of them, made once for all tests here."""

from collections.abc import Callable

import pytest
import torch
import transformers

from fakes.tinymodels import TinyModel, prepare
from hekaton.engine import reference
from hekaton.engine.reference import Comparison
from hekaton.engine.supported import ARCHITECTURES

Oracle = Callable[[str, list[int], list[int]], Comparison]


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    """A float32 model of each architecture, and `llama-2`, of one configuration with `llama`."""
    seeds = {**dict.fromkeys(ARCHITECTURES, 1), "llama-2": 2}
    return {
        name: prepare(tmp_path_factory.mktemp(name), name.removesuffix("-2"), seed=seed) for name, seed in seeds.items()
    }


@pytest.fixture(scope="session")
def oracle(models: dict[str, TinyModel]) -> Oracle:
    """Compares greedy tokens of a model with transformers; the same question is asked only once."""
    loaded = {name: reference.load(str(model.checkpoint), "float32") for name, model in models.items()}
    known: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Comparison] = {}

    def compare(model: str, prompt: list[int], tokens: list[int]) -> Comparison:
        key = (model, tuple(prompt), tuple(tokens))
        if key not in known:
            known[key] = reference.compare(loaded[model], prompt, tokens)
        return known[key]

    return compare
