"""What counts of requests say about a worker's load."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hekaton.policy.load import BATCH, CONTEXT_TOKENS, OUTPUT_TOKENS, Load, load_of
from hekaton.policy.types import ModelCosts

GB = 10**9
SMALL = ModelCosts(15 * GB, 57_344, 0.9375, 0.006, 20e-6, 0.008, 1e-4, 1e-7)
LARGE = ModelCosts(26 * GB, 819_200, 1.625, 0.009, 40e-6, 0.013, 1.4e-4, 3e-7)
MEMORY = 72 * GB


def share(load: Load, memory_bytes: int = MEMORY) -> float:
    return load.share(memory_bytes, ttft_s=10.0, tbt_s=0.1, copy_weight=1.0)


def test_a_worker_whose_models_stay_on_the_device_is_loaded_by_their_steps() -> None:
    load = load_of({"a": 1, "b": 1}, lambda _: SMALL)
    request_s = 1e-4 + 1e-7 * CONTEXT_TOKENS + SMALL.prefill_s(CONTEXT_TOKENS) / OUTPUT_TOKENS
    assert share(load) == pytest.approx(1.1 * 2 * (0.008 + request_s) / 0.1)


def test_copies_count_where_the_models_do_not_fit_together() -> None:
    quick = replace(SMALL, step_base_s=0.001)
    load = load_of(dict.fromkeys("abcdef", 1), lambda _: quick)
    bundle = SMALL.weight_bytes + CONTEXT_TOKENS * SMALL.kv_bytes_per_token
    copies = (6 * bundle - (MEMORY - 2 * bundle)) * SMALL.load_s / SMALL.weight_bytes / 10.0
    steps = load.step_s / 0.1
    assert copies > steps
    assert share(load) == pytest.approx(copies + 0.1 * (copies + steps))


def test_more_requests_than_one_batch_holds_make_more_steps() -> None:
    one, two = (load_of({"a": count}, lambda _: SMALL) for count in (BATCH, 2 * BATCH))
    assert two.step_s == pytest.approx(2 * one.step_s)
    assert one.with_request(SMALL, BATCH).step_s == pytest.approx(load_of({"a": BATCH + 1}, lambda _: SMALL).step_s)


def test_models_that_do_not_fit_beside_each_other_wait_for_each_other() -> None:
    crowded = load_of({"a": 30, "b": 30}, lambda _: LARGE)
    roomy = replace(crowded, largest_bytes=0.0, second_bytes=0.0)
    assert crowded.largest_bytes + crowded.second_bytes > MEMORY
    assert share(crowded) > max(crowded.step_s / 0.1, share(roomy))


def test_the_two_largest_bundles_are_known_in_any_order() -> None:
    costs = {"a": SMALL, "b": LARGE, "c": SMALL}
    one = load_of({"a": 1, "b": 2, "c": 3}, costs.__getitem__)
    other = load_of({"b": 2, "c": 3, "a": 1}, costs.__getitem__)
    assert (one.largest_bytes, one.second_bytes) == (other.largest_bytes, other.second_bytes)
    assert one.largest_bytes > one.second_bytes > 0


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 40), max_size=8), st.integers(1, 40))
def test_more_to_do_is_never_less_load(requests: dict[str, int], count: int) -> None:
    load = load_of(requests, lambda name: LARGE if name in "ab" else SMALL)
    assert share(load.with_model(SMALL, count)) >= share(load)
    if requests:
        assert share(load.with_request(SMALL, count)) >= share(load)
