"""Weights and KV that were moved on the device give the tokens that they would have given."""

from collections.abc import Callable
from itertools import cycle

import pytest
import torch

from fakes.tinymodels import Driver, TinyModel, engine_for, prompt_of, switch, wait_for_load
from hekaton.engine.reference import Comparison
from hekaton.engine.weights import move
from hekaton.facts import Sampling

GREEDY = Sampling(max_tokens=24, seed=1)
Oracle = Callable[[str, list[int], list[int]], Comparison]


@pytest.mark.parametrize(
    "order", [("llama", "qwen2", "gpt2"), ("gpt2", "llama", "qwen3"), ("mistral", "gpt2", "llama")]
)
def test_tokens_stay_exact_when_weights_and_kv_make_room_at_every_turn(
    models: dict[str, TinyModel], oracle: Oracle, order: tuple[str, ...]
) -> None:
    """Two of three models fit; who leaves is not always the one whose place would do."""
    sizes = sorted(models[name].image.nbytes for name in order)
    driver = Driver(engine_for({name: models[name] for name in order}, sizes[1] + 500_000))
    engine = driver.engine
    for name in order:
        for length in (3, 40):
            driver.submit(f"{name}/{length}", name, prompt_of(length, 1), GREEDY)
    for name in order[:2]:
        switch(engine, name)
    moves = 0
    for absent in cycle(order):
        if not any(driver.unfinished(name) for name in order):
            break
        engine.evict(absent)
        before = {name: engine._models[name].extent for name in engine.resident()}
        for name in order:
            if name != absent:
                assert engine.begin_load(name), "the bytes suffice"
                wait_for_load(engine, name)
        for name in sorted(engine.resident()):
            driver.step(name, driver.unfinished(name), 17)
        engine.check_integrity()
        moves += sum(engine._models[name].extent != extent for name, extent in before.items())
    assert moves
    for request_id, request in driver.requests.items():
        assert oracle(request.model, list(request.prompt), request.produced).first_difference is None, request_id
    driver.close()


@pytest.mark.parametrize("shift", [1, -1, 700, -700, 40 << 20, -(40 << 20)])
def test_bytes_that_move_onto_themselves_arrive_whole(shift: int) -> None:
    nbytes = (35 << 20) + 13
    start = 41 << 20
    buffer = torch.randint(0, 256, (start + nbytes + (41 << 20),), dtype=torch.uint8)
    content = buffer[start : start + nbytes].clone()
    move(buffer, start, start + shift, nbytes)
    assert torch.equal(buffer[start + shift : start + shift + nbytes], content)
