"""Placement by load and affinity, and the moves that even it out."""

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hekaton.policy.affinity import AffinityPlacement
from hekaton.policy.types import ModelCosts, Move, PlacementRequest, PoolWorker

COSTS = ModelCosts(
    weight_bytes=500,
    kv_bytes_per_token=0,
    load_s=1.0,
    prefill_base_s=0.01,
    prefill_s_per_token=1e-4,
    step_base_s=0.02,
    step_s_per_request=1e-3,
    step_s_per_context_token=0.0,
)
HEAVY = replace(COSTS, step_base_s=0.06)
REQUEST = PlacementRequest(
    request_id="r",
    model="a",
    prompt_tokens=10,
    max_tokens=10,
    weight_bytes=500,
    kv_bytes_per_token=5,
    ttft_s=10.0,
    tbt_s=0.1,
)


def costs_of(model: str) -> ModelCosts:
    return HEAVY if model == "heavy" else COSTS


def worker(
    worker_id: str,
    requests: Mapping[str, int] | None = None,
    *,
    resident: str = "",
    memory: int = 2000,
    draining: bool = False,
) -> PoolWorker:
    return PoolWorker(worker_id, memory, frozenset(resident), frozenset(), requests or {}, draining)


def placement() -> AffinityPlacement:
    return AffinityPlacement(costs_of)


def test_the_worker_that_runs_the_model_comes_before_one_that_only_holds_it() -> None:
    workers = (worker("idle"), worker("holds", resident="a"), worker("runs", {"a": 3, "b": 1}))
    assert placement().place(REQUEST, workers) == "runs"
    assert placement().place(REQUEST, workers[:2]) == "holds"


def test_without_the_model_the_least_loaded_worker_is_taken() -> None:
    assert placement().place(REQUEST, (worker("one", {"heavy": 1}), worker("two", {"b": 1, "c": 1}))) == "two"


def test_an_overloaded_worker_has_no_affinity() -> None:
    busy = worker("busy", {"a": 150, "heavy": 1, "b": 1, "c": 1})
    assert placement().place(REQUEST, (busy, worker("idle"))) == "idle"
    assert placement().place(REQUEST, (busy,)) == "busy"


def test_a_model_that_floods_the_pool_takes_no_worker_from_the_others() -> None:
    flooded, busy = worker("flooded", {"a": 500}), worker("busy", {"heavy": 1, "b": 1})
    assert placement().place(REQUEST, (flooded, busy)) == "flooded"
    assert placement().place(REQUEST, (flooded, busy, worker("idle"))) == "idle"
    assert placement().place(replace(REQUEST, model="c"), (flooded, busy)) == "busy"


def test_a_missing_model_counts_by_the_share_of_a_ttft_that_its_load_takes() -> None:
    workers = (worker("holds", {"b": 1}, resident="a"), worker("idle"))
    assert placement().place(REQUEST, workers) == "idle"
    assert placement().place(replace(REQUEST, ttft_s=1.0), workers) == "holds"


def test_draining_and_small_workers_are_never_taken() -> None:
    assert placement().place(REQUEST, (worker("gone", draining=True), worker("small", memory=599))) is None
    assert placement().place(REQUEST, (worker("fits", memory=600),)) == "fits"
    assert placement().place(REQUEST, ()) is None


@given(st.permutations([worker("a", {"x": 1}), worker("b", {"y": 1}), worker("c"), worker("d", resident="a")]))
def test_the_order_of_the_workers_does_not_matter(workers: list[PoolWorker]) -> None:
    assert placement().place(REQUEST, tuple(workers)) == "d"


def test_a_model_moves_from_a_full_worker_to_an_idle_one() -> None:
    policy = placement()
    policy.place(REQUEST, (worker("idle"),))
    full = worker("full", {"a": 20, "b": 20, "heavy": 20})
    (move,) = policy.rebalance((full, worker("idle")))
    assert (move.from_worker_id, move.to_worker_id) == ("full", "idle")
    assert move.model in full.requests


@given(
    busy=st.dictionaries(st.sampled_from(["a", "b", "c", "heavy"]), st.integers(1, 60)),
    other=st.dictionaries(st.sampled_from(["a", "b", "c", "heavy"]), st.integers(1, 60)),
)
def test_nothing_moves_before_slos_are_known_nor_to_a_worker_that_drains_or_is_too_small(
    busy: dict[str, int], other: dict[str, int]
) -> None:
    policy = placement()
    pool = (worker("one", busy), worker("two", other))
    assert policy.rebalance(pool) == ()
    policy.place(REQUEST, pool)
    assert policy.rebalance((pool[0], worker("two", other, draining=True))) == ()
    for move in policy.rebalance((pool[0], worker("two", other, memory=499))):
        assert move.to_worker_id == "one"


@given(st.integers(1, 5))
def test_moves_come_to_rest(models: int) -> None:
    """Each makes the worse of the two better, so that no model goes back and forth."""
    policy = placement()
    policy.place(REQUEST, (worker("one"),))
    requests = {"one": {f"m{index}": 20 for index in range(models)}, "two": dict[str, int]()}
    moves: list[Move] = []
    while found := policy.rebalance(tuple(worker(name, dict(counts)) for name, counts in requests.items())):
        moves += found
        for move in found:
            requests[move.to_worker_id][move.model] = requests[move.from_worker_id].pop(move.model)
        assert len(moves) <= models
    assert abs(len(requests["one"]) - len(requests["two"])) <= 1 or not moves
