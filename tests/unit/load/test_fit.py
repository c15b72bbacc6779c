import pytest

from hekaton.client import Model
from hekaton.errors import HekatonError, InvalidArgument, ModelNotFound
from hekaton.facts import ModelSpec, ModelState, Slo
from hekaton.load.fit import fitted, parse_slos, ready, slos
from hekaton.sim.workload import Arrival


def model(name: str, state: ModelState = ModelState.READY) -> Model:
    spec = ModelSpec("d", "llama", "float32", 1000, 10, max_context_tokens=100, vocab_size=256)
    return Model(name, "source", state, Slo(10.0, 0.1), spec, "", (), ())


def test_only_models_that_are_ready_are_asked() -> None:
    there = [model("a"), model("b", ModelState.PREPARING)]
    assert list(ready(there, [])) == list(ready(there, ["a"])) == ["a"]
    with pytest.raises(ModelNotFound, match="does not serve b; it serves a"):
        ready(there, ["b"])
    with pytest.raises(InvalidArgument, match="models add"):
        ready([], [])


@pytest.mark.parametrize(
    ("asked", "sent"),
    [((60, 40), (60, 40)), ((90, 40), (60, 40)), ((30, 500), (30, 70)), ((500, 500), (50, 50))],
)
def test_requests_are_cut_to_what_a_context_holds(asked: tuple[int, int], sent: tuple[int, int]) -> None:
    arrivals, shortened = fitted([Arrival(0.0, "a", *asked)], {"a": model("a")})
    assert (arrivals[0].input_tokens, arrivals[0].output_tokens) == sent
    assert shortened == (asked != sent)


def test_a_model_s_own_objective_goes_before_that_of_all_and_is_stretched() -> None:
    models = {name: model(name) for name in ("a", "b")}
    assert slos(models, None, 0.2, parse_slos(["b=1:0.05"]), scale=2.0) == {"a": Slo(20.0, 0.4), "b": Slo(2.0, 0.1)}


@pytest.mark.parametrize("text", ["a", "a=1", "=1:1", "a=0:1", "a=1:x"])
def test_a_malformed_objective_is_refused(text: str) -> None:
    with pytest.raises(HekatonError, match="NAME=TTFT:TBT"):
        parse_slos([text])
