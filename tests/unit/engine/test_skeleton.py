"""Module trees: bound to weights where they lie, shared by models of one configuration."""

import json

import pytest
import torch
import transformers
from torch import nn

from fakes.tinymodels import TinyModel, engine_for, switch
from hekaton.engine.skeleton import Skeleton
from hekaton.engine.supported import ARCHITECTURES


def bound(engine_model: TinyModel, name: str) -> tuple[Skeleton, torch.Tensor]:
    engine = engine_for({name: engine_model}, 600_000)
    switch(engine, name)
    skeleton, _ = engine.bind(name)
    engine.close()
    return skeleton, engine._buffer


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_views_of_the_device_and_equal_the_checkpoint(models: dict[str, TinyModel], name: str) -> None:
    skeleton, buffer = bound(models[name], name)
    plain = transformers.AutoModelForCausalLM.from_pretrained(models[name].checkpoint, local_files_only=True)
    start, end = buffer.data_ptr(), buffer.data_ptr() + buffer.numel()
    theirs = dict(plain.state_dict())
    ours = skeleton.module.state_dict()
    assert set(ours) == set(theirs)
    for key, tensor in ours.items():
        assert start <= tensor.data_ptr() < end
        assert torch.equal(tensor, theirs[key])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_buffers_that_no_checkpoint_holds_are_rebuilt(models: dict[str, TinyModel], name: str) -> None:
    skeleton, _ = bound(models[name], name)
    plain = transformers.AutoModelForCausalLM.from_pretrained(models[name].checkpoint, local_files_only=True)
    theirs = dict(plain.named_buffers())
    ours = dict(skeleton.module.named_buffers())
    assert set(ours) == set(theirs)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "gemma3_text"])
def test_tied_names_are_one_parameter(models: dict[str, TinyModel], name: str) -> None:
    module = bound(models[name], name)[0].module
    assert isinstance(module, transformers.PreTrainedModel)
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight


def test_models_of_one_configuration_share_a_tree_and_others_do_not(models: dict[str, TinyModel]) -> None:
    names = ("llama", "llama-2", "qwen2")
    engine = engine_for({name: models[name] for name in names}, 4 << 20)
    trees = {}
    for name in names:
        switch(engine, name)
        trees[name] = engine.bind(name)[0]
    assert trees["llama"] is trees["llama-2"]
    assert trees["llama"] is not trees["qwen2"]
    engine.close()


def test_a_bind_replaces_every_parameter(models: dict[str, TinyModel]) -> None:
    skeleton = Skeleton(models["llama"].prepared.config_json, torch.float32, torch.device("cpu"))
    names = skeleton.missing(set())
    for fill in (1.0, 2.0):
        weights = {name: nn.Parameter(torch.full(skeleton.shape_of(name), fill), requires_grad=False) for name in names}
        skeleton.bind(str(fill), weights)
        assert all(bool((tensor == fill).all()) for tensor in skeleton.module.parameters())
        assert skeleton.bound == str(fill)


def test_nothing_of_a_tree_stays_on_meta(models: dict[str, TinyModel]) -> None:
    config = json.loads(models["qwen3"].prepared.config_json)
    assert "_name_or_path" not in config
    module = bound(models["qwen3"], "qwen3")[0].module
    assert not [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.is_meta]
