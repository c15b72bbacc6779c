from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from hekaton.policy.affinity import AffinityPlacement
from hekaton.policy.types import PlacementRequest, PoolWorker


def worker(
    worker_id: str,
    requests: Mapping[str, int] | None = None,
    *,
    resident: str = "",
    memory: int = 1000,
    draining: bool = False,
) -> PoolWorker:
    return PoolWorker(worker_id, memory, frozenset(resident), frozenset(), requests or {}, draining)


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
PLACEMENT = AffinityPlacement(step_shares={"heavy": 0.6})


def test_the_worker_that_runs_the_model_comes_before_one_that_only_holds_it() -> None:
    workers = (worker("idle"), worker("holds", resident="a"), worker("runs", {"a": 3, "b": 1}))
    assert PLACEMENT.place(REQUEST, workers) == "runs"
    assert PLACEMENT.place(REQUEST, workers[:2]) == "holds"


def test_without_the_model_the_least_utilised_worker_is_taken() -> None:
    assert PLACEMENT.place(REQUEST, (worker("one", {"heavy": 1}), worker("two", {"b": 1, "c": 1}))) == "two"


def test_an_overloaded_worker_has_no_affinity() -> None:
    busy = worker("busy", {"a": 150, "heavy": 1, "b": 1, "c": 1})
    assert PLACEMENT.place(REQUEST, (busy, worker("idle"))) == "idle"
    assert PLACEMENT.place(REQUEST, (busy,)) == "busy"


def test_draining_and_small_workers_are_never_taken() -> None:
    assert PLACEMENT.place(REQUEST, (worker("gone", draining=True), worker("small", memory=599))) is None
    assert PLACEMENT.place(REQUEST, (worker("fits", memory=600),)) == "fits"
    assert PLACEMENT.place(REQUEST, ()) is None


@given(st.permutations([worker("a", {"x": 1}), worker("b", {"y": 1}), worker("c"), worker("d", resident="a")]))
def test_the_order_of_the_workers_does_not_matter(workers: list[PoolWorker]) -> None:
    assert PLACEMENT.place(REQUEST, tuple(workers)) == "d"
