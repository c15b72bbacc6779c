"""What is known of single requests, over a real pool and the placements of the policies."""

from dataclasses import replace

import pytest

from hekaton.facts import ModelSpec, RequestRecord, RequestState, Sampling, Slo
from hekaton.policy.costs import guessed_costs
from hekaton.policy.live import live_policy
from hekaton.policy.types import Role
from hekaton.rpc.convert import ROLE_TO_PB
from hekaton.store.records import RequestSummary
from hekaton.v1 import pool_pb2
from hekaton_scheduler.chooser import Chooser
from hekaton_scheduler.pool import Placed, Pool

SPEC = ModelSpec("d", "emulated", "bfloat16", 1000, 1, 4096, 256)
RECORD = RequestRecord("r", "router", "m", 3, Sampling(max_tokens=10, seed=1), Slo(10.0, 0.1), 60.0)
WAITING = RequestSummary(RECORD, RequestState.QUEUED, 1, 0, "", 0.0, 0, "router", 0, "", None)


def chooser(policy: str = "slack", **roles: Role) -> tuple[Chooser, Pool]:
    pool = Pool()
    for worker_id, role in roles.items():
        pool.connect(pool_pb2.WorkerStatus(worker_id=worker_id, device_memory_bytes=5000, role=ROLE_TO_PB[role]), [])
    placement = live_policy(policy, {}).placement(lambda _: guessed_costs(1000, 1))
    return Chooser(pool, placement, has_roles=policy == "aegaeon"), pool


async def test_a_worker_that_holds_its_most_gets_no_more() -> None:
    _, pool = chooser(w1=Role.ANY)
    placement = live_policy("slack", {}).placement(lambda _: guessed_costs(1000, 1))
    bounded = Chooser(pool, placement, max_placed=2)
    pool.connect(pool_pb2.WorkerStatus(worker_id="w1", device_memory_bytes=5000), [])
    for request_id in ("a", "b"):
        assert bounded.choose(WAITING, SPEC) == "w1"
        pool.add("w1", Placed(request_id, 1, "m"))
    assert bounded.choose(WAITING, SPEC) is None
    pool.remove("w1", "a")
    assert bounded.choose(WAITING, SPEC) == "w1"


async def test_who_yields_leaves_places_to_the_others() -> None:
    _, pool = chooser(w1=Role.ANY)
    bounded = Chooser(pool, live_policy("slack", {}).placement(lambda _: guessed_costs(1000, 1)), max_placed=8)
    pool.yielding = frozenset({"flood", "second"})
    flood, quiet = (replace(WAITING, record=replace(RECORD, tenant=name)) for name in ("flood", "quiet"))
    for number in range(7):
        assert bounded.choose(flood, SPEC) == "w1"
        pool.add("w1", Placed(f"f{number}", 1, "m", "flood"))
    assert bounded.choose(flood, SPEC) is None
    assert bounded.choose(replace(WAITING, record=replace(RECORD, tenant="second")), SPEC) is None
    assert bounded.choose(quiet, SPEC) == "w1"
    pool.remove("w1", "f0")
    assert bounded.choose(flood, SPEC) == "w1"


@pytest.fixture
def two() -> tuple[Chooser, Pool]:
    """Worker `a` runs the model already."""
    both, pool = chooser(a=Role.ANY, b=Role.ANY)
    pool.add("a", Placed("other", 1, "m"))
    return both, pool


async def test_a_request_that_was_refused_goes_elsewhere_until_it_is_placed(two: tuple[Chooser, Pool]) -> None:
    both, _ = two
    assert both.choose(WAITING, SPEC) == "a"
    both.avoid("r", "a")
    assert both.choose(WAITING, SPEC) == "b"
    assert both.ends_s().keys() == {"r"}
    both.forget("r")
    assert both.choose(WAITING, SPEC) == "a"


async def test_a_request_that_moves_goes_to_its_target_if_that_can_take_it(two: tuple[Chooser, Pool]) -> None:
    both, pool = two
    both.prefer("r", "b")
    assert both.choose(WAITING, SPEC) == "b"
    assert both.is_moving()
    pool.update(pool_pb2.WorkerStatus(worker_id="b", device_memory_bytes=5000, draining=True))
    assert both.choose(WAITING, SPEC) == "a"
    both.forget("r")
    assert not both.is_moving()


async def test_a_request_is_placed_for_prefill_and_after_its_first_token_for_decode() -> None:
    both, _ = chooser("aegaeon", a=Role.PREFILL, b=Role.DECODE)
    assert both.choose(WAITING, SPEC) == "a"
    assert both.choose(replace(WAITING, produced_tokens=1), SPEC) == "b"
    both.prefilled("r")
    assert both.choose(WAITING, SPEC) == "b"
