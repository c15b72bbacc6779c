"""Real models on a device too small for two of them: under any schedule the tokens are those of transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fakes.tinymodels import DEVICE, Driver, TinyModel, engine_for, prompt_of, switch
from hekaton.engine.attention import Feed
from hekaton.engine.forward import Forward
from hekaton.engine.interface import StepItem
from hekaton.engine.kv import BlockShape
from hekaton.engine.reference import Comparison
from hekaton.engine.skeleton import Skeleton
from hekaton.engine.supported import ARCHITECTURES
from hekaton.engine.swaps import _checksum
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.facts import Sampling

SPARE_BYTES = 600_000
"""Room for KV; less than any model's weights."""
HOST_BYTES = 2_000_000
PROMPTS = (3, 20, 61)
"""Lengths; the last is beyond any sliding window here and takes several blocks."""
NEW_TOKENS = 30
GREEDY = Sampling(max_tokens=NEW_TOKENS, seed=1)
SAMPLED = replace(
    GREEDY,
    temperature=0.8,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    logit_bias={5: 1.0},
    stop_token_ids=(7,),
    min_tokens=NEW_TOKENS,
    logprobs=2,
)
"""Everything that looks at a request's past: the prompt, the output, and where the one ends."""
PAIRS = (
    ("llama", "llama-2"),
    ("qwen2", "gpt2"),
    ("qwen3", "mistral"),
    ("gpt_neox", "gemma"),
    ("phi", "mixtral"),
    ("qwen3_moe", "gemma2"),
    ("gemma3_text", "phi3"),
    ("qwen2_moe", "olmo2"),
)
Oracle = Callable[[str, list[int], list[int]], Comparison]


@dataclass(frozen=True, slots=True)
class Op:
    """One step of a schedule: which model, which of its requests, in what chunks, and whose KV goes before."""

    model: int
    who: int
    chunk: int
    drop: int | None
    swap: tuple[int, ...]
    """Of both models: whose KV goes to the host."""


SCHEDULES = st.lists(
    st.builds(
        Op,
        model=st.integers(0, 1),
        who=st.integers(1, 2 ** len(PROMPTS) - 1),
        chunk=st.integers(1, 40),
        drop=st.one_of(st.none(), st.none(), st.none(), st.integers(0, len(PROMPTS) - 1)),
        swap=st.lists(st.integers(0, 2 * len(PROMPTS) - 1), max_size=4, unique=True).map(tuple),
    ),
    min_size=4,
    max_size=30,
)


def driver_for(models: dict[str, TinyModel], names: tuple[str, ...], sampled: bool = False) -> Driver:
    """A driver with a request for each model and prompt length, on a device that holds one model at a time."""
    driver = Driver(engine_for({name: models[name] for name in names}, SPARE_BYTES, HOST_BYTES))
    for name in names:
        for length in PROMPTS:
            sampling = replace(SAMPLED, seed=length) if sampled else GREEDY
            driver.submit(f"{name}/{length}", name, prompt_of(length, 1), sampling)
    return driver


def follow(driver: Driver, names: tuple[str, ...], schedule: list[Op]) -> None:
    """Carries a schedule out, then everything else with a switch at every token."""
    for op in schedule:
        name = names[op.model]
        if op.drop is not None:
            driver.drop_kv(f"{name}/{PROMPTS[op.drop]}")
        for index in op.swap:
            driver.swap_out(f"{names[index % 2]}/{PROMPTS[index // 2]}")
        chosen = {f"{name}/{length}" for bit, length in enumerate(PROMPTS) if op.who >> bit & 1}
        driver.step(name, [request_id for request_id in driver.unfinished(name) if request_id in chosen], op.chunk)
    driver.finish(names)


def assert_as_transformers(driver: Driver, oracle: Oracle) -> None:
    ties = 0
    for request_id, request in driver.requests.items():
        found = oracle(request.model, list(request.prompt), request.produced)
        assert found.first_difference is None, f"{request_id} differs from token {found.first_difference} on"
        assert len(request.produced) == NEW_TOKENS
        assert len(set(request.produced)) > NEW_TOKENS / 4, "a model that repeats itself proves nothing"
        ties += found.ties
    assert ties <= len(driver.requests) * NEW_TOKENS / 1000


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
@settings(max_examples=6)
@given(schedule=SCHEDULES)
def test_greedy_tokens_are_those_of_transformers_under_any_schedule(
    models: dict[str, TinyModel], oracle: Oracle, names: tuple[str, ...], schedule: list[Op]
) -> None:
    driver = driver_for(models, names)
    follow(driver, names, schedule)
    assert_as_transformers(driver, oracle)
    driver.close()


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_two_models_that_do_not_fit_together_take_turns_at_every_token(
    models: dict[str, TinyModel], oracle: Oracle, names: tuple[str, ...]
) -> None:
    driver = driver_for(models, names)
    for name in names:
        driver.step(name, driver.unfinished(name))
    for name in names:
        switch(driver.engine, name)
        other = names[1 - names.index(name)]
        assert not driver.engine.begin_load(other)
        assert driver.engine.resident() == {name}
    driver.finish(names)
    assert_as_transformers(driver, oracle)
    driver.close()


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_sampled_tokens_are_the_same_under_any_schedule(models: dict[str, TinyModel], names: tuple[str, ...]) -> None:
    alone = driver_for(models, names, sampled=True)
    for request_id, request in alone.requests.items():
        while request.finish is None:
            alone.step(request.model, [request_id])
    alone.close()
    expected = {request_id: alone.tokens(request_id) for request_id in alone.requests}
    assert len({tuple(tokens) for tokens in expected.values()}) == len(expected)
    assert all(len(alone.logprobs[request_id]) == NEW_TOKENS for request_id in expected)

    @settings(max_examples=2)
    @given(schedule=SCHEDULES)
    def check(schedule: list[Op]) -> None:
        driver = driver_for(models, names, sampled=True)
        follow(driver, names, schedule)
        assert {request_id: driver.tokens(request_id) for request_id in driver.requests} == expected
        for request_id, told in driver.logprobs.items():
            own = [one.logprob for one in alone.logprobs[request_id]]
            assert [one.logprob for one in told] == pytest.approx(own, abs=1e-4)
        driver.close()

    check()


