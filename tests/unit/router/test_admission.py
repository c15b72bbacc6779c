"""What is accepted, and what each refusal says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hekaton.errors import HekatonError, InvalidArgument, ModelNotReady, ModelTooLarge, NoWorker
from hekaton.facts import CatalogEntry, ModelSpec, ModelState, Sampling, Slo
from hekaton.rpc import convert
from hekaton.v1 import common_pb2
from hekaton_router import admission
from hekaton_router.admission import Device

SPEC = ModelSpec("d", "llama", "float32", 1000, 10, 100, 50, (2, 3))
EMULATED = ModelSpec("e", "emulated", "bfloat16", 1000, 10, 100, 50)


def decide(message: common_pb2.Sampling, prompt_tokens: int = 10, default: int = 256) -> Sampling:
    return admission.decide_sampling(
        message, SPEC, prompt_tokens=prompt_tokens, default_max_tokens=default, drawn_seed=7
    )


def test_what_the_client_leaves_open_is_decided() -> None:
    sampling = decide(common_pb2.Sampling())
    assert (sampling.max_tokens, sampling.seed, sampling.temperature, sampling.top_p, sampling.top_k) == (
        90,
        7,
        0,
        1,
        0,
    )
    assert sampling.stop_token_ids == SPEC.eos_token_ids
    assert decide(common_pb2.Sampling(), default=20).max_tokens == 20


def test_stop_tokens_are_the_requests_and_the_models_unless_ignored() -> None:
    assert decide(common_pb2.Sampling(stop_token_ids=[9, 2])).stop_token_ids == (2, 3, 9)
    assert decide(common_pb2.Sampling(stop_token_ids=[9], ignore_eos=True)).stop_token_ids == (9,)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (common_pb2.Sampling(temperature=-0.1), "temperature"),
        (common_pb2.Sampling(temperature=math.nan), "temperature"),
        (common_pb2.Sampling(temperature=math.inf), "temperature"),
        (common_pb2.Sampling(top_p=0), "top_p"),
        (common_pb2.Sampling(top_p=1.5), "top_p"),
        (common_pb2.Sampling(top_p=math.nan), "top_p"),
        (common_pb2.Sampling(seed=1 << 63), "seed"),
        (common_pb2.Sampling(max_tokens=0), "max_tokens"),
        (common_pb2.Sampling(max_tokens=91), r"10 tokens.*91.*100 tokens.*at most 90"),
        (common_pb2.Sampling(stop_token_ids=range(65)), "at most 64"),
        (common_pb2.Sampling(stop_token_ids=[50]), "vocabulary size 50"),
    ],
)
def test_sampling_out_of_range_is_refused(message: common_pb2.Sampling, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        decide(message)


@given(st.integers(1, 120), st.one_of(st.none(), st.integers(0, 200)), st.integers(1, 200))
def test_an_accepted_request_never_exceeds_the_context(prompt: int, max_tokens: int | None, default: int) -> None:
    try:
        sampling = decide(common_pb2.Sampling(max_tokens=max_tokens), prompt, default)
    except InvalidArgument:
        return
    assert 1 <= sampling.max_tokens <= SPEC.max_context_tokens - prompt


@pytest.mark.parametrize("request_id", ["", "a" * 129, "-a", "a b", "a\n", "é", "a/b"])
def test_a_request_id_out_of_pattern_is_refused(request_id: str) -> None:
    with pytest.raises(InvalidArgument, match="request_id"):
        admission.check_request_id(request_id)


def test_the_longest_request_id_is_accepted() -> None:
    admission.check_request_id("a" * 128)
    admission.check_request_id("A-1.b_c:2")


@pytest.mark.parametrize(("ids", "says"), [([], "empty"), ([1, 50], "50 is not below .* 50")])
def test_a_prompt_must_hold_known_tokens(ids: list[int], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        admission.check_prompt(ids, SPEC)


def test_an_objective_takes_its_missing_half_from_the_model() -> None:
    message = common_pb2.Slo(ttft=convert.duration(2.5))
    assert admission.decide_slo(message, Slo(10, 0.1)) == Slo(2.5, 0.1)


@pytest.mark.parametrize("value_s", [0.0, -1.0, 1e6])
def test_an_objective_out_of_range_is_refused(value_s: float) -> None:
    with pytest.raises(InvalidArgument, match=r"slo\.tbt"):
        admission.decide_slo(common_pb2.Slo(tbt=convert.duration(value_s)), Slo(10, 0.1))


@pytest.mark.parametrize("state", [ModelState.PREPARING, ModelState.FAILED])
def test_a_model_that_is_not_ready_is_refused(state: ModelState) -> None:
    with pytest.raises(ModelNotReady, match=state.value):
        admission.ready_spec(CatalogEntry("m", "s", "", Slo(1, 1), state, None, "torn"))


@pytest.mark.parametrize(
    ("spec", "devices", "error"),
    [
        (SPEC, [], NoWorker),
        (SPEC, [Device("emulated:h800", 10**9)], NoWorker),
        (EMULATED, [Device("cpu", 10**9)], NoWorker),
        (SPEC, [Device("cpu", 1159), Device("emulated:h800", 10**9)], ModelTooLarge),
        (SPEC, [Device("cpu", 10), Device("cpu", 1160)], None),
        (EMULATED, [Device("emulated:h800", 1160)], None),
    ],
)
def test_a_model_needs_a_device_that_can_hold_it(
    spec: ModelSpec, devices: list[Device], error: type[HekatonError] | None
) -> None:
    if error is None:
        admission.check_pool("m", spec, devices)
        return
    with pytest.raises(error):
        admission.check_pool("m", spec, devices)


def test_the_kv_of_prompt_and_output_must_fit_beside_the_weights() -> None:
    devices = [Device("cpu", 1000 + 2 * 160)]
    admission.check_room("m", SPEC, 32, devices)
    with pytest.raises(InvalidArgument, match=r"33 tokens.* 480 bytes.* 320 beside"):
        admission.check_room("m", SPEC, 33, devices)
