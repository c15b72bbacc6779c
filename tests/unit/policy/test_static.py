"""Static sharing: multiplex and dedicated."""

from collections.abc import Mapping

import pytest

from fakes.views import worker_view
from hekaton.policy.static import SharedTurns, StaticPlacement
from hekaton.policy.types import ModelCosts, PlacementRequest, PoolWorker, RequestView, WorkerView

NOW_S = 100.0
COSTS = ModelCosts(10, 1, 1.0, 0.01, 0.001, 0.01, 0.0, 0.0)


def worker(name: str, resident: str = "", requests: Mapping[str, int] | None = None) -> PoolWorker:
    return PoolWorker(name, 40, frozenset(resident), frozenset(), requests or {})


def ask(model: str, weight_bytes: int = 10) -> PlacementRequest:
    return PlacementRequest("r", model, 1, 1, weight_bytes, 1, 10.0, 0.1)


def test_a_model_has_one_place_for_good_and_the_surplus_is_refused() -> None:
    policy, pool = StaticPlacement(models=2), [worker("w1"), worker("w2")]
    assert [policy.place(ask(model), pool) for model in "abcde"] == ["w1", "w2", "w1", "w2", None]
    assert [policy.place(ask(model), pool) for model in "dcba"] == ["w2", "w1", "w2", "w1"]


def test_dedicated_gives_each_model_a_worker() -> None:
    policy, pool = StaticPlacement(models=1, kv_share=0.0), [worker("w1"), worker("w2")]
    assert [policy.place(ask(model), pool) for model in "abca"] == ["w1", "w2", None, "w1"]


def test_weights_leave_their_share_to_kv() -> None:
    policy, pool = StaticPlacement(models=3, kv_share=0.25), [worker("w1")]
    assert [policy.place(ask(model, 14), pool) for model in "abc"] == ["w1", "w1", None]


def test_a_model_stays_where_it_is_already() -> None:
    assert StaticPlacement().place(ask("a"), [worker("w1"), worker("w2", resident="a")]) == "w2"


def test_models_of_a_worker_that_is_gone_find_another_place() -> None:
    policy = StaticPlacement(models=1)
    assert policy.place(ask("a"), [worker("w1"), worker("w2")]) == "w1"
    assert policy.place(ask("a"), [worker("w2")]) == "w2"


def view(models: str, resident: str, running: str | None = None, ran_s: float = 0.0) -> WorkerView:
    requests = (RequestView(f"r-{model}", model, 0.0, 10.0, 0.1, 0, 1, 1) for model in models)
    return worker_view(requests, COSTS, 100, resident=resident, running=running, started_s=NOW_S - ran_s)


def test_models_take_turns_and_none_leaves() -> None:
    policy, running, turns = SharedTurns(slice_s=0.1), None, []
    for _ in range(4):
        turn = policy.next_turn(view("abc", "abc", running, ran_s=0.1), NOW_S)
        assert turn is not None
        assert (turn.evict, turn.budget_s) == ((), 0.1)
        turns.append(turn.model)
        running = turn.model
    assert turns == ["a", "b", "c", "a"]


def test_a_model_keeps_its_slice_when_something_happens_within_it() -> None:
    turn = SharedTurns(slice_s=0.1).next_turn(view("ab", "ab", "b", ran_s=0.04), NOW_S)
    assert turn is not None
    assert turn.model == "b"
    assert turn.budget_s == pytest.approx(0.06)


def test_absent_models_are_loaded_while_another_runs() -> None:
    turn = SharedTurns().next_turn(view("abc", "b"), NOW_S)
    assert turn is not None
    assert (turn.model, turn.prefetch) == ("b", ("a", "c"))
    assert SharedTurns().next_turn(view("", "ab"), NOW_S) is None
