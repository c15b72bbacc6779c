"""Least slack first, decided on plain views."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fakes.views import demands_of, worker_view
from hekaton.policy.slack import SlackTurns
from hekaton.policy.types import ModelCosts, RequestView, WorkerView

NOW_S = 100.0
COSTS = ModelCosts(
    weight_bytes=10,
    kv_bytes_per_token=0,
    load_s=1.0,
    prefill_base_s=0.01,
    prefill_s_per_token=0.001,
    step_base_s=0.01,
    step_s_per_request=0.0,
    step_s_per_context_token=0.0,
)


def request(model: str, due_in_s: float, name: str = "", pending: int = 0) -> RequestView:
    """A request whose next token is due in so many seconds."""
    return RequestView(name or f"r-{model}", model, NOW_S + due_in_s - 1.0, 1.0, 0.1, pending, 0, 10)


def view(
    *requests: RequestView,
    resident: str = "",
    loading: str = "",
    ready: str = "abcdef",
    running: str | None = None,
    since_s: float = 10.0,
    memory: int = 30,
    free: int | None = None,
    kv: Mapping[str, int] | None = None,
) -> WorkerView:
    return worker_view(
        requests,
        COSTS,
        memory,
        resident=resident,
        loading=loading,
        ready=ready,
        running=running,
        started_s=NOW_S - since_s,
        kv=kv,
        free=free,
    )


POLICY = SlackTurns(0.4, kv_reserve=0.0)


def test_nothing_to_run_is_none() -> None:
    assert POLICY.next_turn(view(), NOW_S) is None
    assert POLICY.next_turn(view(request("a", 1.0), ready=""), NOW_S) is None, "its image is not at hand"


def test_of_the_resident_models_the_least_slack_runs_its_most_urgent_request_first() -> None:
    requests = (request("a", 5.0), request("b", 3.0, "late"), request("b", 2.0, "soon"))
    turn = POLICY.next_turn(view(*requests, resident="ab"), NOW_S)
    assert turn is not None
    assert (turn.model, turn.request_ids, turn.evict, turn.prefetch) == ("b", ("soon", "late"), (), ())


def test_prefill_counts_against_slack() -> None:
    turn = POLICY.next_turn(view(request("a", 5.0, pending=3000), request("b", 4.0), resident="ab"), NOW_S)
    assert turn is not None
    assert turn.model == "a"


def test_the_current_model_keeps_its_minimum_turn_and_no_more() -> None:
    requests = (request("a", 5.0), request("b", 2.0))
    fresh = POLICY.next_turn(view(*requests, resident="ab", running="a", since_s=0.1), NOW_S)
    assert fresh is not None
    assert fresh.model == "a"
    assert abs(fresh.budget_s - 0.3) < 1e-6
    over = POLICY.next_turn(view(*requests, resident="ab", running="a", since_s=0.4), NOW_S)
    assert over is not None
    assert over.model == "b"


def test_the_current_model_goes_on_while_nobodys_slack_is_worse() -> None:
    turn = POLICY.next_turn(view(request("a", 2.0), request("b", 2.0), resident="ab", running="b"), NOW_S)
    assert turn is not None
    assert turn.model == "b"


def test_a_missing_model_is_loaded_while_a_resident_one_runs() -> None:
    turn = POLICY.next_turn(view(request("a", 5.0), request("b", 2.0), resident="a", running="a"), NOW_S)
    assert turn is not None
    assert (turn.model, turn.prefetch, turn.evict) == ("a", ("b",), ())


def test_a_load_takes_the_room_of_idle_models_first_and_then_of_the_slackest() -> None:
    requests = (request("a", 9.0), request("b", 20.0), request("d", 1.0))
    idle = POLICY.next_turn(view(*requests, resident="abc", running="a"), NOW_S)
    assert idle is not None
    assert (idle.model, idle.prefetch, idle.evict) == ("a", ("d",), ("c",))
    full = POLICY.next_turn(view(*requests, resident="ab", running="a", memory=20), NOW_S)
    assert full is not None
    assert (full.model, full.prefetch, full.evict) == ("a", ("d",), ("b",))


def test_a_model_is_not_evicted_for_one_that_would_be_less_urgent_than_it_then() -> None:
    requests = (request("a", 1.0), request("b", 1.9), request("d", 2.0))
    turn = POLICY.next_turn(view(*requests, resident="ab", running="a", memory=20), NOW_S)
    assert turn is not None
    assert (turn.model, turn.prefetch, turn.evict) == ("a", (), ())


def test_where_only_one_fits_the_running_model_gives_way_after_as_long_as_the_load_takes() -> None:
    requests = (request("a", 9.0), request("b", 3.0))
    early = POLICY.next_turn(view(*requests, resident="a", running="a", since_s=0.9, memory=15), NOW_S)
    assert early is not None
    assert (early.model, early.evict) == ("a", ())
    due = POLICY.next_turn(view(*requests, resident="a", running="a", since_s=1.0, memory=15), NOW_S)
    assert due is not None
    assert (due.model, due.evict) == ("b", ("a",))


def test_one_load_at_a_time_and_what_is_resident_runs_meanwhile() -> None:
    requests = (request("a", 9.0), request("b", 3.0), request("d", 1.0))
    turn = POLICY.next_turn(view(*requests, resident="a", loading="b", running="a"), NOW_S)
    assert turn is not None
    assert (turn.model, turn.prefetch, turn.evict) == ("a", (), ())


def test_a_load_that_nobody_waits_for_makes_room() -> None:
    turn = POLICY.next_turn(view(request("a", 1.0), loading="c", memory=15), NOW_S)
    assert turn is not None
    assert (turn.model, turn.evict) == ("a", ("c",))


def test_a_model_that_is_on_its_way_is_waited_for() -> None:
    turn = POLICY.next_turn(view(request("a", 1.0), loading="a", memory=15), NOW_S)
    assert turn is not None
    assert (turn.model, turn.evict) == ("a", ())


def test_the_kv_of_models_that_are_not_there_goes_before_models_that_are() -> None:
    requests = (request("a", 9.0), request("b", 20.0), request("c", 15.0), request("d", 1.0))
    turn = POLICY.next_turn(view(*requests, resident="ab", running="a", memory=35, kv={"c": 10}), NOW_S)
    assert turn is not None
    assert (turn.model, turn.prefetch, turn.evict, turn.release_kv) == ("a", ("d",), (), ("c",))


def test_what_fits_is_loaded_where_the_most_urgent_does_not_fit() -> None:
    requests = (request("a", 9.0), request("b", 1.0), request("c", 2.0))
    crowded = view(*requests, resident="a", running="a", since_s=0.5, memory=25)
    big = {**crowded.costs, "b": replace(COSTS, weight_bytes=20)}
    turn = POLICY.next_turn(replace(crowded, costs=big), NOW_S)
    assert turn is not None
    assert (turn.model, turn.prefetch, turn.evict) == ("a", ("c",), ())


MODELS = st.sets(st.sampled_from("abcdef"), max_size=3)


@given(
    due=st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(-50, 50), st.integers(0, 500)), max_size=12),
    resident=MODELS,
    loading=MODELS,
    ready=st.sets(st.sampled_from("abcdef")),
    since_s=st.floats(0, 3),
    memory=st.sampled_from([15, 30, 60]),
)
def test_decisions_are_sound_and_equal_for_equal_views(
    due: list[tuple[str, float, int]],
    resident: set[str],
    loading: set[str],
    ready: set[str],
    since_s: float,
    memory: int,
) -> None:
    requests = [request(model, due_s, f"r{index}", pending) for index, (model, due_s, pending) in enumerate(due)]
    current = view(
        *requests,
        resident="".join(sorted(resident)),
        loading="".join(sorted(loading - resident)),
        ready="".join(sorted(ready)),
        running=min(resident, default=None),
        since_s=since_s,
        memory=memory,
    )
    turn = POLICY.next_turn(current, NOW_S)
    assert turn == POLICY.next_turn(current, NOW_S)
    able = {one.model for one in requests} & (resident | loading | ready)
    assert (turn is None) == (not able)
    if turn:
        assert turn.model in able
        assert turn.model not in turn.evict
        assert set(turn.evict) <= current.resident | current.loading
        assert set(turn.prefetch) <= able - resident - loading
        assert turn.budget_s > 0
        assert turn.model in resident or not able & resident or turn.evict, "nothing idles beside work it could do"
        assert set(turn.request_ids) == {one.request_id for one in requests if one.model == turn.model}


def play_one_slot(tbt_s: float, step_s: float, steps: int) -> tuple[list[float], dict[str, int]]:
    """Two models with one request each on a worker that holds one of them: when it switched, and who got how much."""
    costs = replace(COSTS, step_base_s=step_s)
    produced = {"a": 0, "b": 0}
    running, started_s, now_s = "a", NOW_S, NOW_S
    switches: list[float] = []
    for _ in range(steps):
        requests = [RequestView(f"r-{m}", m, NOW_S, 1.0, tbt_s, 0, count, 10) for m, count in produced.items()]
        state = view(*requests, resident=running, running=running, since_s=0.0, memory=15)
        both = {"a": costs, "b": costs}
        state = replace(state, turn_started_s=started_s, costs=both, demands=demands_of(requests, costs))
        turn = POLICY.next_turn(state, now_s)
        assert turn is not None
        if turn.model != running:
            switches.append(now_s)
            running, started_s = turn.model, now_s + costs.load_s
            now_s = started_s
        now_s += step_s
        produced[turn.model] += 1
    return switches, produced


def test_two_models_in_one_slot_do_not_thrash() -> None:
    switches, produced = play_one_slot(tbt_s=0.02, step_s=0.01, steps=4000)
    assert len(switches) > 5
    assert min(later - earlier for earlier, later in pairwise(switches)) >= 2.0
    assert abs(produced["a"] - produced["b"]) < 0.2 * sum(produced.values())


def test_nobody_starves_where_steps_are_far_slower_than_their_objective() -> None:
    switches, produced = play_one_slot(tbt_s=0.001, step_s=0.2, steps=500)
    assert max(later - earlier for earlier, later in pairwise(switches)) < 6.0
    assert abs(produced["a"] - produced["b"]) < 0.2 * sum(produced.values())
