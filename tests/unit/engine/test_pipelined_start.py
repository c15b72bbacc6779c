"""Steps of models whose weights are still on their way: exact, and cleanly ended if the rest never comes."""

import select
from collections.abc import Callable, Iterator

import pytest
import torch

from fakes.tinymodels import DEVICE, Driver, TinyModel, prompt_of, wait_for_load
from hekaton.engine.copier import Piece
from hekaton.engine.reference import Comparison
from hekaton.engine.supported import ARCHITECTURES
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.errors import EngineFailed
from hekaton.facts import Sampling

NEW_TOKENS = 8
GREEDY = Sampling(max_tokens=NEW_TOKENS, seed=1)
LOAD_S = 0.15
"""Of a tiny model, over the limited bus."""
Oracle = Callable[[str, list[int], list[int]], Comparison]


def slow_engine(model: TinyModel, name: str) -> TransformersEngine:
    """Its bus brings the model in some fifteen pieces."""
    nbytes = model.image.nbytes
    engine = TransformersEngine(DEVICE, nbytes + (4 << 20), copy_bytes_per_s=int(nbytes / LOAD_S))
    # Whoever computes with what has not come is found out.
    engine._buffer.fill_(255)
    engine.add_model(name, model.prepared.spec, str(model.checkpoint))
    engine.provide_image(name, model.image)
    return engine


def begin(engine: TransformersEngine, name: str) -> None:
    """Begins a load and returns when its first piece is there."""
    assert engine.begin_load(name)
    assert name not in engine.startable()
    while name not in engine.startable():
        assert select.select([engine.fileno()], [], [], 30.0)[0]
        assert engine.finished_loads() == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_that_begins_with_the_first_weights_gives_the_tokens_of_transformers(
    models: dict[str, TinyModel], oracle: Oracle, name: str
) -> None:
    engine = slow_engine(models[name], name)
    driver = Driver(engine)
    driver.submit("r", name, prompt_of(20, 3), GREEDY)
    (item,) = driver.items(["r"], 512)
    begin(engine, name)
    assert engine.loading() == {name}
    request = driver.requests["r"]
    request.produced += [one.token_id for one in engine.step(name, [item]) if one is not None]
    request.computed = 20
    wait_for_load(engine, name)
    assert engine.resident() == engine.startable() == {name}
    while not request.finish:
        driver.step(name, ["r"])
    assert oracle(name, prompt_of(20, 3), request.produced).first_difference is None
    driver.close()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_part_waits_for_the_last_of_its_own_weights_only(models: dict[str, TinyModel], name: str) -> None:
    """Most of the tree may compute before the image has come; what it is made of has all come when it does."""
    model = models[name]
    engine = slow_engine(model, name)
    parts = engine._models[name].gates
    assert parts[0].nbytes == 0, "weights that belong to no part"
    waits = sorted(part.nbytes for part in parts)
    assert len(set(waits)) >= 4
    assert waits[-1] > model.image.nbytes - 256 * 8
    assert waits[len(waits) // 2] < model.image.nbytes
    engine.close()


def test_a_load_that_fails_in_mid_step_ends_the_step_and_frees_the_device(models: dict[str, TinyModel]) -> None:
    engine = slow_engine(models["llama"], "llama")
    driver = Driver(engine)
    driver.submit("r", "llama", prompt_of(20, 3), GREEDY)
    (item,) = driver.items(["r"], 512)
    begin(engine, "llama")
    job = engine._models["llama"].job
    assert job is not None

    def broken(pieces: Iterator[Piece]) -> Iterator[Piece]:
        yield next(pieces)
        raise RuntimeError("bus error")

    job.pieces = broken(job.pieces)
    for _ in range(2):
        with pytest.raises(EngineFailed, match="bus error"):
            engine.step("llama", [item])
    assert [load.error for load in engine.finished_loads()] == ["bus error"]
    assert engine.startable() == frozenset()
    assert engine.weights_bytes() == 0
    driver.close()


def test_no_hook_is_left_on_the_tree(models: dict[str, TinyModel]) -> None:
    engine = slow_engine(models["llama"], "llama")
    driver = Driver(engine)
    driver.submit("r", "llama", prompt_of(20, 3), GREEDY)
    (item,) = driver.items(["r"], 512)
    begin(engine, "llama")
    engine.step("llama", [item])
    skeleton = engine._models["llama"].skeleton
    assert skeleton is not None
    assert not any(module._forward_pre_hooks for module in skeleton.module.modules())
    wait_for_load(engine, "llama")
    driver.close()


def test_an_urgent_load_overtakes_one_that_has_begun(models: dict[str, TinyModel]) -> None:
    first, second = models["llama"], models["llama-2"]
    nbytes = first.image.nbytes
    engine = TransformersEngine(DEVICE, 2 * nbytes + (1 << 20), copy_bytes_per_s=int(nbytes / LOAD_S))
    for name, model in (("first", first), ("second", second)):
        engine.add_model(name, model.prepared.spec, "")
        engine.provide_image(name, model.image)
    begin(engine, "first")
    assert engine.begin_load("second")
    engine.hurry("second")
    ended: list[str] = []
    while len(ended) < 2:
        assert select.select([engine.fileno()], [], [], 30.0)[0]
        ended += [load.model for load in engine.finished_loads()]
    assert ended == ["second", "first"]
    for name in ended:
        extent = engine._models[name].extent
        source = engine._models[name].source
        assert extent is not None
        assert source is not None
        assert torch.equal(engine._buffer[extent.start : extent.end], source)
    engine.close()
