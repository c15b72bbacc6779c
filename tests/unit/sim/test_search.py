from hypothesis import given
from hypothesis import strategies as st

from hekaton.sim.search import Passes, best_largest, best_smallest, largest, smallest


def up_to(limit: int, asked: list[int] | None = None) -> Passes:
    def passes(size: int) -> bool:
        assert size >= 1
        if asked is not None:
            asked.append(size)
        return size <= limit

    return passes


def from_on(limit: int) -> Passes:
    return lambda size: size >= limit


@given(st.integers(0, 2000), st.integers(0, 3000))
def test_the_largest_is_found_from_any_hint(limit: int, hint: int) -> None:
    asked: list[int] = []
    assert largest(up_to(limit, asked), hint) == limit
    assert len(asked) <= 40


@given(st.integers(0, 200), st.integers(1, 300), st.integers(1, 150))
def test_a_search_never_asks_beyond_its_limit(limit: int, hint: int, most: int) -> None:
    asked: list[int] = []
    assert largest(up_to(limit, asked), hint, most) == min(limit, most)
    assert max(asked) <= most


@given(st.integers(1, 200), st.integers(1, 300), st.integers(1, 150))
def test_the_smallest_is_found_or_there_is_none(limit: int, hint: int, most: int) -> None:
    assert smallest(from_on(limit), hint, most) == (limit if limit <= most else None)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.integers(1, 120))
def test_the_contender_that_reaches_furthest_wins(limits: list[int], hint: int) -> None:
    place, best = best_largest([up_to(limit) for limit in limits], hint)
    assert (limits[place], best) == (max(limits), max(limits))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 120), st.integers(1, 90))
def test_the_contender_that_needs_least_wins(limits: list[int], hint: int, most: int) -> None:
    place, best = best_smallest([from_on(limit) for limit in limits], hint, most)
    if min(limits) > most:
        assert best is None
    else:
        assert (limits[place], best) == (min(limits), min(limits))


def test_a_contender_that_cannot_do_one_better_is_asked_once() -> None:
    asked: list[int] = []
    assert best_largest([up_to(20), up_to(15, asked)], 20) == (0, 20)
    assert asked == [21]
