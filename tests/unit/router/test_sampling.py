"""Every field of sampling is decided, or refused by its name and limit."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hekaton.errors import InvalidArgument
from hekaton.facts import ModelSpec, Sampling
from hekaton.v1 import common_pb2
from hekaton_router.sampling import decide_sampling

SPEC = ModelSpec("d", "llama", "float32", 1000, 10, 100, 50, (2, 3))
Message = common_pb2.Sampling


def decide(message: Message, prompt_tokens: int = 10, default: int = 256, spec: ModelSpec = SPEC) -> Sampling:
    return decide_sampling(message, spec, prompt_tokens=prompt_tokens, default_max_tokens=default, drawn_seed=7)


def test_what_the_client_leaves_open_is_decided() -> None:
    assert decide(Message()) == Sampling(max_tokens=90, seed=7, stop_token_ids=(2, 3))
    assert decide(Message(), default=20).max_tokens == 20
    assert decide(Message(min_tokens=30), default=20).max_tokens == 30


def test_what_the_client_says_is_kept() -> None:
    """All numbers are exact in single precision."""
    asked: dict[str, Any] = {
        "max_tokens": 9,
        "seed": 11,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 4,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {1: 2.0, 49: -100.0},
        "min_tokens": 3,
        "logprobs": 0,
    }
    assert decide(Message(json_schema="{}")).json_schema == "{}"
    message = Message(**asked, stop=["a", "b"], stop_token_ids=[9])
    assert decide(message) == Sampling(**asked, stop=("a", "b"), stop_token_ids=(2, 3, 9))


def test_stop_tokens_are_the_requests_and_the_models_unless_ignored() -> None:
    assert decide(Message(stop_token_ids=[9, 2])).stop_token_ids == (2, 3, 9)
    assert decide(Message(stop_token_ids=[9], ignore_eos=True)).stop_token_ids == (9,)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Message(temperature=-0.1), r"sampling\.temperature must be from 0 to 100, not -0\.1"),
        (Message(temperature=math.nan), r"sampling\.temperature"),
        (Message(temperature=math.inf), r"sampling\.temperature"),
        (Message(top_p=0), r"sampling\.top_p must be above 0 to 1"),
        (Message(top_p=1.5), r"sampling\.top_p"),
        (Message(top_p=math.nan), r"sampling\.top_p"),
        (Message(min_p=-0.1), r"sampling\.min_p"),
        (Message(min_p=1.1), r"sampling\.min_p"),
        (Message(repetition_penalty=0), r"sampling\.repetition_penalty must be above 0 to 10"),
        (Message(repetition_penalty=math.inf), r"sampling\.repetition_penalty"),
        (Message(presence_penalty=2.5), r"sampling\.presence_penalty must be from -2 to 2"),
        (Message(frequency_penalty=-2.5), r"sampling\.frequency_penalty"),
        (Message(logit_bias={1: 101}), r"sampling\.logit_bias of token 1 .* -100 to 100"),
        (Message(logit_bias={1: math.nan}), r"sampling\.logit_bias"),
        (Message(logit_bias={50: 1}), r"sampling\.logit_bias.* vocabulary size 50"),
        (Message(logit_bias=dict.fromkeys(range(1025), 1.0)), r"sampling\.logit_bias may hold at most 1024"),
        (Message(seed=1 << 63), r"sampling\.seed"),
        (Message(max_tokens=0), r"sampling\.max_tokens"),
        (Message(max_tokens=91), r"10 tokens.*91.*100 tokens.*at most 90"),
        (Message(max_tokens=5, min_tokens=6), r"sampling\.min_tokens may be at most max_tokens, which is 5, not 6"),
        (Message(stop_token_ids=range(65)), r"sampling\.stop_token_ids may hold at most 64"),
        (Message(stop_token_ids=[50]), r"sampling\.stop_token_ids.* vocabulary size 50"),
        (Message(stop_token_ids=range(50), min_tokens=1), r"sampling\.min_tokens leaves no token"),
        (Message(stop=["x"] * 17), r"sampling\.stop may hold at most 16"),
        (Message(stop=["x", ""]), r"sampling\.stop.* 1 to 256"),
        (Message(stop=["x" * 257]), r"sampling\.stop.* 1 to 256"),
        (Message(logprobs=21), r"sampling\.logprobs must be from 0 to 20, not 21"),
        (Message(n=0), r"sampling\.n must be from 1 to 16"),
        (Message(n=17), r"sampling\.n must be from 1 to 16"),
        (Message(json_schema=""), r"sampling\.json_schema must have 1 to 16384 bytes, not 0"),
        (Message(json_schema="é" * 8193), r"sampling\.json_schema must have 1 to 16384 bytes, not 16386"),
        (Message(json_schema="{}", ignore_eos=True), r"sampling\.ignore_eos forbids the end"),
        (Message(json_schema="{}", min_tokens=1), r"sampling\.min_tokens forbids the end"),
    ],
)
def test_sampling_out_of_range_is_refused_by_name_and_limit(message: Message, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        decide(message)


def test_an_emulated_model_has_no_log_probabilities() -> None:
    with pytest.raises(InvalidArgument, match=r"sampling\.logprobs"):
        decide(Message(logprobs=0), spec=replace(SPEC, architecture="emulated"))


def test_a_schema_needs_a_model_with_an_end_that_is_not_emulated() -> None:
    with pytest.raises(InvalidArgument, match=r"sampling\.json_schema: an emulated model"):
        decide(Message(json_schema="{}"), spec=replace(SPEC, architecture="emulated"))
    with pytest.raises(InvalidArgument, match=r"sampling\.json_schema: this model has no end token"):
        decide(Message(json_schema="{}"), spec=replace(SPEC, eos_token_ids=()))


@given(st.integers(1, 120), st.one_of(st.none(), st.integers(0, 200)), st.integers(1, 200))
def test_an_accepted_request_never_exceeds_the_context(prompt: int, max_tokens: int | None, default: int) -> None:
    try:
        sampling = decide(Message(max_tokens=max_tokens), prompt, default)
    except InvalidArgument:
        return
    assert 1 <= sampling.max_tokens <= SPEC.max_context_tokens - prompt
