from hekaton.policy.types import Role
from hekaton.v1.pool_pb2 import WORKER_ROLE_PREFILL, WorkerStatus
from hekaton_scheduler.pool import Placed, Pool

STATUS = WorkerStatus(worker_id="w1", device_memory_bytes=10, resident_models=["m1"])


def test_views_follow_placements_reports_and_ends() -> None:
    pool = Pool()
    pool.connect(STATUS, [Placed("r1", 1, "m1")])
    pool.add("w1", Placed("r2", 1, "m2"))
    (view,) = pool.views()
    assert (dict(view.requests), view.resident, view.draining) == ({"m1": 1, "m2": 1}, frozenset({"m1"}), False)
    pool.remove("w1", "r1")
    pool.update(WorkerStatus(worker_id="w1", device_memory_bytes=10, draining=True))
    (view,) = pool.views()
    assert (dict(view.requests), view.resident, view.draining) == ({"m2": 1}, frozenset(), True)


def test_a_request_that_is_placed_again_counts_once() -> None:
    pool = Pool()
    pool.connect(STATUS, [Placed("r1", 1, "m1")])
    pool.add("w1", Placed("r1", 2, "m1"))
    assert (pool.placed(), pool.epoch("w1", "r1"), pool.views()[0].requests) == (1, 2, {"m1": 1})


def test_a_worker_that_is_gone_is_not_seen() -> None:
    pool = Pool()
    pool.connect(STATUS, [Placed("r1", 1, "m1")])
    assert pool.views(but="w1") == ()
    pool.disconnect("w1")
    pool.remove("w1", "r1")
    assert (pool.views(), pool.placed(), "w1" in pool) == ((), 0, False)


def test_views_have_roles_and_the_tokens_that_wait_to_be_computed() -> None:
    pool = Pool()
    status = WorkerStatus(worker_id="w1", device_memory_bytes=10, role=WORKER_ROLE_PREFILL, prefill_tokens={"m1": 5})
    pool.connect(status, [])
    pool.add("w1", Placed("r1", 1, "m2"), prefill_tokens=7)
    (view,) = pool.views()
    assert (view.role, view.prefill_tokens) == (Role.PREFILL, {"m1": 5, "m2": 7})
    pool.update(WorkerStatus(worker_id="w1", device_memory_bytes=10))
    assert (pool.views()[0].role, pool.views()[0].prefill_tokens) == (Role.ANY, {})


def test_who_does_not_yield_sees_nothing_of_those_that_do() -> None:
    pool = Pool()
    pool.connect(STATUS, [Placed("r1", 1, "m1", "flood"), Placed("r2", 1, "m1", "quiet")])
    pool.yielding = frozenset({"flood"})
    assert pool.views()[0].requests == {"m1": 2}
    assert pool.views_before()[0].requests == {"m1": 1}


def test_what_a_worker_holds_of_a_model() -> None:
    pool = Pool()
    pool.connect(STATUS, [Placed("r1", 1, "m1"), Placed("r2", 1, "m2"), Placed("r3", 4, "m1")])
    assert pool.held("w1", "m1") == [Placed("r1", 1, "m1"), Placed("r3", 4, "m1")]
    assert pool.held("w2", "m1") == []


def test_what_is_about_to_be_placed_counts_and_cannot_be_taken_away_yet() -> None:
    pool = Pool()
    pool.connect(STATUS, [])
    placed = Placed("r1", 3, "m1")
    pool.expect("w1", placed, 7)
    assert (pool.views()[0].requests, pool.views()[0].prefill_tokens) == ({"m1": 1}, {"m1": 7})
    assert pool.held("w1", "m1") == []
    pool.confirm("w1", placed, 7)
    assert pool.held("w1", "m1") == [placed]
    assert (pool.views()[0].requests, pool.views()[0].prefill_tokens) == ({"m1": 1}, {"m1": 7})


def test_what_was_placed_on_a_worker_that_connects_anew_meanwhile_is_held_there() -> None:
    pool = Pool()
    pool.connect(STATUS, [])
    placed = Placed("r1", 3, "m1")
    pool.expect("w1", placed, 7)
    pool.connect(STATUS, [])
    pool.confirm("w1", placed, 7)
    assert pool.held("w1", "m1") == [placed]


def test_what_was_not_placed_after_all_counts_no_more() -> None:
    pool = Pool()
    pool.connect(STATUS, [])
    pool.expect("w1", Placed("r1", 3, "m1"), 0)
    pool.remove("w1", "r1")
    assert pool.views()[0].requests == {}
    pool.add("w1", Placed("r1", 4, "m1"))
    assert pool.held("w1", "m1") == [Placed("r1", 4, "m1")]
