"""ServerlessLLM and ServerlessLLM+."""

from collections.abc import Mapping

from fakes.views import worker_view
from hekaton.policy.request_level import QueuePlacement, QueueTurns
from hekaton.policy.request_level_sjf import FewestBatchesPlacement, ShortestFirstTurns
from hekaton.policy.types import ModelCosts, PlacementRequest, PoolWorker, RequestView, WorkerView

COSTS = ModelCosts(10, 1, 1.0, 0.01, 0.001, 0.01, 0.0, 0.0)


def queued(model: str, arrived_s: float, output: int = 100) -> RequestView:
    return RequestView(f"r{arrived_s:03.0f}", model, arrived_s, 10.0, 0.1, 100, 0, 0, output)


def view(*requests: RequestView, resident: str = "") -> WorkerView:
    return worker_view(requests, COSTS, 1000, resident=resident)


def worker(name: str, requests: Mapping[str, int], loading: str = "") -> PoolWorker:
    return PoolWorker(name, 1000, frozenset(), frozenset(loading), requests)


def ask(model: str) -> PlacementRequest:
    return PlacementRequest("r", model, 100, 10, 10, 1, 10.0, 0.1)


def test_the_head_of_the_queue_runs_with_those_of_its_model_right_behind_it() -> None:
    policy = QueueTurns(slots=2)
    queue = [queued("b", 0), queued("b", 1), queued("b", 2), queued("a", 3), queued("b", 4)]
    turn = policy.next_turn(view(*queue), 0.0)
    assert turn is not None
    assert (turn.model, turn.request_ids, turn.prefetch) == ("b", ("r000", "r001"), ())
    turn = policy.next_turn(view(*queue[2:]), 0.0)
    assert turn is not None
    assert (turn.model, turn.request_ids) == ("b", ("r002",)), "r004 waits behind another model"
    turn = policy.next_turn(view(*queue[3:], resident="b"), 0.0)
    assert turn is not None
    assert (turn.model, turn.evict) == ("a", ("b",))
    assert policy.next_turn(view(), 0.0) is None


def test_a_request_joins_the_shortest_run_of_its_model_that_ends_a_queue() -> None:
    policy = QueuePlacement(slots=2)
    assert policy.place(ask("a"), [worker("w1", {}), worker("w2", {})]) == "w1"
    assert policy.place(ask("a"), [worker("w1", {"a": 1}), worker("w2", {})]) == "w1"
    assert policy.place(ask("a"), [worker("w1", {"a": 2}), worker("w2", {})]) == "w2", "no slot free"
    assert policy.place(ask("a"), [worker("w1", {"a": 2}), worker("w2", {"a": 1})]) == "w2"


def test_a_run_inside_a_queue_is_not_joined() -> None:
    policy = QueuePlacement()
    only = policy.place(ask("a"), [worker("w1", {})])
    behind = policy.place(ask("b"), [worker("w1", {"a": 1})])
    assert only == behind == "w1"
    assert policy.place(ask("a"), [worker("w1", {"a": 1, "b": 1}), worker("w2", {})]) == "w2"


def test_an_idle_worker_keeps_its_model_and_the_least_recently_used_one_is_taken() -> None:
    policy = QueuePlacement()
    idle = [worker("w1", {}), worker("w2", {})]
    assert policy.place(ask("a"), idle) == "w1"
    assert policy.place(ask("b"), [worker("w1", {"a": 1}), worker("w2", {})]) == "w2"
    assert policy.place(ask("a"), [worker("w1", {}), worker("w2", {"b": 1})]) == "w1"
    assert policy.place(ask("c"), [worker("w1", {"a": 1}), worker("w2", {})]) == "w2", "idle before busy"


def test_of_busy_workers_one_that_still_loads_is_taken() -> None:
    policy = QueuePlacement()
    policy.place(ask("a"), [worker("w1", {}), worker("w2", {})])
    policy.place(ask("b"), [worker("w1", {"a": 1}), worker("w2", {})])
    assert policy.place(ask("c"), [worker("w1", {"a": 1}), worker("w2", {"b": 1}, loading="b")]) == "w2"


def test_the_shortest_batch_runs_first_and_to_its_end() -> None:
    policy = ShortestFirstTurns()
    long, short = queued("a", 0, output=500), queued("b", 1, output=50)
    turn = policy.next_turn(view(long, short), 0.0)
    assert turn is not None
    assert turn.model == "b"
    turn = policy.next_turn(view(long, short, queued("c", 2, output=1)), 0.0)
    assert turn is not None
    assert turn.model == "b", "a shorter one waits"
    turn = policy.next_turn(view(long, queued("c", 2, output=1)), 0.0)
    assert turn is not None
    assert turn.model == "c"


def test_a_batch_takes_as_many_as_it_has_slots() -> None:
    policy = ShortestFirstTurns(slots=2)
    turn = policy.next_turn(view(*(queued("a", arrived_s) for arrived_s in range(3))), 0.0)
    assert turn is not None
    assert len(turn.request_ids) == 1, "the batch of one is done sooner"
    turn = policy.next_turn(view(queued("a", 0), queued("a", 1)), 0.0)
    assert turn is not None
    assert turn.request_ids == ("r000", "r001")


def test_the_oracle_places_into_batches_with_room_or_where_batches_are_fewest() -> None:
    policy = FewestBatchesPlacement(slots=2)
    assert policy.place(ask("a"), [worker("w1", {"b": 1}), worker("w2", {"a": 3})]) == "w2"
    assert policy.place(ask("a"), [worker("w1", {"b": 1, "c": 1}), worker("w2", {"a": 2})]) == "w2"
    assert policy.place(ask("a"), [worker("w1", {"b": 1}), worker("w2", {"a": 4})]) == "w1"
    assert policy.place(ask("a"), []) is None
