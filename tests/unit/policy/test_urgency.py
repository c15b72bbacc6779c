"""How urgent a model is, and who counts for it."""

from dataclasses import replace
from types import MappingProxyType

import pytest

from fakes.views import worker_view
from hekaton.policy.types import Demand, ModelCosts, RequestView, WorkerView
from hekaton.policy.urgency import GRACE, RETURN, Rated, most_urgent_first, rate_all, slack_if_gone_s

NOW_S = 1000.0
TTFT_S = 10.0
COSTS = ModelCosts(10, 0, 1.0, 0.01, 0.001, 0.01, 0.0, 0.0)


def request(name: str, due_in_s: float, model: str = "a", pending: int = 0) -> RequestView:
    return RequestView(name, model, NOW_S + due_in_s - TTFT_S, TTFT_S, 0.1, pending, 0, 10)


def slack_s(*requests: RequestView, resident: str = "a") -> float:
    view = WorkerView(
        running=None,
        turn_started_s=NOW_S,
        resident=frozenset(resident),
        loading=frozenset(),
        ready=frozenset("a"),
        demands={"a": Demand.of("a", requests, COSTS)},
        costs=MappingProxyType({"a": COSTS}),
        device_memory_bytes=100,
        free_bytes=100,
        kv_bytes={},
    )
    (rated,) = rate_all(view, NOW_S)
    return rated.slack_s


def test_slack_is_the_time_to_spare_before_the_most_urgent_token_is_late() -> None:
    assert slack_s(request("r", 5.0), request("s", 3.0)) == pytest.approx(3.0 - 0.01)
    assert slack_s(request("r", 5.0, pending=100)) == pytest.approx(5.0 - 0.11)
    assert slack_s(request("r", 5.0), resident="") == pytest.approx(5.0 - 0.01 - 1.0), "its weights come first"


def test_bringing_kv_back_takes_as_long_as_its_bytes_of_weights_unless_it_was_measured() -> None:
    view = worker_view([request("r", 5.0)], COSTS, 100, kv={"a": 20})
    for swap_s, back_s in ((0.0, 1.0 + 2.0), (0.25, 1.0 + 0.25 * 20 / 5)):
        costs = replace(COSTS, kv_bytes_per_token=5, swap_s_per_token=swap_s)
        one = Rated("a", 10.0, Demand.of("a", [request("r", 5.0)], costs), costs)
        assert slack_if_gone_s(view, one) == pytest.approx(10.0 - back_s)


def test_prompts_wait_for_each_other() -> None:
    both = slack_s(request("r", 5.0, pending=1000), request("s", 5.1, pending=1000))
    assert both == pytest.approx(5.1 - 2 * 1.01)


def test_a_request_that_is_a_little_late_is_the_most_urgent_of_all() -> None:
    assert slack_s(request("r", -0.5 * GRACE * TTFT_S)) < 0


def test_a_lost_request_does_not_hurry_its_model() -> None:
    assert slack_s(request("lost", -5.0), request("s", 3.0)) == pytest.approx(3.0 - 0.01)
    assert slack_s(request("lost", -5.0)) == pytest.approx(RETURN * TTFT_S - 5.0 - 0.01)


def test_a_lost_request_comes_back_when_it_has_waited_for_long() -> None:
    assert slack_s(request("lost", -(RETURN * TTFT_S) - 1.0), request("s", 3.0)) == pytest.approx(-1.01)


def test_lost_requests_come_last_in_their_batch() -> None:
    patient = RequestView("patient", "a", NOW_S - 103.0, 100.0, 0.1, 0, 0, 10)
    requests = (request("lost", -4.0), patient, request("s", 1.0))
    assert most_urgent_first(requests, NOW_S) == ("patient", "s", "lost"), "3 s are little where the TTFT is 100 s"


def yielding(one: RequestView) -> RequestView:
    return replace(one, yields=True)


def ranked(view: WorkerView) -> list[str]:
    return [one.model for one in rate_all(view, NOW_S)]


def test_a_request_that_yields_does_not_hurry_a_model_that_others_ask_for() -> None:
    mine, theirs = request("mine", 5.0), yielding(request("theirs", 0.1, pending=100))
    assert slack_s(mine, theirs) == pytest.approx(slack_s(mine))


def test_a_new_request_goes_before_all_models_whose_requests_yield_however_late_these_are() -> None:
    new = request("new", TTFT_S, "c", pending=10)
    late = [yielding(request("late", -0.5, "a")), yielding(request("later", -500.0, "b"))]
    assert ranked(worker_view([*late, new], COSTS, 100, resident="ab")) == ["c", "b", "a"], "even if c must be loaded"
    assert ranked(worker_view(late, COSTS, 100, resident="ab")) == ["b", "a"], "and among each other nothing changes"


def test_tokens_that_their_reader_does_not_wait_for_go_before_nobody() -> None:
    far_ahead = request("ahead", 2 * TTFT_S, "a")
    waits = yielding(request("waits", 1.0, "b"))
    assert ranked(worker_view([far_ahead, waits], COSTS, 100, resident="ab")) == ["b", "a"]


def test_where_all_yield_it_is_as_if_none_did() -> None:
    requests = [request("r", 5.0, "a"), request("s", 3.0, "b", pending=10), request("t", -50.0, "c")]
    one, other = (worker_view(each, COSTS, 100, resident="abc") for each in (requests, map(yielding, requests)))
    rated, all_yield = rate_all(one, NOW_S), rate_all(other, NOW_S)
    assert [(each.model, each.slack_s) for each in rated] == [(each.model, each.slack_s) for each in all_yield]


def test_in_a_batch_those_that_yield_come_last_even_after_lost_ones() -> None:
    requests = [request("lost", -5.0), request("in time", 5.0), yielding(request("yields", 1.0))]
    ordered = Demand.of("a", requests, COSTS).requests
    assert most_urgent_first(ordered, NOW_S) == ("in time", "lost", "yields")
