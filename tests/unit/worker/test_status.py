from dataclasses import replace

from hekaton.engine.messages import Status
from hekaton.policy.costs import guessed_costs
from hekaton.policy.types import Role
from hekaton.v1 import pool_pb2
from hekaton_worker.status import StatusBoard

NOTHING = Status("", (), (), 0, 0, 0, 0, 0, 0)
A, B = guessed_costs(1000, 1), guessed_costs(2000, 2)


def said(**changes: object) -> Status:
    return Status(**{field: getattr(NOTHING, field) for field in NOTHING.__struct_fields__} | changes)


def test_only_what_placements_look_at_is_news() -> None:
    board = StatusBoard("w")
    assert not board.update(said(tokens=7, switches=3))
    assert board.update(said(resident_models=("a",)))
    assert board.update(said(resident_models=("a",), prefill_tokens={"a": 30}))
    assert board.update(said(resident_models=("a",), prefill_tokens={"a": 30}, costs={"a": A}))
    assert not board.update(said(resident_models=("a",), prefill_tokens={"a": 30}))


def test_costs_are_told_once_and_again_to_whoever_asks_for_everything() -> None:
    board = StatusBoard("w")
    board.update(said(costs={"a": A}))
    board.update(said(costs={"b": B}))
    assert [one.model for one in board.take_costs(everything=False)] == ["a", "b"]
    assert board.take_costs(everything=False) == []
    board.update(said(costs={"a": replace(A, load_s=9.0)}))
    assert [(one.model, one.load_s) for one in board.take_costs(everything=False)] == [("a", 9.0)]
    assert len(board.take_costs(everything=True)) == 2


def test_the_status_says_the_role_and_what_waits_and_no_costs() -> None:
    board = StatusBoard("w", Role.DECODE)
    board.update(said(prefill_tokens={"a": 30}, costs={"a": A}))
    status = board.status()
    assert (status.role, dict(status.prefill_tokens)) == (pool_pb2.WORKER_ROLE_DECODE, {"a": 30})
    assert not status.costs
