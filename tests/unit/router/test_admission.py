"""What is accepted, and what each refusal says."""

import pytest

from hekaton.errors import HekatonError, InvalidArgument, ModelNotReady, ModelTooLarge, NoWorker
from hekaton.facts import CatalogEntry, ModelSpec, ModelState, Slo
from hekaton.rpc import convert
from hekaton.v1 import common_pb2
from hekaton_router import admission
from hekaton_router.admission import Device

SPEC = ModelSpec("d", "llama", "float32", 1000, 10, 100, 50, (2, 3))
EMULATED = ModelSpec("e", "emulated", "bfloat16", 1000, 10, 100, 50)


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


def test_a_class_is_so_many_times_the_models_objective_where_the_request_names_no_seconds() -> None:
    own = Slo(10, 0.5)
    for slo_class, expected in (
        (common_pb2.SLO_CLASS_INTERACTIVE, Slo(5, 0.5)),
        (common_pb2.SLO_CLASS_STANDARD, own),
        (common_pb2.SLO_CLASS_BATCH, Slo(300, 2.5)),
    ):
        assert admission.decide_slo(common_pb2.Slo(slo_class=slo_class), own) == expected
    half = common_pb2.Slo(ttft=convert.duration(2), slo_class=common_pb2.SLO_CLASS_BATCH)
    assert admission.decide_slo(half, own) == Slo(2, 2.5)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (
            common_pb2.Slo(ttft=convert.duration(1), tbt=convert.duration(1), slo_class=common_pb2.SLO_CLASS_BATCH),
            "changes nothing",
        ),
        (common_pb2.Slo.FromString(b"\x18\x09"), "no class 9"),
    ],
)
def test_a_class_without_effect_or_meaning_is_refused(message: common_pb2.Slo, says: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"slo\.slo_class.*{says}"):
        admission.decide_slo(message, Slo(10, 0.1))


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
