"""Rounds and quotas of Algorithm 2."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.views import worker_view
from hekaton.policy.aegaeon_decode import RoundTurns, alpha, quotas_s
from hekaton.policy.types import ModelCosts, RequestView, Role, WorkerView

NOW_S = 100.0
COSTS = ModelCosts(
    weight_bytes=10,
    kv_bytes_per_token=0,
    load_s=1.0,
    prefill_base_s=0.01,
    prefill_s_per_token=0.001,
    step_base_s=0.025,
    step_s_per_request=0.0,
    step_s_per_context_token=0.0,
)


def request(model: str, name: str = "", arrived_s: float = 0.0, context: int = 10) -> RequestView:
    return RequestView(name or f"r-{model}", model, arrived_s, 10.0, 0.1, 0, 1, context, None)


def view(
    requests: Sequence[RequestView],
    resident: str = "",
    running: str | None = None,
    ran_s: float = 0.0,
    now_s: float = NOW_S,
    costs: ModelCosts = COSTS,
    memory: int = 35,
    kv_bytes: Mapping[str, int] | None = None,
) -> WorkerView:
    return worker_view(
        requests,
        costs,
        memory,
        resident=resident,
        running=running,
        started_s=now_s - ran_s,
        kv=kv_bytes,
        role=Role.DECODE,
    )


def test_the_papers_example_three_batches_of_a_quarter_tbt_and_three_seconds_of_switches() -> None:
    n = [0.1 / 0.025] * 3
    assert alpha(n, switch_s=3.0, q_max_s=3.0) == pytest.approx(1.0)
    assert quotas_s(n, switch_s=3.0, q_max_s=3.0) == pytest.approx([3.0] * 3)
    assert alpha(n, switch_s=3.0, q_max_s=4.0) == pytest.approx(0.9375)
    assert quotas_s(n, switch_s=3.0, q_max_s=4.0) == pytest.approx([4.0] * 3)


def test_slow_batches_run_longer_for_the_same_reading_time() -> None:
    fast, slow = quotas_s([10.0, 5.0], switch_s=2.0, q_max_s=4.0)
    assert fast * 10.0 == pytest.approx(slow * 5.0)


def test_with_time_to_spare_the_floor_of_alpha_keeps_turns_short() -> None:
    assert alpha([10.0], switch_s=1.0, q_max_s=4.0) == 0.5
    assert quotas_s([10.0], switch_s=1.0, q_max_s=4.0) == pytest.approx([0.25])


def test_where_nothing_is_switched_a_turn_has_the_longest_quota() -> None:
    assert quotas_s([10.0, 5.0], switch_s=0.0, q_max_s=4.0) == [4.0, 4.0]


@given(st.lists(st.floats(0.05, 50), min_size=1, max_size=12), st.floats(0.01, 60), st.floats(0.1, 8))
def test_quotas_are_positive_at_most_the_longest_and_worth_the_same_reading_time(
    n: list[float], switch_s: float, q_max_s: float
) -> None:
    quotas = quotas_s(n, switch_s, q_max_s)
    assert all(0 < quota <= q_max_s * (1 + 1e-9) for quota in quotas)
    worth = [quota * steps for quota, steps in zip(quotas, n, strict=True)]
    assert worth == pytest.approx([worth[0]] * len(n))
    round_s = switch_s + sum(quotas)
    assert alpha(n, switch_s, q_max_s) == pytest.approx(round_s / worth[0])


def test_nothing_to_run_is_none() -> None:
    assert RoundTurns().next_turn(view([]), NOW_S) is None


def test_every_batch_of_a_round_has_its_turn_and_the_next_is_prefetched() -> None:
    policy = RoundTurns(q_max_s=3.0)
    asked = [request(model) for model in "abc"]
    first = policy.next_turn(view(asked), NOW_S)
    assert first is not None
    assert (first.model, first.request_ids, first.prefetch, first.evict) == ("a", ("r-a",), ("b",), ())
    assert first.budget_s == pytest.approx(3.0)
    later_s = NOW_S + 10
    second = policy.next_turn(view(asked, "ab", running="a", ran_s=3.0, now_s=later_s), later_s)
    assert second is not None
    assert (second.model, second.prefetch, second.evict) == ("b", ("c",), ("a",))


def test_the_quota_counts_from_the_first_step() -> None:
    policy = RoundTurns(q_max_s=3.0)
    asked = [request(model) for model in "abc"]
    policy.next_turn(view(asked), NOW_S)
    loaded = policy.next_turn(view(asked, "a", now_s=NOW_S + 5), NOW_S + 5)
    assert loaded is not None
    assert loaded.budget_s == pytest.approx(3.0)
    ran = policy.next_turn(view(asked, "ab", running="a", ran_s=1.0, now_s=NOW_S + 6), NOW_S + 6)
    assert ran is not None
    assert ran.model == "a"
    assert ran.budget_s == pytest.approx(2.0)


def test_who_comes_in_mid_round_joins_its_models_batch_or_waits_for_the_next_round() -> None:
    policy = RoundTurns()
    policy.next_turn(view([request("b")]), NOW_S)
    more = [request("b"), request("b", "late", 1.0), request("a", "new", 1.0)]
    joined = policy.next_turn(view(more, "b", running="b", ran_s=0.1), NOW_S)
    assert joined is not None
    assert (joined.model, joined.request_ids, joined.prefetch) == ("b", ("r-b", "late"), ("a",))
    over = policy.next_turn(view(more, "ab", running="b", ran_s=9.0, now_s=NOW_S + 9), NOW_S + 9)
    assert over is not None
    assert (over.model, over.request_ids) == ("a", ("new",))


def test_a_batch_that_has_ended_gives_its_turn_away() -> None:
    policy = RoundTurns()
    policy.next_turn(view([request("a"), request("b")]), NOW_S)
    turn = policy.next_turn(view([request("b")], "ab", running="a", ran_s=0.1), NOW_S)
    assert turn is not None
    assert (turn.model, turn.evict) == ("b", ("a",))


def test_a_model_whose_kv_does_not_fit_at_once_runs_in_batches_one_after_the_other() -> None:
    costs = replace(COSTS, kv_bytes_per_token=1)
    policy = RoundTurns()
    asked = [request("a", "one", 0.0, 40), request("a", "two", 1.0, 40), request("b", "other", 2.0, 40)]
    first = policy.next_turn(view(asked, "a", costs=costs, memory=180), NOW_S)
    assert first is not None
    assert (first.model, first.request_ids, first.prefetch) == ("a", ("one",), ("b",))
    ran_s = first.budget_s
    later_s = NOW_S + ran_s
    ran = view(asked, "ab", running="a", ran_s=ran_s, now_s=later_s, costs=costs, memory=180)
    second = policy.next_turn(ran, later_s)
    assert second is not None
    assert (second.model, second.request_ids) == ("a", ("two",))
    assert second.budget_s == pytest.approx(ran_s), "it has a turn of its own"


def test_where_two_models_do_not_fit_the_next_is_not_prefetched_and_the_last_one_leaves() -> None:
    policy = RoundTurns()
    asked = [request("a"), request("b")]
    first = policy.next_turn(view(asked, memory=15), NOW_S)
    assert first is not None
    assert first.prefetch == ()
    later_s = NOW_S + 9
    second = policy.next_turn(view(asked, "a", running="a", ran_s=9.0, now_s=later_s, memory=15), later_s)
    assert second is not None
    assert (second.model, second.evict, second.prefetch) == ("b", ("a",), ())


def test_kv_of_others_leaves_where_weights_need_the_room_and_the_latest_of_the_round_first() -> None:
    policy = RoundTurns()
    asked = [request(model) for model in "abcd"]
    held = {"a": 2, "b": 5, "c": 5, "d": 5}
    turn = policy.next_turn(view(asked, "a", memory=35, kv_bytes=held), NOW_S)
    assert turn is not None
    assert (turn.model, turn.prefetch, turn.release_kv) == ("a", ("b",), ("d",))
