"""What a pool promises to a new request."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hekaton.policy.admission import Outlook, outlooks
from hekaton.policy.types import ModelCosts, PlacementRequest, PoolWorker

COSTS = ModelCosts(
    weight_bytes=500,
    kv_bytes_per_token=0,
    load_s=1.0,
    prefill_base_s=0.01,
    prefill_s_per_token=1e-3,
    step_base_s=0.04,
    step_s_per_request=0.0,
    step_s_per_context_token=0.0,
)
REQUEST = PlacementRequest(
    request_id="r",
    model="a",
    prompt_tokens=90,
    max_tokens=10,
    weight_bytes=500,
    kv_bytes_per_token=0,
    ttft_s=10.0,
    tbt_s=0.1,
)


def worker(name: str, requests: Mapping[str, int] | None = None, *, resident: str = "") -> PoolWorker:
    return PoolWorker(name, 10_000, frozenset(resident), frozenset(), requests or {})


def outlook(*workers: PoolWorker, request: PlacementRequest = REQUEST) -> Outlook | None:
    return outlooks([request], workers, lambda model: COSTS).get("a")


def ttft_s(*workers: PoolWorker) -> float:
    found = outlook(*workers)
    assert found is not None
    return found.ttft_s(REQUEST.tbt_s)


def test_an_idle_worker_needs_the_load_and_the_prompt() -> None:
    assert ttft_s(worker("cold")) == pytest.approx(1.0 + 0.1)
    assert ttft_s(worker("warm", resident="a")) == pytest.approx(0.1)


def test_the_worker_with_most_to_offer_counts() -> None:
    busy = worker("busy", dict.fromkeys("bcdefg", 1), resident="a")
    assert ttft_s(busy) > 10.0
    assert ttft_s(busy, worker("cold")) == pytest.approx(1.1)


def test_slower_objectives_are_kept_where_faster_ones_are_not() -> None:
    found = outlook(worker("busy", dict.fromkeys("bcdefg", 1)))
    assert found is not None
    assert found.ttft_s(0.1) > 10.0 > found.ttft_s(0.5)


def test_nobody_can_promise_what_no_worker_can_hold() -> None:
    assert outlook(worker("small"), request=replace(REQUEST, weight_bytes=20_000)) is None
    assert outlook() is None


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20)), st.sampled_from("abcdef"))
def test_more_requests_promise_no_less_time(requests: dict[str, int], more: str) -> None:
    busier = {**requests, more: requests.get(more, 0) + 1}
    assert ttft_s(worker("w", busier)) >= ttft_s(worker("w", requests)) - 1e-9
