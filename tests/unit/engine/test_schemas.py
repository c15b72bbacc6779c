"""Real models whose outputs follow JSON schemas to their end, with the same tokens whatever happens to a request."""

import json
from collections.abc import Iterator
from dataclasses import replace

import jsonschema
import pytest

from fakes.schemas import schema_of
from fakes.tinymodels import Driver, TinyModel, engine_for, prepare, prompt_of, switch
from hekaton.engine.interface import StepItem
from hekaton.engine.tiny import END, byte_tokenizer
from hekaton.errors import EngineFailed
from hekaton.facts import FinishReason, Sampling

SPARE_BYTES, HOST_BYTES = 24 << 20, 8 << 20
SAMPLED = Sampling(max_tokens=440, seed=1, temperature=1.0, top_p=0.95, stop_token_ids=(END,), frequency_penalty=0.1)
TOKENIZER = byte_tokenizer()
GREEDY = replace(SAMPLED, temperature=0.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    root = tmp_path_factory.mktemp("models")
    return {name: prepare(root / name, name, eos_token_id=END) for name in ("llama", "qwen3")}


@pytest.fixture
def driver(models: dict[str, TinyModel]) -> Iterator[Driver]:
    driver = Driver(engine_for(models, SPARE_BYTES, HOST_BYTES))
    yield driver
    driver.close()


def submit(driver: Driver, model: str, seeds: range) -> dict[str, dict[str, object]]:
    """A request for each seed, every other one greedy."""
    schemas = {f"{model}/{seed}": schema_of(seed) for seed in seeds}
    for seed, (request_id, schema) in zip(seeds, schemas.items(), strict=True):
        sampling = replace(SAMPLED if seed % 2 else GREEDY, json_schema=json.dumps(schema), seed=seed)
        driver.submit(request_id, model, prompt_of(8, seed), sampling)
    return schemas


def check(driver: Driver, request_id: str, schema: dict[str, object]) -> None:
    """It ended by itself, as what its schema describes."""
    request = driver.requests[request_id]
    assert request.finish is FinishReason.STOP
    assert request.produced[-1] == END
    jsonschema.validate(json.loads(TOKENIZER.decode(request.produced[:-1])), schema)


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_outputs_follow_their_schemas(driver: Driver, start: int) -> None:
    schemas = submit(driver, "llama", range(start, start + 50))
    driver.finish(["llama"])
    for request_id, schema in schemas.items():
        check(driver, request_id, schema)
        driver.engine.drop_kv(request_id)
    assert not driver.engine._constraints._kept


def test_an_interruption_changes_no_token(driver: Driver, models: dict[str, TinyModel]) -> None:
    """Two models take turns; KV goes to the host, is dropped, and travels to another engine, in mid-JSON."""
    expected = Driver(engine_for(models, SPARE_BYTES))
    schemas: dict[str, dict[str, object]] = {}
    for model in models:
        submit(expected, model, range(6))
        schemas |= submit(driver, model, range(6))
    expected.finish(list(models))
    for _ in range(5):
        for model in models:
            driver.step(model, driver.unfinished(model))
    for index, request_id in enumerate(schemas):
        if not driver.requests[request_id].finish:
            (driver.swap_out if index % 2 else driver.drop_kv)(request_id)
    other = Driver(engine_for(models, SPARE_BYTES, HOST_BYTES))
    moved = [one for one in schemas if one.endswith(("/3", "/4"))]
    for request_id in moved:
        driver.hand_over(request_id, other)
    for taker in (driver, other):
        taker.finish(list(models))
    for request_id, schema in schemas.items():
        taker = other if request_id in moved else driver
        check(taker, request_id, schema)
        assert taker.tokens(request_id) == expected.tokens(request_id)
    other.close()
    expected.close()


def test_a_schema_that_cannot_be_followed_fails_its_request_alone(driver: Driver) -> None:
    switch(driver.engine, "llama")
    items = []
    for request_id, schema in (("good", '{"type": "boolean"}'), ("bad", '{"type": "nothing"}')):
        assert driver.engine.grow_kv(request_id, "llama", 1)
        items.append(StepItem(request_id, (1,), 0, replace(GREEDY, json_schema=schema), 0))
    with pytest.raises(EngineFailed, match="request bad: its schema cannot be followed"):
        driver.engine.step("llama", items)
    (sampled,) = driver.engine.step("llama", items[:1])
    assert sampled is not None
    assert TOKENIZER.decode([sampled.token_id]) in ("t", "f")
    for request_id in ("good", "bad"):
        driver.engine.drop_kv(request_id)