class RememberingForward(Forward):
    """Remembers the logits of its last step."""

    last: Tensor

    def logits(self, skeleton: Skeleton, shape: BlockShape, items: Sequence[StepItem], feeds: Sequence[Feed]) -> Tensor:
        self.last = super().logits(skeleton, shape, items, feeds).clone()
        return self.last


@pytest.mark.parametrize("names", [*PAIRS, *(pair[::-1] for pair in PAIRS)], ids="+".join)
def test_logits_are_bitwise_equal_with_and_without_a_switch_between_steps(
    models: dict[str, TinyModel], names: tuple[str, str]
) -> None:
    name, other = names

    def run(switching: bool) -> list[Tensor]:
        engine = TransformersEngine(DEVICE, max(models[one].image.nbytes for one in names) + SPARE_BYTES)
        forward = engine._forward = RememberingForward(engine._device, engine._buffer)
        for one in names:
            engine.add_model(one, models[one].prepared.spec, "")
            engine.provide_image(one, models[one].image)
        driver = Driver(engine)
        for length in PROMPTS:
            driver.submit(f"r{length}", name, prompt_of(length, 2), GREEDY)
        driver.submit("other", other, prompt_of(40, 3), GREEDY)
        seen = []
        for _ in range(12):
            driver.step(name, [f"r{length}" for length in PROMPTS], 17)
            seen.append(forward.last)
            if switching:
                driver.step(other, ["other"])
        driver.close()
        return seen

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


# ---- the yardstick itself: a wrong KV block is noticed


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("mutation", ["zero", "swap", "zero on the host"])
def test_one_wrong_kv_block_breaks_nearly_every_stream(models: dict[str, TinyModel], name: str, mutation: str) -> None:
    streams = [f"s{index}" for index in range(20)]

    def run(mutate: bool) -> list[list[int]]:
        driver = Driver(engine_for({name: models[name]}, 4 << 20, 16 << 20))
        for index, stream in enumerate(streams):
            driver.submit(stream, name, prompt_of(40, index), replace(GREEDY, max_tokens=40))
        for _ in range(9):
            driver.step(name, streams)
        assert all(driver.swap_out(stream) for stream in streams if "host" in mutation)
        if mutate:
            break_blocks(driver.engine, name, streams, mutation)
        driver.finish([name])
        tokens = [driver.tokens(stream) for stream in streams]
        driver.close()
        return tokens

    pairs = list(zip(run(False), run(True), strict=True))
    assert all(right[:9] == wrong[:9] for right, wrong in pairs)
    assert sum(right != wrong for right, wrong in pairs) >= 0.95 * len(pairs)


def test_kv_that_changed_on_the_host_is_computed_again(models: dict[str, TinyModel], oracle: Oracle) -> None:
    driver = driver_for(models, ("llama",))
    for _ in range(9):
        driver.step("llama", driver.unfinished("llama"))
    streams = [request_id for request_id in driver.requests if driver.swap_out(request_id)]
    driver.engine._swaps.settle()
    host, shape = driver.engine._host, driver.engine._models["llama"].shape
    assert shape is not None
    for stream in streams:
        host.place(host.table(stream)[0], shape)[5] ^= 1
    driver.finish(["llama"])
    assert len(streams) == len(PROMPTS)
    assert_as_transformers(driver, oracle)
    driver.close()


def break_blocks(engine: TransformersEngine, model: str, streams: list[str], mutation: str) -> None:
    """Zeroes the third block of every stream, of 48 tokens so far, or puts that of its neighbour in its place."""
    shape = engine._models[model].shape
    assert shape is not None
    if mutation == "zero on the host":
        engine._swaps.settle()
        for stream in streams:
            block = engine._host.place(engine._host.table(stream)[2], shape).zero_()
            sums = engine._swaps._held[stream].sums
            assert isinstance(sums, list)
            sums[2] = _checksum(block)
        return
    cache = engine._forward.pages(shape).blocks
    blocks = [engine._kv.table(stream)[2] for stream in streams]
    if mutation == "zero":
        cache[blocks] = 0
    else:
        cache[blocks] = cache[blocks[1:] + blocks[:1]].clone()
