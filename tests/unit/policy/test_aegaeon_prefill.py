"""Groups of Algorithm 1, on a worker and in the pool."""

from collections.abc import Mapping

from fakes.views import worker_view
from hekaton.policy.aegaeon_placement import AegaeonPlacement, BatchPlacement, GroupedPlacement
from hekaton.policy.aegaeon_prefill import GroupedPrefillTurns
from hekaton.policy.types import ModelCosts, PlacementRequest, PoolWorker, RequestView, Role, WorkerView

COSTS = ModelCosts(10, 1, 1.0, 0.01, 0.001, 0.01, 0.0, 0.0)


def waiting(model: str, arrived_s: float) -> RequestView:
    return RequestView(f"r{arrived_s:03.0f}", model, arrived_s, 10.0, 0.1, 100, 0, 0)


def view(*requests: RequestView, resident: str = "") -> WorkerView:
    return worker_view(requests, COSTS, 1000, resident=resident, role=Role.PREFILL)


def served(policy: GroupedPrefillTurns, requests: list[RequestView]) -> list[str]:
    """The order in which the requests run, each gone when it has run."""
    order: list[str] = []
    left = list(requests)
    while left:
        turn = policy.next_turn(view(*left), 0.0)
        assert turn is not None
        assert len(turn.request_ids) == 1, "one request a batch"
        order += turn.request_ids
        left = [one for one in left if one.request_id not in order]
    assert policy.next_turn(view(), 0.0) is None
    return order


def test_groups_run_first_come_first_served_with_all_of_their_model() -> None:
    asked = [waiting("a", 0), waiting("b", 1), waiting("a", 2)]
    assert served(GroupedPrefillTurns(), asked) == ["r000", "r002", "r001"]


def test_a_group_takes_no_more_than_its_size_and_counts_what_has_run() -> None:
    policy = GroupedPrefillTurns(group_size=2)
    policy.next_turn(view(waiting("a", 0), waiting("b", 1)), 0.0)
    policy.next_turn(view(waiting("a", 0), waiting("b", 1), waiting("a", 2)), 0.0)
    # The first has run, so one of the group's two is left; yet the group has had its two.
    rest = [waiting("b", 1), waiting("a", 2), waiting("a", 3)]
    assert served(policy, rest) == ["r002", "r001", "r003"]


def test_the_next_groups_model_is_prefetched_and_no_other_model_stays() -> None:
    turn = GroupedPrefillTurns().next_turn(view(waiting("a", 0), waiting("b", 1), resident="ac"), 0.0)
    assert turn is not None
    assert (turn.model, turn.prefetch, turn.evict) == ("a", ("b",), ("c",))


def worker(name: str, requests: Mapping[str, int], tokens: Mapping[str, int] | None = None) -> PoolWorker:
    role = Role.PREFILL if name.startswith("p") else Role.DECODE
    return PoolWorker(name, 1000, frozenset(), frozenset(), requests, role=role, prefill_tokens=tokens)


def ask(model: str, phase: Role = Role.PREFILL, tokens: int = 100) -> PlacementRequest:
    return PlacementRequest("r", model, tokens, 10, 10, 1, 10.0, 0.1, phase)


def test_a_request_joins_a_group_with_room_and_opens_another_where_the_load_is_least_when_it_is_full() -> None:
    policy = GroupedPlacement(lambda model: COSTS, group_size=2)
    assert policy.place(ask("a"), [worker("p1", {}), worker("p2", {})]) == "p1"
    assert policy.place(ask("a"), [worker("p1", {"a": 1}), worker("p2", {})]) == "p1"
    assert policy.place(ask("a"), [worker("p1", {"a": 2}), worker("p2", {})]) == "p2"
    assert policy.place(ask("a"), [worker("p1", {"a": 1}), worker("p2", {"a": 1})]) == "p2", "p1's group had its two"


def test_a_group_that_has_run_is_gone() -> None:
    policy = GroupedPlacement(lambda model: COSTS)
    assert policy.place(ask("a"), [worker("p1", {}), worker("p2", {})]) == "p1"
    assert policy.place(ask("a"), [worker("p1", {"b": 1}), worker("p2", {})]) == "p2"


def test_load_is_the_time_to_prefill_and_a_switch_for_each_group() -> None:
    policy = GroupedPlacement(lambda model: COSTS)
    long = worker("p1", {"b": 1}, {"b": 3000})
    switches = worker("p2", {"b": 1, "c": 1}, {"b": 100, "c": 100})
    assert policy.place(ask("a"), [long, switches]) == "p2"
    short = worker("p1", {"b": 1}, {"b": 1000})
    assert policy.place(ask("a"), [short, switches]) == "p1"


def test_decode_joins_the_models_batch_if_its_kv_fits_else_goes_where_batches_are_fewest() -> None:
    policy = AegaeonPlacement(GroupedPlacement(lambda model: COSTS), BatchPlacement())
    pool = [worker("p1", {}), worker("d1", {"a": 3, "b": 1}), worker("d2", {"b": 1}), worker("d3", {"c": 9, "b": 1})]
    assert policy.place(ask("a", Role.DECODE), pool) == "d1"
    assert policy.place(ask("a", Role.DECODE, tokens=300), pool) == "d2", "four of these do not fit"
    assert policy.place(ask("x", Role.DECODE), pool) == "d2"
    equals = [worker("d1", {"a": 2}), worker("d2", {"b": 1})]
    assert policy.place(ask("x", Role.DECODE), equals) == "d2", "the one with fewer requests"
    assert policy.place(ask("x", Role.DECODE), [worker("p1", {})]) is None
