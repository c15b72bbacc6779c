"""Who has had more than his share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hekaton.policy.fairness import BUSY, TOLERANCE, WINDOW_S, Usage, charges, has_place, over_share

RATES = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.001, 4.0), min_size=1)
WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.1, 10.0))


def test_while_the_pool_has_time_to_spare_nobody_has_too_much() -> None:
    assert over_share({"a": 0.8, "b": 0.1}, {}, workers=4) == frozenset()
    assert over_share({"a": 0.8, "b": 0.1}, {}, workers=1) == {"a"}


def test_what_some_leave_the_others_divide() -> None:
    assert over_share({"flood": 3.0, "half": 0.6, "little": 0.1}, {}, workers=4) == {"flood"}
    assert over_share({"one": 1.0, "other": 1.0}, {}, workers=2) == {"one", "other"}, "alike: neither goes first"


def test_nobody_with_a_name_takes_all_places_of_a_worker() -> None:
    def room(tenant: str, *yielding: str) -> bool:
        return has_place(tenant, {"flood": 10, "other": 4, "": 0}, 14, frozenset(yielding), 16)

    assert room("flood")
    assert not room("flood", "flood", "other"), "who yields has a share of places together"
    assert room("third", "flood", "other"), "it was kept for such"
    assert not has_place("flood", {"flood": 14}, 14, frozenset(), 16)
    assert has_place("", {"": 15}, 15, frozenset(), 16)
    assert not has_place("third", {"flood": 14}, 16, frozenset(), 16)


def test_shares_are_as_the_weights() -> None:
    rates = {"three": 2.0, "one": 2.0}
    assert over_share(rates, {"three": 3.0, "one": 1.0}, workers=4) == {"one"}
    assert over_share({"three": 3.6, "one": 0.4}, {"three": 3.0}, workers=4) == {"three"}


@given(RATES, WEIGHTS, st.integers(1, 8))
def test_whoever_has_too_much_has_more_for_his_weight_than_all_who_have_not(
    rates: dict[str, float], weights: dict[str, float], workers: int
) -> None:
    over = over_share(rates, weights, workers)
    weighted = {tenant: rate / weights.get(tenant, 1.0) for tenant, rate in rates.items()}
    within = [weighted[tenant] for tenant in rates.keys() - over]
    assert all(weighted[tenant] >= max(within, default=0.0) for tenant in over)
    spare = (1 - TOLERANCE) * max(sum(rates.values()), BUSY * workers) - sum(rates.values())
    assert bool(over) == (spare < 0) or abs(spare) < 1e-9


@given(st.floats(0.1, 1000.0), st.floats(0.05, 20.0))
def test_whoever_is_served_nothing_is_below_his_share_within_a_bounded_time(used_s: float, weight: float) -> None:
    """The other one has all: he who waits needs a weighted part of it at most."""
    usage, waited_s = Usage(), 0.0
    usage.charge("waits", used_s, 0.0)
    while "waits" in over_share(usage.rates(waited_s), {"waits": weight}, workers=1):
        waited_s += 1.0
        usage.charge("served", 1.0, waited_s)
        assert waited_s < 20 * WINDOW_S, "longer than it takes to forget a thousand seconds"


def test_what_was_used_is_forgotten() -> None:
    usage = Usage(window_s=10.0)
    usage.charge("a", 5.0, 0.0)
    usage.charge("a", 5.0, 0.0)
    assert usage.rates(0.0) == {"a": 1.0}
    assert usage.rates(10.0)["a"] == pytest.approx(0.368, abs=1e-3)
    assert usage.rates(1000.0) == {}


def test_a_step_and_the_switch_before_it_are_charged_to_those_that_they_serve() -> None:
    shares = charges(1.0, 0.2, [("a", 1), ("b", 2), ("a", 1)])
    assert shares == {"a": pytest.approx(0.6), "b": pytest.approx(0.6)}
