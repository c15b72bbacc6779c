import pytest
from hypothesis import given
from hypothesis import strategies as st

from hekaton.errors import InvalidArgument
from hekaton.sim.catalog import names
from hekaton.sim.popularity import Zipf


@given(st.integers(1, 300), st.floats(0.01, 10), st.floats(0, 4), st.floats(0, 1), st.integers(0, 9))
def test_rates_have_their_mean_and_their_floor(
    count: int, mean: float, exponent: float, floor_share: float, seed: int
) -> None:
    zipf = Zipf(mean, exponent, floor_share * mean, seed)
    rates = zipf.rates_per_s(names(count))
    assert list(rates) == names(count)
    assert sum(rates.values()) / count == pytest.approx(mean)
    assert min(rates.values()) >= floor_share * mean * (1 - 1e-9)
    assert zipf.rates_per_s(names(count)) == rates


def test_the_second_model_gets_half_of_the_first_under_zipfs_law() -> None:
    ranked = sorted(Zipf(1.0, exponent=1.0).rates_per_s(names(50)).values(), reverse=True)
    assert ranked[0] / ranked[1] == pytest.approx(2)
    assert ranked[0] / ranked[9] == pytest.approx(10)


def test_an_exponent_of_0_makes_all_alike() -> None:
    assert Zipf(0.1).rates_per_s(["a", "b"]) == pytest.approx({"a": 0.1, "b": 0.1})


@pytest.mark.parametrize(
    ("mean", "exponent", "floor", "seed"),
    [(0, 1, 0, 0), (-1, 1, 0, 0), (float("nan"), 1, 0, 0), (1, -1, 0, 0), (1, 99, 0, 0), (1, 1, 2, 0), (1, 1, 0, -1)],
)
def test_what_is_no_popularity_is_refused(mean: float, exponent: float, floor: float, seed: int) -> None:
    with pytest.raises(InvalidArgument):
        Zipf(mean, exponent, floor, seed)
